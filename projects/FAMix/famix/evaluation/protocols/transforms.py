"""Resizing, cropping and sliding windows for images, ground truth and scores.

Sizes are (height, width) in pixels. Resizing uses half-pixel centers, so images and labels stay aligned, except in the
transforms that match a reference implementation. Images and scores stay on their device.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def size_of(image: Tensor) -> Size:
    """Return the (height, width) of a (..., height, width) tensor."""
    height, width = image.shape[-2:]
    return height, width


def scaled_size(size: Size, factor: float, floor: bool = False) -> Size:
    """Multiply a size by a factor. Sides are rounded half up, or down with `floor`, to at least 1 pixel."""
    height, width = (max(1, int(side * factor + (0 if floor else 0.5))) for side in size)
    return height, width


@dataclass(frozen=True)
class ResizeCrop:
    """Transform that resizes an image and its ground truth by the same factor, then crops the center.

    The factor is `scale`, or the largest factor that exceeds none of the given limits. Subclasses may override
    `resized_size`. Protocols compare transforms with `==`.
    """

    scale: float = 1.0  # factor without limits
    height: int | None = None  # limit on the height in pixels
    short: int | None = None  # limit on the shorter side
    long: int | None = None  # limit on the longer side
    floor: bool = False  # whether to round sizes down instead of to the nearest pixel
    crop: Size | None = None  # size of the center crop, which pads smaller images evenly; None disables it

    def resized_size(self, size: Size) -> Size:
        """Return the size after resizing and before the crop."""
        limits = ((self.height, size[0]), (self.short, min(size)), (self.long, max(size)))
        factors = [limit / side for limit, side in limits if limit is not None]
        return scaled_size(size, min(factors, default=self.scale), self.floor)

    def output_size(self, size: Size) -> Size:
        """Return the size after the crop."""
        return self.crop or self.resized_size(size)

    def apply_image(self, image: Tensor, size: Size, scale: float = 1.0) -> Tensor:
        """Transform a (C, H, W) image, then scale the result relative to `output_size(size)`.

        Args:
            image: the image, which may already have been resized.
            size: size of the image file.
            scale: factor for the result. Without a crop, the image is resampled only once.

        Returns:
            The (C, h, w) image, float32 if resized. Padding is black (0).
        """
        if self.crop is not None:
            image = crop_image(resize_image(image, self.resized_size(size)), self.crop)
        return resize_image(image, scaled_size(self.output_size(size), scale))

    def apply_labels(self, labels: np.ndarray, pad_label: int) -> np.ndarray:
        """Transform (H, W) labels of any integer type, without modifying them. Padding gets `pad_label`."""
        labels = resize_labels(labels, self.resized_size(labels.shape))
        return labels if self.crop is None else crop_labels(labels, self.crop, pad_label)


UNCHANGED = ResizeCrop()
"""Transform that the part "native" sets."""


@dataclass(frozen=True, kw_only=True)
class ReleasedResizeCrop(ResizeCrop):
    """Transform that resizes to `height` and crops exactly as the reference implementations of RobustNet and FAMix do.

    The width is truncated, and Pillow resizes the image bicubically in 8 bits. A smaller image is padded by the whole
    difference on both sides, but the crop offset ignores this padding, so a portrait image moves to the right and loses
    its right part.
    """

    height: int
    crop: Size

    def resized_size(self, size: Size) -> Size:
        """Return the size after resizing and before the crop."""
        height, width = size
        return self.height, max(1, int(width / height * self.height))

    def apply_image(self, image: Tensor, size: Size, scale: float = 1.0) -> Tensor:
        """Transform an image. The crop is uint8."""
        resized = self.resized_size(size)
        channels = image.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        bicubic = [Image.fromarray(channel).resize(resized[::-1], Image.Resampling.BICUBIC) for channel in channels]
        pixels = torch.from_numpy(np.stack([np.asarray(channel) for channel in bicubic])).to(image.device)
        return resize_image(crop_image(pixels, self.crop, self.crop_offset(resized)), scaled_size(self.crop, scale))

    def apply_labels(self, labels: np.ndarray, pad_label: int) -> np.ndarray:
        """Transform labels."""
        resized = self.resized_size(labels.shape)
        image = Image.fromarray(labels if labels.dtype == np.uint8 else labels.astype(np.int32))
        nearest = np.asarray(image.resize(resized[::-1], Image.Resampling.NEAREST)).astype(labels.dtype)
        return crop_labels(nearest, self.crop, pad_label, self.crop_offset(resized))

    def crop_offset(self, size: Size) -> Size:
        """Return the row and column of a resized image at which the crop starts, negative if it starts in padding."""
        starts = _centered(size, self.crop)
        row, column = (start - max(want - have, 0) for start, have, want in zip(starts, size, self.crop, strict=True))
        return row, column


@dataclass(frozen=True)
class SlidingWindow:
    """Square window that slides over an image.

    The last window of a row or column is shifted inward to stay within the image. A window that is longer than
    a side of the image is clipped to that side.
    """

    size: int  # side length of the window in pixels
    stride: int  # distance between windows in pixels, 1 to `size`

    def spans(self, length: int) -> list[slice]:
        """Return the span of every window along a side of `length` pixels, in order."""
        last = max(length - self.size, 0)
        starts = [*range(0, last, self.stride), last]
        return [slice(start, start + min(self.size, length)) for start in starts]

    def count(self, size: Size) -> int:
        """Count the windows on an image."""
        return len(self.spans(size[0])) * len(self.spans(size[1]))


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Resize a (C, H, W) image like Pillow and Detectron2: bilinearly, with antialiasing when downsampling.

    Returns:
        The (C, h, w) float32 image, not rounded, or the input itself if it already has this size.
    """
    if size_of(image) == size:
        return image
    return F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)[0]


