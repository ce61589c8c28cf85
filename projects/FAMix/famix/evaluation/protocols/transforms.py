"""Sizes of images and of their ground truth: one rule of resizing, then perhaps a crop from the centre.

Sizes are (height, width) in pixels.
"""

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
from torch import Tensor

from famix.evaluation.protocols.resampling import (
    Size,
    crop_image,
    crop_labels,
    offset_of_released_crop,
    resize_image,
    resize_image_released,
    resize_labels,
    resize_labels_released,
)

__all__ = [
    "NATIVE_FRAME",
    "Fit",
    "Frame",
    "Height",
    "ReleasedFrame",
    "Scale",
    "ShortEdge",
    "TruncatedHeight",
    "floored",
    "scaled",
]


class ResizeRule(Interface):
    """Says to which size an image of some size is resized."""

    def resized(self, size: Size) -> Size:
        """Size of the resized image, in whole pixels and never below 1."""
        ...


@dataclass(frozen=True)
class Scale:
    """The same factor for every image; a side that ends on a fraction is rounded, or rounded down."""

    value: float = 1.0
    floors: bool = False

    def resized(self, size: Size) -> Size:
        """See ResizeRule."""
        return floored(size, self.value) if self.floors else scaled(size, self.value)


@dataclass(frozen=True)
class ShortEdge:
    """The shorter side gets a length in pixels; the longer one has no limit."""

    length: int

    def resized(self, size: Size) -> Size:
        """See ResizeRule."""
        return scaled(size, self.length / min(size))


@dataclass(frozen=True)
class Height:
    """The height gets a length in pixels."""

    length: int

    def resized(self, size: Size) -> Size:
        """See ResizeRule."""
        return scaled(size, self.length / size[0])


@dataclass(frozen=True)
class TruncatedHeight:
    """The height gets a length in pixels; the width is rounded down, as RobustNet's program does."""

    length: int

    def resized(self, size: Size) -> Size:
        """See ResizeRule."""
        height, width = size
        return self.length, max(1, int(width / height * self.length))


@dataclass(frozen=True)
class Fit:
    """As large as both limits in pixels allow: that of the longer side and that of the shorter one.

    Which side is the longer does not matter, so portraits are not made smaller than landscapes, as in mmcv.
    """

    long: int
    short: int

    def resized(self, size: Size) -> Size:
        """See ResizeRule."""
        return scaled(size, min(self.long / max(size), self.short / min(size)))


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
        """Size after the resizing, before the crop."""
        return self.rule.resized(size)

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
            image = crop_image(resize_image(image, self.resized(size)), self.crop)
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
        return labels if self.crop is None else crop_labels(labels, self.crop, pad_label)


@dataclass(frozen=True)
class ReleasedFrame(Frame):
    """A resized and cropped image as the released programs of RobustNet and FAMix make it with Pillow.

    The image shrinks bicubically, in whole pixel values. The crop of an image that is narrower than the crop is not
    centred, see `famix.evaluation.protocols.resampling.offset_of_released_crop`.
    """

    def view(self, image: Tensor, size: Size, scale: float = 1.0) -> Tensor:
        """See Frame."""
        assert self.crop is not None
        resized = self.resized(size)
        shown = crop_image(
            resize_image_released(image, resized), self.crop, offset_of_released_crop(resized, self.crop)
        )
        return resize_image(shown, scaled(self.crop, scale))

    def labels(self, labels: np.ndarray, pad_label: int) -> np.ndarray:
        """See Frame."""
        assert self.crop is not None
        resized = self.resized(labels.shape)
        offset = offset_of_released_crop(resized, self.crop)
        return crop_labels(resize_labels_released(labels, resized), self.crop, pad_label, offset)


NATIVE_FRAME = Frame()
"""Everything, as it is."""


def scaled(size: Size, factor: float) -> Size:
    """Size times a factor, rounded to whole pixels, .5 upwards, and never below 1."""
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def floored(size: Size, factor: float) -> Size:
    """Size times a factor, rounded down to whole pixels, and never below 1."""
    height, width = (max(1, int(side * factor)) for side in size)
    return height, width
