"""Label maps as images: in the colours of their classes, and with wrong pixels marked."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Ids", "Pixels", "color_labels", "mark_errors", "right_share", "shrink"]

_UNLABELLED = (225, 225, 225)
_WRONG = (232, 30, 60)
_DIM = 0.55  # brightness of an image below its errors

Pixels = NDArray[np.uint8]
Ids = NDArray[np.uint8]


def color_labels(ids: Ids, colors: Sequence[Sequence[int]]) -> Pixels:
    """Colour (H, W) train ids as (H, W, 3) RGB; ids without a colour become light grey."""
    table = np.full((256, 3), _UNLABELLED, np.uint8)
    table[: len(colors)] = colors
    return table[ids]


def mark_errors(image: Pixels, truth: Ids, predicted: Ids, ignore_label: int) -> Pixels:
    """Draw an image in dim grey with the wrong pixels in red.

    Args:
        image: (h, w, 3) RGB, resized to the labels.
        truth, predicted: (H, W) train ids.
        ignore_label: id of pixels that are neither right nor wrong.

    Returns:
        (H, W, 3) RGB.
    """
    height, width = truth.shape
    grey = Image.fromarray(image).convert("L").resize((width, height), Image.Resampling.BILINEAR)
    picture = np.repeat((np.asarray(grey) * _DIM).astype(np.uint8)[..., None], 3, axis=2)
    picture[(truth != predicted) & (truth != ignore_label)] = _WRONG
    return picture


def right_share(truth: Ids, predicted: Ids, ignore_label: int) -> float:
    """Return the share of correct pixels among the labelled ones, 0-1; NaN without labelled pixels."""
    labelled = truth != ignore_label
    return float((truth == predicted)[labelled].mean()) if labelled.any() else float("nan")


def shrink(pixels: Pixels, width: int, *, smooth: bool) -> Pixels:
    """Shrink an image to a maximum width.

    Args:
        pixels: (H, W, 3) RGB.
        width: of the result; narrower images are returned unchanged.
        smooth: interpolate, as for photographs; False keeps the exact colours.
    """
    height, old = pixels.shape[:2]
    if old <= width:
        return pixels
    size = width, max(1, round(height * width / old))
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, how))
