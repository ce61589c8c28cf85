"""Style statistics of feature maps: mean and standard deviation of every channel, of the map or of each patch.

Shapes: B or N images, C channels, a map of H x W cells, a grid of (rows, cols) patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from famix.style.patches import Grid, check_shape, map_blocks
from famix.utils.errors import ConfigError

__all__ = ["EPS", "Statistics", "channel_mean_std", "patch_mean_std"]

EPS = 1e-5

_SLAB = 2**22  # values to square at a time: allocating a whole map of squares takes longer than computing it


@dataclass(frozen=True)
class Statistics:
    """A style: mean and standard deviation of every channel, two tensors of one shape."""

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape:
            raise ConfigError(
                f"mean and std must have the same shape, got {tuple(self.mean.shape)} and {tuple(self.std.shape)}. "
                "Pass a standard deviation for every mean."
            )


def channel_mean_std(x: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of every image and channel.

    Args:
        x: (N, C, H, W), floating point; computed in float32 or float64.
        eps: added to the unbiased variance before the root.

    Returns:
        mean and std, each (N, C, 1, 1).

    Raises:
        ConfigError: `x` is not a floating-point tensor of 4 axes.
    """
    check_shape("x", x, ("N", "C", "H", "W"))
    whole = patch_mean_std(x, (1, 1), eps)
    return whole.mean, whole.std


def patch_mean_std(x: Tensor, grid: Grid, eps: float = EPS) -> Statistics:
    """Compute the mean and standard deviation of every image, channel and patch.

    Args:
        x: (B, C, H, W), floating point; computed in float32 or float64.
        grid: (rows, cols), at most (H, W).
        eps: added to the unbiased variance before the root.

    Returns:
        Statistics of shape (B, C, rows, cols).

    Raises:
        ConfigError: `x` is not a floating-point tensor of 4 axes, or the grid exceeds the map.
    """
    check_shape("x", x, ("B", "C", "H", "W"))
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # half precision overflows in the sum of squares
    mean = map_blocks(_means, x, grid)
    variance = map_blocks(_variances, x, grid, mean)
    return Statistics(mean, (variance + eps).sqrt())


def _means(patches: Tensor) -> Tensor:
    return _sums(patches) / _cells(patches)


def _variances(patches: Tensor, mean: Tensor) -> Tensor:
    # Squared deviations: a difference of squares would lose a small spread around a large mean to rounding.
    halved = 0 if len(patches) > 1 else 1
    if patches.numel() > _SLAB and patches.shape[halved] > 1:
        halves = zip(patches.chunk(2, halved), mean.chunk(2, halved), strict=True)
        return torch.cat([_variances(*half) for half in halves], halved)
    # A single cell has variance 0.
    return _sums((patches - mean).square_()) / max(1, _cells(patches) - 1)


def _sums(patches: Tensor) -> Tensor:
    # One axis at a time: with channels last, a sum over both at once is many times slower.
    return patches.sum(4, keepdim=True).sum(2, keepdim=True)


def _cells(patches: Tensor) -> int:
    return patches.shape[2] * patches.shape[4]
