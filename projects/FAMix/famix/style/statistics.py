"""Style statistics of feature maps: mean and standard deviation of every channel, whole or patch by patch.

Shapes: B or N images, C channels, a map of H x W cells, a grid of (rows, cols) patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from famix.style.patches import Grid, check_shape, map_blocks
from famix.utils.errors import ConfigError

__all__ = ["EPS", "Statistics", "channel_mean_std", "patch_mean_std"]

EPS = 1e-5

_SLAB = 2**22  # values that are squared at a time: a whole map of squares takes longer to allocate than to compute


@dataclass(frozen=True)
class Statistics:
    """A style: mean and standard deviation of every channel, two tensors of one shape."""

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape:
            raise ConfigError(
                f"mean and std must have one shape, got {tuple(self.mean.shape)} and {tuple(self.std.shape)}. "
                "Pass a standard deviation for every mean."
            )


def channel_mean_std(x: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every image and channel.

    Args:
        x: (N, C, H, W), floating point; the statistics are computed in float32 at least.
        eps: added to the unbiased variance, under the root.

    Returns:
        mean and std, each (N, C, 1, 1).

    Raises:
        ConfigError: `x` has another number of axes, or no floating-point numbers.
    """
    check_shape("x", x, ("N", "C", "H", "W"))
    whole = patch_mean_std(x, (1, 1), eps)
    return whole.mean, whole.std


def patch_mean_std(x: Tensor, grid: Grid, eps: float = EPS) -> Statistics:
    """Mean and standard deviation of every image, channel and patch.

    Args:
        x: (B, C, H, W), floating point; the statistics are computed in float32 at least.
        grid: (rows, cols), at most (H, W).
        eps: added to the unbiased variance, under the root.

    Returns:
        Statistics of shape (B, C, rows, cols).

    Raises:
        ConfigError: the map is smaller than the grid, has another number of axes, or no floating-point numbers.
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
    # Around the mean, not as a difference of squares, which would leave nothing of a small spread around a large mean.
    halved = 0 if len(patches) > 1 else 1
    if patches.numel() > _SLAB and patches.shape[halved] > 1:
        halves = zip(patches.chunk(2, halved), mean.chunk(2, halved), strict=True)
        return torch.cat([_variances(*half) for half in halves], halved)
    # A single cell has no unbiased variance; its spread is 0.
    return _sums((patches - mean).square_()) / max(1, _cells(patches) - 1)


def _sums(patches: Tensor) -> Tensor:
    # Side by side: over both at once is many times slower with channels last.
    return patches.sum(4, keepdim=True).sum(2, keepdim=True)


def _cells(patches: Tensor) -> int:
    return patches.shape[2] * patches.shape[4]
