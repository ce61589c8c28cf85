"""Sizes of images and of their ground truth: one rule of resizing, then perhaps a crop from the centre.

Sizes are (height, width) in pixels. Images are resized bilinearly on their own device, labels take the nearest pixel;
both count from pixel centres, so that they stay aligned.
"""

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "NATIVE_FRAME",
    "Fit",
    "Frame",
    "Height",
    "Scale",
    "ShortEdge",
    "Size",
    "resize_image",
    "resize_labels",
    "resize_scores",
    "scaled",
    "size_of",
]

Size = tuple[int, int]  # (height, width) in pixels


class ResizeRule(Interface):
    """Says by which factor an image of some size is resized; both sides share it."""

    def factor(self, size: Size) -> float:
        """Factor for an image of a size."""
        ...


@dataclass(frozen=True)
class Scale:
    """The same factor for every image."""

    value: float = 1.0

    def factor(self, size: Size) -> float:
        """See ResizeRule."""
        return self.value


@dataclass(frozen=True)
class ShortEdge:
    """The shorter side gets a length in pixels; the longer one has no limit."""

    length: int

    def factor(self, size: Size) -> float:
        """See ResizeRule."""
        return self.length / min(size)


@dataclass(frozen=True)
class Height:
    """The height gets a length in pixels."""

    length: int

    def factor(self, size: Size) -> float:
        """See ResizeRule."""
        return self.length / size[0]


@dataclass(frozen=True)
class Fit:
    """As large as both limits in pixels allow: that of the longer side and that of the shorter one.

    Which side is the longer does not matter, so portraits are not made smaller than landscapes, as in mmcv.
    """

    long: int
    short: int

    def factor(self, size: Size) -> float:
        """See ResizeRule."""
        return min(self.long / max(size), self.short / min(size))


@dataclass(frozen=True)
class Frame:
    """How an image, or its ground truth, is brought to size.

    Attributes:
        rule: of the resizing.
        crop: size of what is cut from the centre afterwards, padded evenly where there is less; None keeps everything.
    """

    rule: ResizeRule = Scale()
    crop: Size | None = None

    def resized(self, size: Size) -> Size:
        """Size after the resizing, before the crop; a side ends on .5 upwards, and never below 1."""
        return scaled(size, self.rule.factor(size))

    def framed(self, size: Size) -> Size:
        """Size in the end."""
        return self.crop or self.resized(size)

    def view(self, image: Tensor, size: Size, scale: float = 1.0) -> Tensor:
        """Bring an image to size, and scale what the frame shows.

        Without a crop this is a single resampling.

        Args:
            image: (C, H, W).
            size: the image file's, which may differ from (H, W) where something resized the image already.
            scale: of the result, relative to the frame.

        Returns:
            (C, h, w) with (h, w) = `framed(size)` times `scale`; padding is black (0).
        """
        if self.crop is not None:
            image = _crop_image(resize_image(image, self.resized(size)), self.crop)
        return resize_image(image, scaled(self.framed(size), scale))

    def labels(self, labels: np.ndarray, pad_label: int) -> np.ndarray:
        """Bring labels to size.

        Args:
            labels: (H, W) of any integer type; left as they are.
            pad_label: of padding.

        Returns:
            (h, w) with (h, w) = `framed((H, W))`, of the same type.
        """
        labels = resize_labels(labels, self.resized(labels.shape))
        return labels if self.crop is None else _crop_labels(labels, self.crop, pad_label)


NATIVE_FRAME = Frame()
"""Everything, as it is."""


def size_of(image: Tensor) -> Size:
    """(height, width) of a tensor (..., height, width)."""
    height, width = image.shape[-2:]
    return height, width


def scaled(size: Size, factor: float) -> Size:
    """Size times a factor, in whole pixels and never below 1."""
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
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


def _nearest(length: int, new_length: int) -> np.ndarray:
    # Centre (i + 0.5) * length / new_length, rounded down, in whole numbers and thus exact; Pillow's sum of steps can
    # fall short of a centre that lies between two pixels.
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)


def _crop_image(image: Tensor, crop: Size) -> Tensor:
    (height, width), (top, left) = size_of(image), _offsets(size_of(image), crop)
    bottom, right = top + crop[0] - height, left + crop[1] - width
    return F.pad(image, (-left, right, -top, bottom))  # what is negative is cut off


def _crop_labels(labels: np.ndarray, crop: Size, pad_label: int) -> np.ndarray:
    result = np.full(crop, pad_label, dtype=labels.dtype)
    places = [
        (slice(max(start, 0), start + want), slice(max(-start, 0), max(-start, 0) + have))
        for start, want, have in zip(_offsets(labels.shape, crop), crop, labels.shape, strict=True)
    ]
    (from_rows, to_rows), (from_columns, to_columns) = places
    result[to_rows, to_columns] = labels[from_rows, from_columns]
    return result


def _offsets(size: tuple[int, ...], crop: Size) -> tuple[int, int]:
    """Row and column of an image at which a crop starts; negative ones are padding."""
    return round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)
