"""Pixels of images, scores and labels, resized and cropped.

Sizes are (height, width) in pixels. All resizing counts from pixel centres, so that images and labels stay aligned;
images and scores keep their device.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Size", "crop_image", "crop_labels", "resize_image", "resize_labels", "resize_scores", "size_of"]

Size = tuple[int, int]  # (height, width) in pixels


def size_of(image: Tensor) -> Size:
    """(height, width) of a tensor (..., height, width)."""
    height, width = image.shape[-2:]
    return height, width


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Resize an image as Pillow, and so Detectron2, does: bilinear, with antialiasing where it gets smaller.

    Args:
        image: (C, H, W); one that has the size already is returned as it is.
        size: of the result.

    Returns:
        (C, h, w) float32, not rounded to whole pixel values.
    """
    if size_of(image) == size:
        return image
    return F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)[0]


def resize_scores(scores: Tensor, size: Size) -> Tensor:
    """Resize (K, H, W) scores as Detectron2 does with logits: bilinear, without antialiasing."""
    if size_of(scores) == size:
        return scores
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resize (H, W) labels to a size: every pixel takes the label in which its centre lies."""
    if labels.shape == size:
        return labels
    rows, columns = (_nearest(*lengths) for lengths in zip(labels.shape, size, strict=True))
    return labels[np.ix_(rows, columns)]


def crop_image(image: Tensor, crop: Size) -> Tensor:
    """Cut (C, H, W) to a size from the centre; where there is less, both sides are padded with black (0)."""
    (height, width), (top, left) = size_of(image), _offsets(size_of(image), crop)
    bottom, right = top + crop[0] - height, left + crop[1] - width
    return F.pad(image, (-left, right, -top, bottom))  # what is negative is cut off


def crop_labels(labels: np.ndarray, crop: Size, pad_label: int) -> np.ndarray:
    """Cut (H, W) labels as `crop_image` does, padded with `pad_label`."""
    result = np.full(crop, pad_label, dtype=labels.dtype)
    places = [
        (slice(max(start, 0), start + want), slice(max(-start, 0), max(-start, 0) + have))
        for start, want, have in zip(_offsets(labels.shape, crop), crop, labels.shape, strict=True)
    ]
    (from_rows, to_rows), (from_columns, to_columns) = places
    result[to_rows, to_columns] = labels[from_rows, from_columns]
    return result


def _nearest(length: int, new_length: int) -> np.ndarray:
    # Centre (i + 0.5) * length / new_length, rounded down, in whole numbers and thus exact; Pillow's sum of steps can
    # fall short of a centre that lies between two pixels.
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)


def _offsets(size: tuple[int, ...], crop: Size) -> tuple[int, int]:
    """Row and column of an image at which a crop starts; negative ones are padding."""
    return round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)
