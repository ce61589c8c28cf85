"""Patch grids: argument checks, patch boundaries, and functions applied patch by patch.

Shapes: B images, C channels, a feature map of H x W cells, a grid of (rows, cols) patches with h x w cells each.

A side that the grid does not divide evenly is split as in `torch.tensor_split`: its first patches are one cell longer.
Such a map consists of at most four blocks of equally sized patches. Operations are vectorized within each block.
"""

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from famix.utils.errors import ConfigError

Grid = tuple[int, int]  # (rows, cols)


class Span(NamedTuple):
    """Run of equally long patches along one side of a map."""

    cells: slice  # range of cells in the map
    patches: slice  # range of patches in the grid
    number: int  # number of patches


def check_shape(
    name: str,
    x: Tensor,
    axes: Sequence[str],
    sizes: Sequence[int | None] = (),
    remedy: str = "",
    floating: bool = True,
) -> None:
    """Raise ConfigError unless an argument is a floating-point tensor of a given shape.

    Args:
        name: name of the argument.
        x: value of the argument, of any type.
        axes: names of the axes, e.g. ("B", "C", "H", "W").
        sizes: expected size of each axis, or None for any size; () accepts all sizes.
        remedy: last sentence of the message.
        floating: whether to require a floating-point dtype.
    """
    check_tensor(name, x)
    expected = list(sizes) or [None] * len(axes)
    if x.dim() != len(axes) or any(size not in (None, got) for size, got in zip(expected, x.shape, strict=False)):
        known = [axis if size is None else f"{axis}={size}" for axis, size in zip(axes, expected, strict=True)]
        raise ConfigError(
            f"{name} must have shape ({', '.join(known)}), got {tuple(x.shape)}. {remedy or 'Rearrange its axes.'}"
        )
    if floating and not x.is_floating_point():
        raise ConfigError(f"{name} must be a floating-point tensor, got {x.dtype}. Convert it, e.g. with .float().")


def check_tensor(name: str, x: object) -> None:
    """Raise ConfigError unless an argument is a tensor."""
    if not isinstance(x, Tensor):
        raise ConfigError(f"{name} must be a tensor, got {type(x).__name__}. Convert it with torch.as_tensor.")


def check_grid(size: Sequence[int], grid: Grid) -> None:
    """Raise ConfigError unless a map of `size` (H, W) can be divided into `grid` (rows, cols) patches."""
    if not isinstance(grid, Iterable) or not all(isinstance(patches, Integral) for patches in grid):
        raise ConfigError(f"grid must be two integers (rows, cols), got {grid!r}. Use, for example, (3, 3).")
    if len(grid) != 2 or min(grid) < 1 or any(side < patches for side, patches in zip(size, grid, strict=True)):
        raise ConfigError(
            f"grid (rows, cols) must be at least (1, 1) and at most {tuple(size)}, the (height, width) of the feature map in "
            f"cells, got {tuple(grid)}. Change MODEL.STYLE.GRID or increase INPUT.CROP.SIZE."
        )


def patch_starts(side: int, patches: int, device: torch.device | None = None) -> Tensor:
    """Return the first cell of each patch along a side of `side` cells: (patches,) int64."""
    short, longer = divmod(side, patches)
    index = torch.arange(patches, device=device)
    return index * short + index.clamp(max=longer)


def patch_index(side: int, patches: int, device: torch.device | None = None) -> Tensor:
    """Return the index of the patch that contains each cell along a side: (side,) int64."""
    starts = patch_starts(side, patches, device)
    return torch.bucketize(torch.arange(side, device=device), starts, right=True) - 1


def map_blocks(function: Callable[..., Tensor], x: Tensor, grid: Grid, *per_patch: Tensor) -> Tensor:
    """Apply a function to each block of a map (there are at most 2 x 2) and join the results.

    Args:
        function: called with the patches of a block, a view of shape (P, rows, h, cols, w, Q), and the matching values of
            each `per_patch` tensor, (P, rows, 1, cols, 1, Q). It returns a tensor of the shape of the patches, or of
            that shape with h = w = 1. P = B * C and Q = 1 in channels-first memory order; P = B and Q = C in
            channels-last order.
        x: (B, C, H, W).
        grid: (rows, cols) of the whole map.
        per_patch: tensors (B, C, rows, cols).

    Returns:
        (B, C, H, W) in the memory order of `x`, or (B, C, rows, cols) if the function returns one value for each patch.
    """
    check_grid(x.shape[-2:], grid)
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    ordered, *others = (
        tensor.movedim(1, -1) if channels_last else tensor.flatten(0, 1).unsqueeze(-1) for tensor in (x, *per_patch)
    )

    def block(y: Span, z: Span) -> Tensor:
        patches = ordered[:, y.cells, z.cells].unflatten(2, (z.number, -1)).unflatten(1, (y.number, -1))
        parts = (other[:, y.patches, None, z.patches, None] for other in others)
        return function(patches, *parts).flatten(3, 4).flatten(1, 2)

    spans = _spans(x.shape[-1], grid[1])
    rows = [_cat([block(y, z) for z in spans], dim=2) for y in _spans(x.shape[-2], grid[0])]
    joined = _cat(rows, dim=1)
    return joined.movedim(-1, 1) if channels_last else joined.squeeze(-1).unflatten(0, x.shape[:2])


def _spans(side: int, patches: int) -> list[Span]:
    short, longer = divmod(side, patches)
    cut = longer * (short + 1)
    rest = Span(slice(cut, side), slice(longer, patches), patches - longer)
    return [Span(slice(0, cut), slice(0, longer), longer), rest] if longer else [rest]


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    # A map that the grid divides evenly is a single block and must not be copied.
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)
