"""Random points at which masks are compared, derived from keys instead of a generator's state.

A draw depends only on its key. Neither the other images in a batch nor the number of processes affect it, and no loop
over generators is needed. Shapes: N masks, P points with coordinates (x, y) in [0, 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLING = 3  # candidates per point, as in Mask2Former
IMPORTANCE = 0.75  # fraction of the points that are the most uncertain candidates, as in Mask2Former

# SplitMix64 (Steele et al., OOPSLA 2014). Integers wrap around; constants above 2**63 are written as negative numbers.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_LAST_SHIFT = 31
_FLOAT_BITS = 24  # bits of a float32's fraction, so that 1 is never drawn


def derive_keys(keys: Tensor, *values: Tensor | int) -> Tensor:
    """Derive int64 keys from keys and more integers, with broadcasting. Different inputs give independent keys."""
    for value in values:
        keys = _scramble(_scramble(keys) + value)
    return keys


def uniform_points(keys: Tensor, count: int) -> Tensor:
    """Draw points uniformly.

    Args:
        keys: (N,) int64. Equal keys give equal points.
        count: number of points P.

    Returns:
        (N, P, 2) float32 in [0, 1).
    """
    counter = torch.arange(1, 2 * count + 1, device=keys.device)
    bits = _shift(_scramble(_scramble(keys)[:, None] + counter * _INCREMENT), 64 - _FLOAT_BITS)
    return (bits.float() * 2.0**-_FLOAT_BITS).unflatten(1, (count, 2))


def uncertain_points(logits: Tensor, keys: Tensor, count: int) -> Tensor:
    """Draw points for the losses, most of them where the mask is uncertain.

    Args:
        logits: (N, h, w) mask logits.
        keys: (N,) int64.
        count: number of points P.

    Returns:
        (N, P, 2): the 0.75 P most uncertain of 3 P uniform points, followed by uniform points.
    """
    candidates = uniform_points(keys, OVERSAMPLING * count)
    uncertainty = -sample_maps(logits[:, None], candidates)[:, 0].abs()
    num_important = int(IMPORTANCE * count)
    chosen = uncertainty.topk(num_important, dim=1).indices
    important = candidates.take_along_dim(chosen[..., None], dim=1)
    return torch.cat([important, uniform_points(derive_keys(keys, 1), count - num_important)], dim=1)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps (N, C, H, W) bilinearly at points (N, P, 2), where (0, 0) and (1, 1) are corners of the image.

    Returns:
        (N, C, P). Maps are 0 outside the image.
    """
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def _scramble(keys: Tensor) -> Tensor:
    """Map int64 numbers one-to-one to numbers that look random (the finalizer of SplitMix64)."""
    keys = keys + _INCREMENT
    for shift, factor in _ROUNDS:
        keys = (keys ^ _shift(keys, shift)) * factor
    return keys ^ _shift(keys, _LAST_SHIFT)


def _shift(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros. torch's shift of negative numbers fills with ones."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)
