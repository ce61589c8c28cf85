"""Giving the patches of a feature map new statistics: the deterministic half of style mixing."""

import torch
from torch import Tensor

from famix.style.patches import Grid, map_blocks
from famix.style.statistics import Statistics, patch_mean_std

__all__ = ["mix_statistics", "restyle_patches", "transfer_statistics"]


def restyle_patches(features: Tensor, mean: Tensor, std: Tensor, alpha: Tensor, grid: Grid) -> Tensor:
    """Mix the statistics of every patch with drawn ones (prompt-driven instance normalisation, then a ReLU).

    A patch x with own statistics m, s becomes relu(s' * (x - m) / s + m'), where
    m' = alpha * m + (1 - alpha) * mean and s' = alpha * s + (1 - alpha) * std.

    Args:
        features: (B, C, H, W), floating point.
        mean: (B, C, rows, cols), the drawn means.
        std: (B, C, rows, cols), the drawn standard deviations.
        alpha: (B, C, 1, 1), or anything that broadcasts against mean: weight of the patch's OWN statistics, in [0, 1].
        grid: (rows, cols), at most (H, W).

    Returns:
        (B, C, H, W) in the features' dtype and order of memory. Gradients reach features, mean, std and alpha.

    Raises:
        ConfigError: the map is smaller than the grid.
    """
    own = patch_mean_std(features, grid)
    return transfer_statistics(features, own, mix_statistics(own, Statistics(mean, std), alpha), grid)


def mix_statistics(own: Statistics, drawn: Statistics, alpha: Tensor) -> Statistics:
    """alpha * own + (1 - alpha) * drawn, for the means and for the standard deviations."""
    alpha = alpha.to(own.mean)
    mean, std = drawn.mean.to(own.mean), drawn.std.to(own.std)
    return Statistics(torch.lerp(mean, own.mean, alpha), torch.lerp(std, own.std, alpha))


def transfer_statistics(features: Tensor, own: Statistics, new: Statistics, grid: Grid) -> Tensor:
    """Replace each patch's own statistics by new ones, then apply a ReLU.

    Args:
        features: (B, C, H, W), floating point.
        own: statistics of the patches, (B, C, rows, cols).
        new: the statistics that they get, (B, C, rows, cols).
        grid: (rows, cols) of both.

    Returns:
        (B, C, H, W) in the features' dtype.
    """
    # Both normalisations in one affine map per patch: the map is read once and written once.
    scale = new.std / own.std
    shift = new.mean - scale * own.mean
    return map_blocks(_affine_relu, features, grid, scale, shift)


def _affine_relu(patches: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # Half-precision patches meet float32 statistics: the map is computed in float32 and rounded once.
    return torch.addcmul(shift, patches, scale).relu_().to(patches.dtype)
