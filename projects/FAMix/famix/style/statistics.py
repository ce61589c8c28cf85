"""Style statistics of feature maps: mean and standard deviation of each channel, over the map or over each patch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from famix.style.patches import Grid, check_shape, map_blocks
from famix.utils.errors import ConfigError

EPS = 1e-5

_SLAB = 2**22  # values to square at a time: allocating a whole map of squares takes longer than computing it


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel, as two tensors of the same shape."""

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape:
            raise ConfigError(
                f"mean and std have different shapes: {tuple(self.mean.shape)} and {tuple(self.std.shape)}. "
                "Pass one standard deviation for each mean."
            )


def channel_mean_std(x: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of each image and channel.

    Args:
        x: (N, C, H, W), floating point. Half-precision statistics are computed in float32.
        eps: value added to the unbiased variance before the square root.

    Returns:
        mean and std, each (N, C, 1, 1).

    Raises:
        ConfigError: `x` is not a floating-point tensor with 4 axes.
    """
    whole = patch_mean_std(x, (1, 1), eps)
    return whole.mean, whole.std


def patch_mean_std(x: Tensor, grid: Grid, eps: float = EPS) -> Statistics:
    """Compute the mean and standard deviation of each image, channel and patch.

    Args:
        x: (B, C, H, W), see `channel_mean_std`.
        grid: (rows, cols), at most (H, W).
        eps: see `channel_mean_std`.

    Returns:
        Statistics of shape (B, C, rows, cols).

    Raises:
        ConfigError: `x` is not a floating-point tensor with 4 axes, or the grid is larger than the map.
    """
    check_shape("x", x, ("B", "C", "H", "W"))
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # half precision overflows in the sum of squares
    mean = map_blocks(_average, x, grid)
    variance = map_blocks(_variance, x, grid, mean)
    return Statistics(mean, (variance + eps).sqrt())


def _average(patches: Tensor, correction: int = 0) -> Tensor:
    # One axis at a time: with channels last, a sum over both at once is many times slower.
    total = patches.sum(4, keepdim=True).sum(2, keepdim=True)
    return total / max(1, patches.shape[2] * patches.shape[4] - correction)


def _variance(patches: Tensor, mean: Tensor) -> Tensor:
    # Use squared deviations: a difference of squares would lose a small spread around a large mean to rounding.
    halved = 0 if len(patches) > 1 else 1
    if patches.numel() > _SLAB and patches.shape[halved] > 1:
        halves = zip(patches.chunk(2, halved), mean.chunk(2, halved), strict=True)
        return torch.cat([_variance(*half) for half in halves], halved)
    return _average((patches - mean).square_(), correction=1)
