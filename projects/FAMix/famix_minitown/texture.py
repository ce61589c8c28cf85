"""Random textures and pixel arithmetic in integers, with the same bytes on every processor."""

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Image", "Plane", "add", "blend", "grain", "patches", "scale", "to_gray"]

Image = NDArray[Any]  # not np.uint8, which OpenCV's types do not guarantee
"""(height, width, 3) uint8, RGB."""

Plane = NDArray[Any]
"""(height, width) uint8."""

_TILE = 1024
_SEED = 20240617


@cache
def _grain_tile() -> NDArray[np.int16]:
    """Return noise of single pixels: the sum of four uniform draws, about Gaussian, with standard deviation 64."""
    values = np.random.default_rng(_SEED).integers(0, 111, (4, _TILE, _TILE), dtype=np.int16)
    return (values.sum(0) - 220).astype(np.int16)


@cache
def _patches_tile(size: int) -> NDArray[np.int16]:
    """Return smooth noise in [-128, 127] with features of about `size` pixels."""
    small = np.random.default_rng(_SEED + size).integers(0, 256, (_TILE // size, _TILE // size), dtype=np.uint8)
    wide = cv2.resize(small, (_TILE, _TILE), interpolation=cv2.INTER_LINEAR_EXACT)
    return wide.astype(np.int16) - 128


def grain(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int16]:
    """Return white noise (H, W) with standard deviation 64.

    Args:
        shape: (height, width).
        rng: selects a window of a fixed field.
    """
    return _window(_grain_tile(), shape, rng)


def patches(shape: tuple[int, int], size: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return smooth noise (H, W) in [-128, 127].

    Args:
        shape: (height, width).
        size: of its features in pixels, a power of two.
        rng: selects a window of a fixed field.
    """
    return _window(_patches_tile(size), shape, rng)


def _window(tile: NDArray[np.int16], shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int16]:
    height, width = shape
    if height > _TILE or width > _TILE:
        more = [(0, -(-side // _TILE) * _TILE) for side in shape]
        tile = np.pad(tile, more, mode="symmetric")  # opposite edges do not match
    y = int(rng.integers(tile.shape[0] - height + 1))
    x = int(rng.integers(tile.shape[1] - width + 1))
    return tile[y : y + height, x : x + width]


def blend(image: Image, other: Image | tuple[int, int, int], share: Plane | int) -> Image:
    """Mix two images.

    Args:
        image: (H, W, 3).
        other: the same shape, or one color.
        share: of `image`, in [0, 256]; (H, W) or one number.
    """
    weight = _for_channels(share)
    mixed = image.astype(np.uint16)  # one conversion: numpy is slow with mixed types
    mixed *= weight
    mixed += _times(other, 256 - weight)
    mixed += 128
    mixed >>= 8
    return mixed.astype(np.uint8)


def _for_channels(plane: Plane | int) -> Plane:
    """Repeat a plane for three channels in 16 bits, since numpy is slow at broadcasting a short axis."""
    if isinstance(plane, np.ndarray) and plane.ndim == 2:
        plane = plane.astype(np.uint16)
        return cv2.merge([plane, plane, plane])
    return np.asarray(plane, np.uint16)


def _times(other: Image | tuple[int, int, int], weight: Plane) -> Plane:
    if isinstance(other, np.ndarray) or weight.ndim < 3:
        product = np.array(other, np.uint16)
        return np.multiply(product, weight, out=product if product.ndim == 3 else None)
    plane = np.ascontiguousarray(weight[..., 0])
    return cv2.merge([plane * np.uint16(value) for value in other])


def scale(image: Image, gain: Plane | int | tuple[int, int, int]) -> Image:
    """Multiply by gain / 256; gains up to 257 fit into 16 bits."""
    product = image.astype(np.uint16)
    product *= np.asarray(gain, np.uint16) if isinstance(gain, tuple) else _for_channels(gain)
    product >>= 8
    return product.astype(np.uint8)


def add(image: Image, offset: NDArray[np.int16]) -> Image:
    """Add an offset (H, W) or (H, W, 3) and clip to [0, 255]."""
    full = cv2.merge([offset, offset, offset]) if offset.ndim == 2 else offset
    return cv2.add(image, full, dtype=cv2.CV_8U)


def to_gray(image: Image) -> Plane:
    """Return the luminance (H, W)."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
