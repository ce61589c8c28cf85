import pytest
import torch

from error_matching import expect_error
from famix.style.patches import check_grid, map_blocks, patch_index, patch_starts
from famix.utils.errors import ConfigError

SIDES = [(6, 3), (7, 3), (8, 3), (5, 5), (9, 1), (11, 4)]


@pytest.mark.parametrize(("side", "patches"), SIDES)
def test_a_side_is_divided_as_tensor_split_does(side, patches):
    parts = torch.arange(side).tensor_split(patches)
    assert patch_starts(side, patches).tolist() == [part[0].item() for part in parts]
    numbers = [number for number, part in enumerate(parts) for _ in part]
    assert patch_index(side, patches).tolist() == numbers


FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("size", "grid", "blocks"), [((6, 4), (3, 2), 1), ((7, 4), (3, 2), 2), ((7, 5), (3, 2), 4)])
def test_a_map_falls_into_few_blocks_that_join_to_the_map(size, grid, blocks, memory_format):
    x, seen = torch.rand(2, 3, *size).contiguous(memory_format=memory_format), []
    mapped = map_blocks(lambda patches: seen.append(patches.shape) or patches, x, grid)
    assert len(seen) == blocks and sum(shape[1] * shape[3] for shape in seen) == 6
    assert torch.equal(mapped, x)
    assert mapped.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_map_that_the_grid_divides_is_not_copied(memory_format):
    x = torch.rand(2, 3, 6, 4).contiguous(memory_format=memory_format)
    assert map_blocks(lambda patches: patches, x, (3, 2)).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_values_per_patch_meet_their_patches(size, memory_format):
    values = torch.arange(36.0).view(2, 3, 3, 2)
    zeros = torch.zeros(2, 3, *size).contiguous(memory_format=memory_format)
    filled = map_blocks(torch.add, zeros, (3, 2), values)
    for row, band in enumerate(filled.tensor_split(3, -2)):
        for col, patch in enumerate(band.tensor_split(2, -1)):
            assert torch.equal(patch, values[:, :, row, col, None, None].expand_as(patch))
    back = map_blocks(lambda patches: patches.amax((2, 4), keepdim=True), filled, (3, 2))
    assert torch.equal(back, values)


@pytest.mark.parametrize("grid", [(3, 2), (2, 6), (0, 1), (1, -1), (2,)])
def test_a_grid_that_does_not_fit_is_refused_with_both_sizes(grid):
    with expect_error(ConfigError, "grid", grid, "MODEL.STYLE.GRID"):
        check_grid((2, 5), grid)
