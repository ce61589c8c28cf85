"""COCO's panoptic labels: PNGs whose colours number segments, and a JSON file that tells each segment's category."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from famix.data.decoding import exact_rgb
from famix.data.label_names import read_json
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few, shown
from famix.utils.paths import one_form

__all__ = ["VOID_ID", "decode_categories"]

VOID_ID = 65535
"""Stands for the category of pixels that belong to no segment."""

_NUM_SEGMENTS = 1 << 24  # of three channels of 8 bits

_Segments = dict[int, int]  # number of a segment -> id of its category


def decode_categories(path: Path, image: Image.Image, segments_file: Path) -> NDArray[np.uint16]:
    """Category of every pixel.

    Args:
        path: of the PNG; its name is looked up in the JSON file.
        image: the PNG, opened.
        segments_file: the JSON file, with a list `annotations` of {file_name, segments_info: [{id, category_id}]}.

    Returns:
        (H, W) ids of categories, VOID_ID where the PNG is black.

    Raises:
        DatasetError: the PNG is no RGB image, or it or one of its segments is not in the JSON file.
    """
    colors = exact_rgb(
        image, f"Label {path}", "Correct 'label_format' in the dataset's definition, or the path of the labels."
    )
    segments = _segments_of(path, segments_file)
    numbers = colors.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], dtype=np.uint32)
    known = np.array(sorted({0, *segments}), dtype=np.uint32)
    places = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    absent = np.unique(numbers[known[places] != numbers]).tolist()
    if absent:
        raise DatasetError(
            f"Label {path} has segments that {segments_file} does not list: {first_few(absent)}. The two do not belong "
            "together, or the PNG was changed."
        )
    categories = np.array([segments.get(number, VOID_ID) for number in known.tolist()], dtype=np.uint16)
    return categories[places]


def _segments_of(path: Path, segments_file: Path) -> _Segments:
    found = _read_segments(segments_file, segments_file.stat().st_mtime_ns if os.path.isfile(segments_file) else 0)
    if one_form(path.name) not in found:
        raise DatasetError(f"{segments_file} has no annotation of {path.name}. Leave the image out, or mend the file.")
    return found[one_form(path.name)]


@lru_cache(maxsize=1)
def _read_segments(file: Path, modified: int) -> dict[str, _Segments]:
    content = read_json(file)
    try:
        return {
            one_form(str(entry["file_name"]).rsplit("/", 1)[-1]): {
                _checked(segment["id"], _NUM_SEGMENTS): _checked(segment["category_id"], VOID_ID)
                for segment in entry["segments_info"]
            }
            for entry in content["annotations"]
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{file} lists no panoptic segments ({type(error).__name__}: {error}): expected 'annotations' with 'file_name' "
            "and 'segments_info'."
        ) from error


def _checked(value: Any, limit: int) -> int:
    number = int(value)
    if not 0 <= number < limit:
        raise ValueError(f"the id {shown(number)}, expected one below {limit}")
    return number
