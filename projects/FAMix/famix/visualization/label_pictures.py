"""Labels as pictures: in the colours of their classes, and where they are wrong."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Ids", "Pixels", "color_labels", "mark_errors", "right_share", "shrink"]

_UNLABELLED = (225, 225, 225)
_WRONG = (232, 30, 60)
_DIM = 0.55  # of an image below its errors

Pixels = NDArray[np.uint8]
Ids = NDArray[np.uint8]


def color_labels(ids: Ids, colors: Sequence[Sequence[int]]) -> Pixels:
    """(H, W) train ids as (H, W, 3) RGB; ids without a colour are light grey."""
    table = np.full((256, 3), _UNLABELLED, np.uint8)
    table[: len(colors)] = colors
    return table[ids]


def mark_errors(image: Pixels, truth: Ids, predicted: Ids, ignore_label: int) -> Pixels:
    """An image in dim grey with the wrong pixels in red.

    Args:
        image: (h, w, 3) RGB, of any size; it is brought to that of the labels.
        truth, predicted: (H, W) train ids.
        ignore_label: of pixels that are neither right nor wrong.

    Returns:
        (H, W, 3) RGB.
    """
    height, width = truth.shape
    grey = Image.fromarray(image).convert("L").resize((width, height), Image.Resampling.BILINEAR)
    picture = np.repeat((np.asarray(grey) * _DIM).astype(np.uint8)[..., None], 3, axis=2)
    picture[(truth != predicted) & (truth != ignore_label)] = _WRONG
    return picture


def right_share(truth: Ids, predicted: Ids, ignore_label: int) -> float:
    """Share of the labelled pixels that are right, 0-1; NaN where none is labelled."""
    labelled = truth != ignore_label
    return float((truth == predicted)[labelled].mean()) if labelled.any() else float("nan")


def shrink(pixels: Pixels, width: int, *, smooth: bool) -> Pixels:
    """Bring a picture to at most so many pixels of width.

    Args:
        pixels: (H, W, 3) RGB.
        width: of the result, unless the picture is narrower.
        smooth: mix neighbouring pixels, as for photographs; otherwise colours stay what they are.
    """
    height, old = pixels.shape[:2]
    if old <= width:
        return pixels
    size = width, max(1, round(height * width / old))
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, how))