def resize_bilinear(scores: Tensor, size: Size, align_corners: bool = False) -> Tensor:
    """Resize (K, H, W) scores, or a normalized image, bilinearly and without antialiasing.

    Detectron2 resizes logits without `align_corners`, whereas FAMix's reference implementation uses it.
    """
    if size_of(scores) == size:
        return scores
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=align_corners)[0]


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resize (H, W) labels. Every pixel gets the label at its center."""
    if labels.shape == size:
        return labels
    # (i + 0.5) * old / new, rounded down in exact integer arithmetic. Pillow adds up steps, which can fall short of a
    # center that lies between two pixels.
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape, size, strict=True))
    return labels[np.ix_(rows, columns)]


def crop_image(image: Tensor, crop: Size, offset: Size | None = None) -> Tensor:
    """Crop a (C, H, W) image of any type, padding it with black (0).

    `offset` is the row and column of the image at which the crop starts, negative if it starts in padding.
    None centers the crop.
    """
    (rows, columns), visible = _placement(size_of(image), crop, offset)
    return F.pad(image, (*columns, *rows))[:, *visible]


def crop_labels(labels: np.ndarray, crop: Size, pad_label: int, offset: Size | None = None) -> np.ndarray:
    """Crop (H, W) labels like `crop_image`, padding them with `pad_label`."""
    padding, visible = _placement(labels.shape, crop, offset)
    return np.pad(labels, padding, constant_values=pad_label)[visible]


def _centered(size: tuple[int, ...], crop: Size) -> Size:
    return round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)


def _placement(
    size: tuple[int, ...], crop: Size, offset: Size | None
) -> tuple[list[tuple[int, int]], tuple[slice, ...]]:
    """Return the padding before and after rows and columns, and the crop of the padded image."""
    axes = list(zip(size, crop, offset or _centered(size, crop), strict=True))
    padding = [(max(-start, 0), max(start + want - have, 0)) for have, want, start in axes]
    return padding, tuple(slice(max(start, 0), max(start, 0) + want) for _, want, start in axes)
