import pytest
import torch

from error_matching import expect_error
from famix.style.patches import check_grid, map_blocks, patch_index, patch_starts
from famix.utils.errors import ConfigError

both_formats = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])


@pytest.mark.parametrize(("side", "patches"), [(6, 3), (7, 3), (8, 3), (5, 5), (9, 1), (11, 4)])
def test_sides_are_divided_as_by_tensor_split(side, patches):
    parts = torch.arange(side).tensor_split(patches)
    assert patch_starts(side, patches).tolist() == [part[0].item() for part in parts]
    assert patch_index(side, patches).tolist() == [number for number, part in enumerate(parts) for _ in part]


@both_formats
@pytest.mark.parametrize(("size", "grid", "blocks"), [((6, 4), (3, 2), 1), ((7, 4), (3, 2), 2), ((7, 5), (3, 2), 4)])
def test_map_blocks_joins_few_blocks(size, grid, blocks, memory_format):
    x, seen = torch.rand(2, 3, *size).contiguous(memory_format=memory_format), []
    mapped = map_blocks(lambda patches: seen.append(patches.shape) or patches, x, grid)
    assert len(seen) == blocks and sum(shape[1] * shape[3] for shape in seen) == 6
    assert torch.equal(mapped, x) and mapped.is_contiguous(memory_format=memory_format)
    assert (mapped.data_ptr() == x.data_ptr()) == (blocks == 1), "a map that the grid divides is not copied"


@both_formats
@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_map_blocks_passes_values_per_patch(size, memory_format):
    values = torch.arange(36.0).view(2, 3, 3, 2)
    zeros = torch.zeros(2, 3, *size).contiguous(memory_format=memory_format)
    filled = map_blocks(torch.add, zeros, (3, 2), values)
    for row, band in enumerate(filled.tensor_split(3, -2)):
        for col, patch in enumerate(band.tensor_split(2, -1)):
            assert torch.equal(patch, values[:, :, row, col, None, None].expand_as(patch))
    assert torch.equal(map_blocks(lambda patches: patches.amax((2, 4), keepdim=True), filled, (3, 2)), values)


@pytest.mark.parametrize("grid", [(3, 2), (2, 6), (0, 1), (1, -1), (2,)])
def test_check_grid_rejects_sizes(grid):
    with expect_error(ConfigError, "grid", grid, "MODEL.STYLE.GRID"):
        check_grid((2, 5), grid)


@pytest.mark.parametrize("wrong", [2, (2.0, 3.0), "23", None, torch.tensor([2, 3])])
def test_check_grid_rejects_types(wrong):
    with expect_error(ConfigError, "grid", remedy="(3, 3)"):
        check_grid((6, 6), wrong)
