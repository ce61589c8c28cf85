"""Predictions as pictures. All images are (H, W, 3) uint8, RGB."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.inference.images import RGBImage
from famix.inference.segments import Segment

__all__ = ["blend", "colorize", "draw_outlines", "shade_segments", "side_by_side"]

_OUTLINE = (255, 255, 255)
_GAP = 4  # pixels between two pictures
_PAPER = 255
_SHADES = (0.0, 0.35, -0.25, 0.55, -0.4, 0.2)  # of the objects of a class: towards white, or where negative to black


def colorize(labels: NDArray[np.integer[Any]], colors: NDArray[np.uint8]) -> RGBImage:
    """Give every pixel the colour of its class.

    Args:
        labels: (H, W) train ids below K.
        colors: (K, 3).
    """
    return np.take(colors, labels, axis=0)


def shade_segments(ids: NDArray[np.int32], segments: Sequence[Segment], colors: NDArray[np.uint8]) -> RGBImage:
    """Give every segment the colour of its class, and the objects of a class different shades of it.

    Args:
        ids: (H, W) `id` of segments, 0 (black) where there is none.
        segments: with the ids 1, 2, ... in this order.
        colors: (K, 3) of the classes.
    """
    shaded = np.zeros((len(segments) + 1, 3), np.uint8)
    seen: dict[int, int] = {}
    for segment in segments:
        number = seen.setdefault(segment.class_id, 0)
        seen[segment.class_id] += segment.is_thing
        shaded[segment.id] = _shade(colors[segment.class_id], _SHADES[number % len(_SHADES)])
    return np.take(shaded, ids, axis=0)


def blend(image: RGBImage, colors: RGBImage, alpha: float) -> RGBImage:
    """Mix two images of one size; alpha is the weight of the second one."""
    return np.asarray(cv2.addWeighted(image, 1 - alpha, colors, alpha, 0), np.uint8)


def draw_outlines(image: RGBImage, ids: NDArray[np.integer[Any]]) -> None:
    """Draw a line around every region of an id but 0, in place.

    Args:
        image: changed.
        ids: (H, W).
    """
    border = np.zeros(ids.shape, dtype=bool)
    for axis in (0, 1):
        changes = np.diff(ids, axis=axis) != 0
        first, second = (slice(None, -1), slice(1, None))
        for part in (first, second):
            place = (part, slice(None)) if axis == 0 else (slice(None), part)
            border[place] |= changes
    image[border & (ids != 0)] = _OUTLINE


def side_by_side(left: RGBImage, right: RGBImage) -> RGBImage:
    """Two pictures of one height next to each other."""
    gap = np.full((left.shape[0], _GAP, 3), _PAPER, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _shade(color: NDArray[np.uint8], amount: float) -> NDArray[np.uint8]:
    target = 255.0 if amount > 0 else 0.0
    return np.rint(color + abs(amount) * (target - color)).astype(np.uint8)
