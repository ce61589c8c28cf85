"""Prompt-driven instance normalization for patches of a feature map: the deterministic half of style mixing."""

import torch
from torch import Tensor

from famix.style.patches import Grid, check_grid, check_shape, map_blocks
from famix.style.statistics import Statistics, patch_mean_std
from famix.utils.errors import ConfigError

_AXES = ("B", "C", "rows", "cols")
_FROM_BANK = "StyleBank.sample returns (B, rows, cols, C); rearrange its results with .movedim(-1, 1)."


def restyle_patches(
    features: Tensor,
    mean: Tensor,
    std: Tensor,
    alpha: Tensor | float,
    grid: Grid,
    rectify: bool = True,
    own: Statistics | None = None,
) -> Tensor:
    """Mix the statistics of each patch with drawn statistics (prompt-driven instance normalization, then a ReLU).

    A patch x with its own mean m and standard deviation s becomes relu(s' * (x - m) / s + m'), where
    m' = alpha * m + (1 - alpha) * mean and s' = alpha * s + (1 - alpha) * std.

    Args:
        features: (B, C, H, W), floating point.
        mean: (B, C, rows, cols), floating point, drawn means. `StyleBank.sample` returns channels last: use
            `.movedim(-1, 1)`.
        std: (B, C, rows, cols), floating point, drawn standard deviations.
        alpha: weight of the patch's OWN statistics in [0, 1]: a number, or a tensor with 4 axes that broadcasts to mean,
            such as (B, C, 1, 1).
        grid: (rows, cols), at most (H, W).
        rectify: whether to apply the ReLU. Use False for features that are not ReLU outputs, such as a transformer's.
        own: result of `patch_mean_std(features, grid)`, if already computed.

    Returns:
        (B, C, H, W) in the dtype and memory order of the features. Gradients flow to features, mean, std and alpha.

    Raises:
        ConfigError: the grid is larger than the map, an argument has the wrong shape, or `alpha` is out of range.
    """
    check_shape("features", features, ("B", "C", "H", "W"))
    check_grid(features.shape[-2:], grid)
    own = patch_mean_std(features, grid) if own is None else own
    for name, statistic in (("own", own.mean), ("mean", mean), ("std", std)):
        check_shape(name, statistic, _AXES, (*features.shape[:2], *grid), _FROM_BANK)
    alpha = _as_weights(alpha, own.mean)
    new_mean = torch.lerp(mean.to(own.mean), own.mean, alpha)
    new_std = torch.lerp(std.to(own.std), own.std, alpha)
    # Combine both normalizations into one affine map per patch, which reads and writes the feature map once.
    scale = new_std / own.std
    shift = new_mean - scale * own.mean

    def affine(patches: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        # With half-precision patches and float32 statistics, compute in float32 and round once.
        restyled = torch.addcmul(shift, patches, scale)
        return (restyled.relu_() if rectify else restyled).to(patches.dtype)

    return map_blocks(affine, features, grid, scale, shift)


def _as_weights(alpha: Tensor | float, like: Tensor) -> Tensor:
    """Convert alpha to a tensor that broadcasts against `like` (B, C, rows, cols) axis by axis."""
    if not isinstance(alpha, Tensor):
        try:
            alpha = like.new_tensor(float(alpha))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"alpha must be a number or a tensor, got {type(alpha).__name__}. Convert it, e.g. with float()."
            ) from error
    # Checked only on the CPU, since the check would synchronize with a GPU.
    if alpha.is_cpu and not ((alpha >= 0) & (alpha <= 1)).all():
        got = f"{alpha.item():g}" if alpha.numel() == 1 else f"{alpha.min():g} to {alpha.max():g}"
        raise ConfigError(f"alpha must be in [0, 1], got {got}. It is the weight of a patch's own statistics.")
    fits = alpha.dim() == 4 and all(a in (1, b) for a, b in zip(alpha.shape, like.shape, strict=True))
    if alpha.numel() != 1 and not fits:
        raise ConfigError(
            f"alpha must be a number or broadcast to (B, C, rows, cols) = {tuple(like.shape)}, got shape {tuple(alpha.shape)}. "
            "Use (B, C, 1, 1) for one weight per image and channel."
        )
    return alpha.to(like)
