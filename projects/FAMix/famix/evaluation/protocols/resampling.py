"""Pixels of images, scores and labels, resized and cropped.

Sizes are (height, width) in pixels. All resizing counts from pixel centres, so that images and labels stay aligned,
except where a function follows a released program; images and scores keep their device.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = [
    "Size",
    "crop_image",
    "crop_labels",
    "offset_of_released_crop",
    "resize_image",
    "resize_image_released",
    "resize_labels",
    "resize_labels_released",
    "resize_normalized_released",
    "resize_scores",
    "size_of",
]

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


def resize_image_released(image: Tensor, size: Size) -> Tensor:
    """Resize an image as the released programs of RobustNet and FAMix do: Pillow's bicubic, in whole pixel values.

    Args:
        image: (C, H, W); values are rounded to 0-255 first.
        size: of the result.

    Returns:
        (C, h, w) uint8.
    """
    channels = image.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    resized = [Image.fromarray(channel).resize(size[::-1], Image.Resampling.BICUBIC) for channel in channels]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in resized])).to(image.device)


def resize_normalized_released(image: Tensor, size: Size) -> Tensor:
    """Resize a normalised image (C, H, W) as FAMix's program does: bilinear, corners aligned, without antialiasing."""
    return F.interpolate(image[None], size, mode="bilinear", align_corners=True)[0]


def resize_scores(scores: Tensor, size: Size, align_corners: bool = False) -> Tensor:
    """Resize (K, H, W) scores bilinearly, without antialiasing, as Detectron2 does with logits.

    Args:
        scores: of any floating type.
        size: of the result.
        align_corners: count from the centres of the corner pixels instead, as the released program does.
    """
    if size_of(scores) == size:
        return scores
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=align_corners)[0]


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resize (H, W) labels to a size: every pixel takes the label in which its centre lies."""
    if labels.shape == size:
        return labels
    rows, columns = (_nearest(*lengths) for lengths in zip(labels.shape, size, strict=True))
    return labels[np.ix_(rows, columns)]


def resize_labels_released(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resize (H, W) labels to a size by Pillow itself, to the nearest pixel; the result keeps the type."""
    picture = Image.fromarray(labels if labels.dtype == np.uint8 else labels.astype(np.int32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.NEAREST)).astype(labels.dtype)


def crop_image(image: Tensor, crop: Size, offset: Size | None = None) -> Tensor:
    """Cut (C, H, W) to a size; where there is less, it is padded with black (0).

    Args:
        image: of any type.
        crop: size of the result.
        offset: row and column of the image at which the crop starts, negative in padding; None centres the crop.
    """
    rows, columns = _overlaps(size_of(image), crop, offset)
    result = image.new_zeros((len(image), *crop))
    result[:, rows[1], columns[1]] = image[:, rows[0], columns[0]]
    return result


def crop_labels(labels: np.ndarray, crop: Size, pad_label: int, offset: Size | None = None) -> np.ndarray:
    """Cut (H, W) labels as `crop_image` does, padded with `pad_label`."""
    rows, columns = _overlaps(labels.shape, crop, offset)
    result = np.full(crop, pad_label, dtype=labels.dtype)
    result[rows[1], columns[1]] = labels[rows[0], columns[0]]
    return result


def offset_of_released_crop(size: Size, crop: Size) -> Size:
    """Where the "centre crop" of the released programs of RobustNet and FAMix starts.

    An image that is smaller than the crop is padded by the whole difference on both sides, and the crop is then placed
    as if the image had not been padded: a portrait lies to the right, and a part of its right side is cut off.

    Args:
        size: of the image.
        crop: size of the crop.

    Returns:
        Row and column of the image at which the crop starts; negative ones are padding.
    """
    row, column = (
        start - max(want - have, 0) for start, have, want in zip(_centred(size, crop), size, crop, strict=True)
    )
    return row, column


def _nearest(length: int, new_length: int) -> np.ndarray:
    # Centre (i + 0.5) * length / new_length, rounded down, in whole numbers and thus exact; Pillow's sum of steps can
    # fall short of a centre that lies between two pixels.
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)


def _centred(size: tuple[int, ...], crop: Size) -> Size:
    """Row and column of an image at which a crop from the centre starts; negative ones are padding."""
    return round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)


def _overlaps(size: tuple[int, ...], crop: Size, offset: Size | None) -> list[tuple[slice, slice]]:
    """For rows and columns: the part of an image that a crop shows, and where it lies in the crop."""
    parts = []
    for have, want, start in zip(size, crop, offset or _centred(size, crop), strict=True):
        first, stop = max(start, 0), max(min(start + want, have), start, 0)
        parts.append((slice(first, stop), slice(first - start, stop - start)))
    return parts
