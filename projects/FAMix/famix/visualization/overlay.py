"""Labels and segments in the colours of their classes. All images are (H, W, 3) uint8, RGB."""

from collections.abc import Collection, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.visualization.figure import Pixels

__all__ = ["blend", "color_segments", "overlay_segments", "side_by_side"]

_OUTLINE = (255, 255, 255)
_GAP = 4  # pixels between two images
_SHADES = (0.0, 0.35, -0.25, 0.55, -0.4, 0.2)  # of the things of a class: towards white, or towards black if negative


def color_segments(
    ids: NDArray[np.integer[Any]], class_ids: Sequence[int], things: Collection[int], colors: Sequence[Sequence[int]]
) -> Pixels:
    """Give stuff the colour of its class, and each thing a shade of it.

    Args:
        ids: (H, W) segment of each pixel, from 1; 0, unlabelled, becomes black.
        class_ids: train ids of the segments 1, 2, ...
        things: train ids of the thing classes.
        colors: (K, 3) RGB colours of the classes.
    """
    table, seen = np.zeros((len(class_ids) + 1, 3), np.uint8), dict.fromkeys(things, 0)
    for number, class_id in enumerate(class_ids, 1):
        color = np.asarray(colors[class_id], float)
        if class_id in seen:
            shade = _SHADES[seen[class_id] % len(_SHADES)]
            color += abs(shade) * ((255.0 if shade > 0 else 0.0) - color)
            seen[class_id] += 1
        table[number] = np.rint(color)
    return np.take(table, ids, axis=0)


def overlay_segments(
    image: Pixels,
    ids: NDArray[np.integer[Any]],
    class_ids: Sequence[int],
    things: Collection[int],
    colors: Sequence[Sequence[int]],
    alpha: float = 0.5,
) -> Pixels:
    """Lay segments over an image, with a white outline around each thing; unlabelled pixels show the image.

    Args:
        image: (H, W, 3) uint8, RGB.
        ids, class_ids, things, colors: see `color_segments`.
        alpha: weight of the colours, 0 to 1.
    """
    mixed = blend(image, color_segments(ids, class_ids, things, colors), alpha)
    mixed[ids == 0] = image[ids == 0]
    is_thing = np.array([False, *(class_id in things for class_id in class_ids)])
    outlined = np.where(is_thing[ids], ids, 0)
    changes_x, changes_y = np.diff(outlined, axis=1) != 0, np.diff(outlined, axis=0) != 0
    border = np.zeros(ids.shape, dtype=bool)
    border[:, 1:] |= changes_x
    border[:, :-1] |= changes_x
    border[1:] |= changes_y
    border[:-1] |= changes_y
    mixed[border & (outlined != 0)] = _OUTLINE
    return mixed


def blend(image: Pixels, colors: Pixels, alpha: float) -> Pixels:
    """Mix two images of one size; `alpha` is the weight of the second one."""
    return np.asarray(cv2.addWeighted(image, 1 - alpha, colors, alpha, 0), np.uint8)


def side_by_side(left: Pixels, right: Pixels) -> Pixels:
    """Put two images of one height next to each other."""
    gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)
