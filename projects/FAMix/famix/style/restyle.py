"""Transfer of statistics to the patches of a feature map: the deterministic half of style mixing."""

import torch
from torch import Tensor

from famix.style.patches import Grid, check_grid, check_shape, map_blocks
from famix.style.statistics import Statistics, patch_mean_std
from famix.utils.errors import ConfigError

__all__ = ["mix_statistics", "restyle_patches", "transfer_statistics"]

_AXES = ("B", "C", "rows", "cols")
_FROM_BANK = "StyleBank.sample returns (B, rows, cols, C): rearrange it with .movedim(-1, 1)."


def restyle_patches(
    features: Tensor, mean: Tensor, std: Tensor, alpha: Tensor | float, grid: Grid, rectify: bool = True
) -> Tensor:
    """Mix the statistics of every patch with drawn ones (prompt-driven instance normalization, then a ReLU).

    A patch x with own statistics m, s becomes relu(s' * (x - m) / s + m'), where
    m' = alpha * m + (1 - alpha) * mean and s' = alpha * s + (1 - alpha) * std.

    Args:
        features: (B, C, H, W), floating point.
        mean: (B, C, rows, cols), floating point, the drawn means. `StyleBank.sample` puts the channels last: use
            `.movedim(-1, 1)`.
        std: (B, C, rows, cols), floating point, the drawn standard deviations.
        alpha: weight of the patch's OWN statistics, in [0, 1]: a number, or (B, C, 1, 1), where any axis may have size
            1 or that of mean.
        grid: (rows, cols), at most (H, W).
        rectify: apply the ReLU. Leave it out for features that are not outputs of one, such as those of a transformer.

    Returns:
        (B, C, H, W) in the dtype and memory order of the features. Gradients reach features, mean, std and alpha.

    Raises:
        ConfigError: the grid exceeds the map, an argument has another shape, or `alpha` is out of range.
    """
    check_shape("features", features, ("B", "C", "H", "W"))
    check_grid(features.shape[-2:], grid)
    for name, drawn in (("mean", mean), ("std", std)):
        check_shape(name, drawn, _AXES, (*features.shape[:2], *grid), _FROM_BANK)
    own = patch_mean_std(features, grid)
    return transfer_statistics(features, own, mix_statistics(own, Statistics(mean, std), alpha), grid, rectify)


def mix_statistics(own: Statistics, drawn: Statistics, alpha: Tensor | float) -> Statistics:
    """Mix two statistics: alpha * own + (1 - alpha) * drawn, for the means and for the standard deviations.

    Args:
        own: (B, C, rows, cols).
        drawn: (B, C, rows, cols).
        alpha: see `restyle_patches`.

    Raises:
        ConfigError: the shapes differ, or `alpha` is out of range.
    """
    check_shape("drawn", drawn.mean, _AXES, own.mean.shape, _FROM_BANK)
    alpha = _as_weights(alpha, own.mean)
    mean, std = drawn.mean.to(own.mean), drawn.std.to(own.std)
    return Statistics(torch.lerp(mean, own.mean, alpha), torch.lerp(std, own.std, alpha))


def transfer_statistics(features: Tensor, own: Statistics, new: Statistics, grid: Grid, rectify: bool = True) -> Tensor:
    """Replace the statistics of each patch, then apply a ReLU.

    Args:
        features: (B, C, H, W), floating point.
        own: statistics of the patches, (B, C, rows, cols).
        new: statistics to transfer, (B, C, rows, cols).
        grid: (rows, cols) of both.
        rectify: apply the ReLU.

    Returns:
        (B, C, H, W) in the dtype of the features.

    Raises:
        ConfigError: the grid exceeds the map, or an argument has another shape.
    """
    check_shape("features", features, ("B", "C", "H", "W"))
    for name, statistics in (("own", own), ("new", new)):
        check_shape(name, statistics.mean, _AXES, (*features.shape[:2], *grid), _FROM_BANK)
    # Both normalizations as one affine map per patch: one read and one write of the map.
    scale = new.std / own.std
    shift = new.mean - scale * own.mean

    def affine(patches: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        # With half-precision patches and float32 statistics, compute in float32 and round once.
        restyled = torch.addcmul(shift, patches, scale)
        return (restyled.relu_() if rectify else restyled).to(patches.dtype)

    return map_blocks(affine, features, grid, scale, shift)


def _as_weights(alpha: Tensor | float, like: Tensor) -> Tensor:
    """Turn alpha into a tensor that broadcasts against `like` (B, C, rows, cols) axis by axis."""
    if not isinstance(alpha, Tensor):
        try:
            alpha = like.new_tensor(float(alpha))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"alpha must be a number or a tensor, got {type(alpha).__name__}. Convert it.") from error
    # Checked on the CPU only: a check would synchronize with a GPU.
    if alpha.is_cpu and not ((alpha >= 0) & (alpha <= 1)).all():
        got = f"{alpha.item():g}" if alpha.numel() == 1 else f"{alpha.min():g} to {alpha.max():g}"
        raise ConfigError(f"alpha must be in [0, 1], got {got}. It is the weight of a patch's own statistics.")
    fits = alpha.dim() == 4 and all(a in (1, b) for a, b in zip(alpha.shape, like.shape, strict=True))
    if alpha.numel() != 1 and not fits:
        sizes = ", ".join(f"{axis}={size}" for axis, size in zip(_AXES, like.shape, strict=True))
        raise ConfigError(
            f"alpha must be a number or have the shape ({sizes}) with any size 1, got {tuple(alpha.shape)}. "
            "For a weight of each image and channel use (B, C, 1, 1)."
        )
    return alpha.to(like)
