import pytest
import torch

from famix.errors import ConfigError
from famix.style.patches import check_grid, join_blocks, map_blocks, patch_index, patch_starts

SIDES = [(6, 3), (7, 3), (8, 3), (5, 5), (9, 1), (11, 4)]


@pytest.mark.parametrize(("side", "patches"), SIDES)
def test_a_side_is_divided_as_tensor_split_does(side, patches):
    parts = torch.arange(side).tensor_split(patches)
    assert patch_starts(side, patches).tolist() == [part[0].item() for part in parts]
    numbers = [number for number, part in enumerate(parts) for _ in part]
    assert patch_index(side, patches).tolist() == numbers


@pytest.mark.parametrize(("size", "grid", "blocks"), [((6, 4), (3, 2), 1), ((7, 4), (3, 2), 2), ((7, 5), (3, 2), 4)])
def test_a_map_falls_into_few_blocks_that_join_to_the_map(size, grid, blocks):
    x = torch.rand(2, 3, *size)
    mapped = map_blocks(lambda patches: patches.flatten(-2).flatten(-3, -2), x, grid)
    assert sum(len(row) for row in mapped) == blocks
    assert torch.equal(join_blocks(mapped), x)


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_values_per_patch_meet_their_patches(size):
    values = torch.arange(6.0).view(1, 1, 3, 2)

    def fill(patches, value):
        return (torch.zeros_like(patches) + value).flatten(-2).flatten(-3, -2)

    filled = join_blocks(map_blocks(fill, torch.zeros(1, 1, *size), (3, 2), values))
    for row, band in enumerate(filled.tensor_split(3, -2)):
        for col, patch in enumerate(band.tensor_split(2, -1)):
            assert (patch == values[0, 0, row, col]).all()


@pytest.mark.parametrize("grid", [(3, 2), (2, 6), (0, 1), (1, -1)])
def test_a_grid_that_does_not_fit_is_refused_with_both_sizes(grid):
    with pytest.raises(ConfigError, match=r"map of \(2, 5\).*grid of \(" + f"{grid[0]}, {grid[1]}" + r"\).*GRID"):
        check_grid((2, 5), grid)


def test_a_grid_of_one_number_is_refused():
    with pytest.raises(ConfigError, match=r"\(rows, cols\)"):
        check_grid((4, 4), (2,))
