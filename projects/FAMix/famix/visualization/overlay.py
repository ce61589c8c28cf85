"""Draw labels, segments and errors in color. All images are (H, W, 3) uint8 RGB arrays."""

from collections.abc import Collection, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from famix.visualization.figure import Pixels

Ids = NDArray[np.uint8]  # (H, W) train ids

_UNLABELED = (225, 225, 225)
_WRONG, _DIM = (232, 30, 60), 0.55  # color of errors, and brightness of the image below
_UNSURE = (255, 176, 0)
_OUTLINE = (255, 255, 255)
_BRIGHTNESS, _STRONGEST = 0.35, 0.4  # median brightness below overlays, from 0 to 1, and smallest gamma
_GAP = 4  # pixels between two images
_SHADES = (0.0, 0.35, -0.25, 0.55, -0.4, 0.2)  # for the things of a class: toward white, or black if negative


def color_labels(ids: Ids, colors: Sequence[Sequence[int]]) -> Pixels:
    """Draw (H, W) train ids in their colors. Ids without a color become light gray."""
    table = np.full((256, 3), _UNLABELED, np.uint8)
    table[: len(colors)] = colors
    return table[ids]


def mark_errors(image: Pixels, truth: Ids, predicted: Ids, ignore_label: int) -> Pixels:
    """Draw an image in dim gray at the size of the labels, with wrong pixels in red."""
    drawn = _dim_gray(image, truth.shape)
    drawn[(truth != predicted) & (truth != ignore_label)] = _WRONG
    return drawn


def mark_unsure(image: Pixels, confidence: NDArray[np.float32]) -> Pixels:
    """Draw an image in dim gray at the size of the confidences, with pixels in amber the less confident they are."""
    dim, doubt = _dim_gray(image, confidence.shape).astype(float), (1 - confidence)[..., None]
    return np.asarray(dim + doubt * (np.array(_UNSURE) - dim)).round().astype(np.uint8)


def _dim_gray(image: Pixels, size: tuple[int, ...]) -> Pixels:
    height, width = size
    gray = Image.fromarray(image).convert("L").resize((width, height), Image.Resampling.BILINEAR)
    return np.repeat((np.asarray(gray) * _DIM).astype(np.uint8)[..., None], 3, axis=2)


def correct_share(truth: Ids, predicted: Ids, ignore_label: int) -> float:
    """Return the share of correct pixels among labeled ones, from 0 to 1, or NaN without labeled pixels."""
    labeled = truth != ignore_label
    return float((truth == predicted)[labeled].mean()) if labeled.any() else float("nan")


def downsample(pixels: Pixels, width: int, *, smooth: bool) -> Pixels:
    """Downsample an image to a maximum width. Without `smooth`, its exact colors are kept."""
    height, old = pixels.shape[:2]
    if old <= width:
        return pixels
    resampling = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, max(1, round(height * width / old))), resampling))


def color_segments(
    ids: NDArray[np.integer[Any]], class_ids: Sequence[int], things: Collection[int], colors: Sequence[Sequence[int]]
) -> Pixels:
    """Draw stuff in the color of its class, and each thing in a shade of its class color.

    Args:
        ids: (H, W) segment number of each pixel, from 1. Unlabeled pixels are 0 and become black.
        class_ids: train ids of segments 1, 2, ...
        things: train ids of the thing classes.
        colors: (K, 3) RGB colors of the classes.
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
    """Draw segments (see `color_segments`) over an image, as `overlay_colors` does, and outline each thing in white.

    Unlabeled pixels show the image. `alpha` is the weight of the colors, from 0 to 1.
    """
    classes = np.array([-1, *class_ids])[ids]
    mixed = overlay_colors(image, color_segments(ids, class_ids, things, colors), classes, alpha)
    mixed[ids == 0] = image[ids == 0]
    is_thing = np.array([False, *(class_id in things for class_id in class_ids)])
    outlined = np.where(is_thing[ids], ids, 0)
    if alpha > 0:
        mixed[_borders(outlined) & (outlined != 0)] = _OUTLINE
    return mixed


def overlay_colors(image: Pixels, colors: Pixels, classes: NDArray[np.integer[Any]], alpha: float) -> Pixels:
    """Draw class colors over an image of the same size so that both are visible at night, too.

    The borders of the classes have full opacity, and dark images are brightened.

    Args:
        image: RGB image (H, W, 3), uint8.
        colors: color of each pixel.
        classes: (H, W) class of each pixel.
        alpha: opacity of the colors, from 0 (the unchanged image) to 1.
    """
    mixed = np.asarray(cv2.addWeighted(_brighten(image, alpha), 1 - alpha, colors, alpha, 0), np.uint8)
    if alpha > 0:
        border = _borders(classes)
        mixed[border] = colors[border]
    return mixed


def _brighten(image: Pixels, alpha: float) -> Pixels:
    """Apply a gamma curve that raises the median brightness of a dark image; weaker for an alpha below 0.5."""
    median = max(float(np.median(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))) / 255, 1 / 255)
    if median >= _BRIGHTNESS:
        return image
    gamma = max(np.log(_BRIGHTNESS) / np.log(median), _STRONGEST)
    curve = np.linspace(0, 1, 256) ** (1 + (gamma - 1) * min(1.0, 2 * alpha))
    return np.asarray(cv2.LUT(image, np.rint(255 * curve).astype(np.uint8)))


def _borders(ids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Return a mask of the pixels that have a direct neighbor with a different id."""
    changes_x, changes_y = np.diff(ids, axis=1) != 0, np.diff(ids, axis=0) != 0
    border = np.zeros(ids.shape, dtype=bool)
    border[:, 1:] |= changes_x
    border[:, :-1] |= changes_x
    border[1:] |= changes_y
    border[:-1] |= changes_y
    return border


def side_by_side(left: Pixels, right: Pixels, gap: int = _GAP) -> Pixels:
    """Join two images of the same height with a white gap of `gap` pixels."""
    return np.concatenate([left, np.full((left.shape[0], gap, 3), 255, np.uint8), right], axis=1)
