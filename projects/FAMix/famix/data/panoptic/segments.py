"""Panoptic PNGs: images whose colors encode the ids of segments as red + 256 * green + 65536 * blue.

Shapes: H, W are height and width of a PNG, or of a crop of it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from famix.data.decoding import sixteen_bit_colors, upright
from famix.data.images import MAX_PIXELS, open_label
from famix.data.labels import LabelReader
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few

__all__ = [
    "Segment",
    "SegmentLabelReader",
    "decode_numbers",
    "encode_ids",
    "encode_numbers",
    "read_segments",
    "semantic_labels",
    "visible_segments",
]

Segment = Mapping[str, Any]
"""An entry of Detectron2's `segments_info`: {"id": in the PNG, "category_id": train id, "iscrowd": 0 or 1}.

In dataset dicts, it also has "isthing", which Detectron2's Visualizer needs.
"""

_NUM_IDS = 1 << 24  # three channels of 8 bits
_VOID = 65535  # category of pixels outside all segments


def read_segments(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    void_segments: Sequence[int] = (),
    max_pixels: int = MAX_PIXELS,
    *,
    all_visible: bool = True,
) -> NDArray[np.uint16]:
    """Read a panoptic PNG as the index of the segment of each pixel.

    Args:
        path: the PNG.
        segments: all segments in the PNG except `void_segments`; at most 65,534.
        void_segments: ids of segments without a class, which count as black.
        max_pixels: limit of INPUT.MAX_PIXELS.
        all_visible: refuse segments without a pixel.

    Returns:
        (H, W) index in `segments` plus 1; 0 for pixels outside of them.

    Raises:
        DatasetError: if the file is missing, damaged or not RGB, has an unlisted segment, or lacks a listed one.
    """
    with open_label(path, max_pixels=max_pixels) as image:
        wide = " with 16 bits per channel" if sixteen_bit_colors(image) else ""
        if image.mode != "RGB" or wide:
            raise DatasetError(
                f"Panoptic label {path} must be RGB with 8 bits per channel, got mode {image.mode}{wide}. Use the PNGs of "
                "COCO's panoptic format, or correct 'label_format' in the dataset's definition."
            )
        colors = np.asarray(upright(image))
    red, green, blue = colors.astype(np.uint32).transpose(2, 0, 1)
    ids = red | green << 8 | blue << 16
    numbers_of = np.zeros(_NUM_IDS, dtype=np.uint16)  # the system provides memory only for the used part
    numbers_of[list(void_segments)] = len(segments) + 1
    numbers_of[[segment["id"] for segment in segments]] = np.arange(1, len(segments) + 1)
    numbers = numbers_of[ids]
    unlisted = np.unique(ids[(numbers == 0) & (ids != 0)])
    if len(unlisted):
        raise DatasetError(
            f"Panoptic label {path} has the segment(s) {first_few(unlisted.tolist())}, which its JSON file does not list. "
            "The files do not match: create or unpack both again."
        )
    pixels = np.bincount(numbers.ravel(), minlength=len(segments) + 2)
    absent = [segment["id"] for number, segment in enumerate(segments, 1) if not pixels[number]]
    if absent and all_visible:
        raise DatasetError(
            f"Panoptic label {path} has no pixel of the segment(s) {first_few(absent)}, which its JSON file lists. The "
            "files do not match: create or unpack both again."
        )
    numbers[numbers == len(segments) + 1] = 0
    return numbers


def semantic_labels(numbers: NDArray[np.integer[Any]], segments: Sequence[Segment], void: int) -> NDArray[np.uint16]:
    """Category of each pixel.

    Args:
        numbers: (H, W) as `read_segments` returns them.
        segments: as passed to `read_segments`.
        void: category of pixels without a segment.

    Returns:
        (H, W) category ids.
    """
    return np.array([void, *(segment["category_id"] for segment in segments)], dtype=np.uint16)[numbers]


@dataclass(frozen=True)
class SegmentLabelReader(LabelReader):
    """Reads panoptic PNGs as train ids, for everything that works with classes alone: mining, checks, mIoU.

    Attributes:
        segments_of: returns the segments of a PNG and the ids of its segments without a class; `label_ids` maps their
            categories to train ids.
        all_visible: refuse segments without a pixel.
    """

    segments_of: Callable[[str | os.PathLike[str]], tuple[Sequence[Segment], Sequence[int]]] = field(
        kw_only=True, repr=False
    )
    all_visible: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._table[_VOID] = self.ignore_label

    def _read_ids(self, path: str | os.PathLike[str]) -> np.ndarray:
        segments, void = self.segments_of(path)
        numbers = read_segments(path, segments, void, self.max_pixels, all_visible=self.all_visible)
        return semantic_labels(numbers, segments, _VOID)


def visible_segments(numbers: NDArray[np.integer[Any]], segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """Segments in a crop, with their number there as id.

    Args:
        numbers: (H, W) as `read_segments` returns them.
        segments: as passed to `read_segments`.
    """
    return [{**segments[number - 1], "id": int(number)} for number in np.unique(numbers) if number]


def encode_numbers(numbers: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Numbers (H, W) as an image (H, W, 3), which Pillow resamples in step with the photograph.

    The last channel is 0 to distinguish pixels of the label from padding, which has equal channels.
    """
    image = np.zeros((*numbers.shape, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = numbers & 255, numbers >> 8
    return image


def decode_numbers(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Invert `encode_numbers`; padding with any value but 0 gets the number 0."""
    numbers = image[..., 0] + np.int32(256) * image[..., 1]
    return np.where(image[..., 2] == 0, numbers, 0).astype(np.int32)


def encode_ids(ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Ids of segments (H, W), below 2**24, as the colors (H, W, 3) of a panoptic PNG."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=2).astype(np.uint8)
