"""Panoptic PNGs: images whose colour is the number of a segment, red + 256 * green + 65536 * blue."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from famix.data.decoding import exact_rgb
from famix.data.images import MAX_PIXELS, open_label
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few

__all__ = ["Segment", "decode_numbers", "encode_ids", "encode_numbers", "read_segments", "visible_segments"]

Segment = Mapping[str, Any]
"""An entry of Detectron2's `segments_info`: {"id": in the PNG, "category_id": train id, "iscrowd": 0 or 1}.

Those of dataset dicts also have "isthing", which Detectron2's Visualizer needs.
"""

_NUM_IDS = 1 << 24  # of three channels of 8 bits


def read_segments(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    void_segments: Sequence[int] = (),
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint16]:
    """Read a panoptic PNG and find out which of its segments every pixel belongs to.

    Args:
        path: the PNG.
        segments: all that the PNG shows, but for `void_segments`; fewer than 65535.
        void_segments: ids of segments that stand for nothing, as if their pixels were black.
        max_pixels: of the PNG, see INPUT.MAX_PIXELS.

    Returns:
        (H, W) place in `segments` plus 1; 0 where a pixel belongs to none.

    Raises:
        DatasetError: the file is missing, damaged or no RGB image, has a segment that is not listed, or lacks one that
            is.
    """
    ids = _read_ids(path, max_pixels)
    numbers_of = np.zeros(_NUM_IDS, dtype=np.uint16)  # the system gives memory only to the part that is used
    numbers_of[list(void_segments)] = len(segments) + 1
    numbers_of[[segment["id"] for segment in segments]] = np.arange(1, len(segments) + 1)
    numbers = numbers_of[ids]
    unlisted = np.unique(ids[(numbers == 0) & (ids != 0)])
    if len(unlisted):
        raise DatasetError(
            f"Panoptic label {path} shows the segment(s) {first_few(unlisted.tolist())}, which its JSON file does not "
            "list. The two do not belong together: make or unpack both anew."
        )
    pixels = np.bincount(numbers.ravel(), minlength=len(segments) + 2)
    absent = [segment["id"] for number, segment in enumerate(segments, 1) if not pixels[number]]
    if absent:
        raise DatasetError(
            f"Panoptic label {path} does not show the segment(s) {first_few(absent)}, which its JSON file lists. The two "
            "do not belong together: make or unpack both anew."
        )
    numbers[numbers == len(segments) + 1] = 0
    return numbers


def visible_segments(numbers: NDArray[np.integer[Any]], segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """The segments that a part of a label shows, with their numbers there as ids.

    Args:
        numbers: as `read_segments` returns them.
        segments: as `read_segments` got them.
    """
    return [{**segments[number - 1], "id": int(number)} for number in np.unique(numbers) if number]


def encode_numbers(numbers: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Numbers (H, W) as an image (H, W, 3), which Pillow can resample in step with the photograph.

    The last channel is 0; it tells pixels of the label from those that padding adds, whose channels are all alike.
    """
    image = np.zeros((*numbers.shape, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = numbers & 255, numbers >> 8
    return image


def decode_numbers(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Undo `encode_numbers`; pixels that were padded with any value but 0 get the number 0."""
    numbers = image[..., 0] + np.int32(256) * image[..., 1]
    return np.where(image[..., 2] == 0, numbers, 0).astype(np.int32)


def encode_ids(ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Ids of segments (H, W), below 2**24, as the colours (H, W, 3) of a panoptic PNG."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=2).astype(np.uint8)


def _read_ids(path: str | os.PathLike[str], max_pixels: int) -> NDArray[np.uint32]:
    with open_label(path, max_pixels=max_pixels) as image:
        colors = exact_rgb(image, f"Panoptic label {path}", "Use the PNGs of COCO's panoptic format.")
    red, green, blue = colors.astype(np.uint32).transpose(2, 0, 1)
    return red | green << 8 | blue << 16
