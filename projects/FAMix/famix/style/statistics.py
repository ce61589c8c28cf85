"""Style statistics of feature maps: mean and standard deviation of every channel, whole or patch by patch.

Shapes: B or N images, C channels, a map of H x W cells, a grid of (rows, cols) patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from famix.style.patches import Grid, join_blocks, map_blocks

__all__ = ["EPS", "Statistics", "channel_mean_std", "patch_mean_std"]

EPS = 1e-5


@dataclass(frozen=True)
class Statistics:
    """A style: mean and standard deviation of every channel, two tensors of one shape."""

    mean: Tensor
    std: Tensor


def channel_mean_std(x: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every image and channel.

    Args:
        x: (N, C, H, W), floating point; the statistics are computed in float32 at least.
        eps: added to the unbiased variance, under the root.

    Returns:
        mean and std, each (N, C, 1, 1).
    """
    mean_std = _mean_std(x, (2, 3), eps)
    return mean_std[0], mean_std[1]


def patch_mean_std(x: Tensor, grid: Grid, eps: float = EPS) -> Statistics:
    """Mean and standard deviation of every image, channel and patch.

    Args:
        x: (B, C, H, W), floating point; the statistics are computed in float32 at least.
        grid: (rows, cols), at most (H, W).
        eps: added to the unbiased variance, under the root.

    Returns:
        Statistics of shape (B, C, rows, cols).

    Raises:
        ConfigError: the map is smaller than the grid.
    """
    blocks = map_blocks(lambda patches: _mean_std(patches, (-3, -1), eps)[..., 0, :, 0], x, grid)
    mean, std = join_blocks(blocks).unbind()
    return Statistics(mean, std)


def _mean_std(x: Tensor, dims: tuple[int, int], eps: float) -> Tensor:
    """Mean and std over two dimensions, which stay with size 1, stacked along a new first one."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # half precision overflows in the sum of squares
    count = x.shape[dims[0]] * x.shape[dims[1]]
    # A single cell has no unbiased variance; its spread is 0.
    var, mean = torch.var_mean(x, dims, correction=min(1, count - 1), keepdim=True)
    return torch.stack([mean, (var + eps).sqrt()])
