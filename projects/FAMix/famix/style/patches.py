"""How a map is divided into a grid of patches, and views of it patch by patch.

Shapes: B images, C channels, a map of H x W cells, a grid of (rows, cols) patches of h x w cells.

A side that is no multiple of the grid is divided as `torch.tensor_split` does it: its first patches are one cell
longer than the others. Such a map falls into at most four blocks of equally large patches, and every operation on
patches is vectorised inside a block; there is no loop over patches.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from famix.errors import ConfigError

__all__ = ["Grid", "check_grid", "join_blocks", "map_blocks", "patch_index", "patch_starts"]

Grid = tuple[int, int]  # (rows, cols)


class Span(NamedTuple):
    """A run of equally long patches along one side of a map."""

    cells: slice  # of the map
    patches: slice  # of the grid

    @property
    def length(self) -> int:
        """How many patches the run holds."""
        return self.patches.stop - self.patches.start


def check_grid(size: Sequence[int], grid: Grid) -> None:
    """Raise ConfigError unless a map of `size` (H, W) can be divided into `grid` (rows, cols) patches."""
    if len(grid) != 2 or min(grid) < 1 or any(side < patches for side, patches in zip(size, grid, strict=True)):
        raise ConfigError(
            f"a map of {tuple(size)} cells (height, width) cannot be divided into a grid of {tuple(grid)} (rows, cols): "
            "each must be at least 1 and at most the map's side; change MODEL.STYLE.GRID or enlarge INPUT.CROP.SIZE"
        )


def map_blocks(function: Callable[..., Tensor], x: Tensor, grid: Grid, *per_patch: Tensor) -> list[list[Tensor]]:
    """Apply a function to every block of a map, at most 2 x 2 of them.

    Args:
        function: takes the block's patches, a view of shape (..., rows, h, cols, w), and for each tensor in
            `per_patch` the part that belongs to them, (..., rows, 1, cols, 1).
        x: (..., H, W).
        grid: (rows, cols) of the whole map.
        per_patch: tensors of shape (..., rows, cols) that hold one value for every patch.

    Returns:
        The results as they lie in the map: a list of rows of blocks.
    """
    check_grid(x.shape[-2:], grid)

    def block(y: Span, z: Span) -> Tensor:
        patches = x[..., y.cells, z.cells].unflatten(-1, (z.length, -1)).unflatten(-3, (y.length, -1))
        parts = (p[..., y.patches, None, z.patches, None] for p in per_patch)
        return function(patches, *parts)

    return [[block(y, z) for z in _spans(x.shape[-1], grid[1])] for y in _spans(x.shape[-2], grid[0])]


def join_blocks(blocks: Sequence[Sequence[Tensor]]) -> Tensor:
    """Put the blocks of a map, or of a grid, together: the blocks' (..., height, width) become one (..., H, W)."""
    rows = [_cat(row, dim=-1) for row in blocks]
    return _cat(rows, dim=-2)


def patch_starts(side: int, patches: int, device: torch.device | None = None) -> Tensor:
    """First cell of every patch along a side of `side` cells: (patches,) int64."""
    short, longer = divmod(side, patches)
    index = torch.arange(patches, device=device)
    return index * short + index.clamp(max=longer)


def patch_index(side: int, patches: int, device: torch.device | None = None) -> Tensor:
    """Number of the patch that every cell along a side belongs to: (side,) int64 in [0, patches)."""
    starts = patch_starts(side, patches, device)
    return torch.bucketize(torch.arange(side, device=device), starts, right=True) - 1


def _spans(side: int, patches: int) -> list[Span]:
    short, longer = divmod(side, patches)
    cut = longer * (short + 1)
    spans = [Span(slice(0, cut), slice(0, longer)), Span(slice(cut, side), slice(longer, patches))]
    return [span for span in spans if span.length]


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    # A map that the grid divides is one block: it must not be copied.
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)
