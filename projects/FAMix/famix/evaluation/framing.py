"""Sizes of images and of their ground truth: one rule of resizing, then perhaps a crop from the centre.

Sizes are (height, width) in pixels.
"""

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
from torch import Tensor

from famix.evaluation.resampling import Size, crop_image, crop_labels, resize_image, resize_labels

__all__ = ["NATIVE_FRAME", "Fit", "Frame", "Height", "Scale", "ShortEdge", "scaled"]


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


NATIVE_FRAME = Frame()
"""Everything, as it is."""


def scaled(size: Size, factor: float) -> Size:
    """Size times a factor, in whole pixels and never below 1."""
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width
