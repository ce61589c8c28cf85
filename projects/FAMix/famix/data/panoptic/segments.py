"""Panoptic labels in COCO's format: a JSON file of segments, and PNGs whose colors encode segment ids.

The id for a color is red + 256 * green + 65536 * blue.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from famix.data.images import MAX_PIXELS, has_wide_colors, open_label, upright
from famix.data.labels import LabelReader
from famix.io import MAX_JSON_BYTES, parse_json, read_text
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few, shown
from famix.utils.paths import one_form

Segment = Mapping[str, Any]
"""Entry of Detectron2's `segments_info`: {"id": id in the PNG, "category_id": train id, "iscrowd": 0 or 1}.

In dataset dicts, it also contains "isthing", which Detectron2's Visualizer needs.
"""

Categories = dict[int, tuple[str, bool]]  # id -> (name, whether it has instances)

_NUM_IDS = 1 << 24  # three channels of 8 bits
_VOID = 65535  # category of pixels outside all segments
_MOST_SEGMENTS = (1 << 16) - 2  # per image, because segments are numbered with 16 bits


@dataclass(frozen=True)
class Annotation:
    """Entry for one PNG in a panoptic JSON file."""

    names: tuple[str, ...]  # candidate names of its image, without folder and suffix, in order of precedence
    label: str  # path of the PNG, relative to its folder
    segments: tuple[Segment, ...]  # `category_id` is a category in the file


def read_json(file: Path) -> Any:
    """Read a JSON file of a dataset. Raises a DatasetError if the file is missing or invalid."""
    try:
        return parse_json(read_text(file, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"Cannot read '{file}', which defines the ids in the labels: {error}. Copy the file there; it comes with "
            "the dataset."
        ) from error


def read_panoptic_json(file: Path) -> tuple[list[Annotation], Categories]:
    """Read the annotations and categories in a panoptic JSON file. An `image_id` may refer to an entry in `images`.

    Raises:
        DatasetError: the file is missing or malformed, or an id is out of range or repeated.
    """
    content = read_json(file)
    try:
        images = {image["id"]: image["file_name"] for image in content.get("images", ())}
        annotations = [_annotation(entry, images, file) for entry in content["annotations"]]
        entries = content.get("categories", ())
        return annotations, {int(e["id"]): (str(e["name"]), bool(e.get("isthing", 1))) for e in entries}
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"'{file}' is not a valid panoptic JSON file ({type(error).__name__}: {error}). It must contain "
            "'annotations' of {image_id, file_name, segments_info: [{id, category_id}]} and 'categories' of {id, name, "
            "isthing}."
        ) from error


def _annotation(entry: Mapping[str, Any], images: Mapping[Any, str], file: Path) -> Annotation:
    label = str(entry["file_name"])
    if os.path.isabs(label) or ".." in label.split("/") or "\0" in label:
        raise DatasetError(f"'{file}': file_name must be a path below the PNG folder, got {shown(label)}.")
    segments = [
        {"id": int(found["id"]), "category_id": int(found["category_id"]), "iscrowd": int(found.get("iscrowd", 0))}
        for found in entry["segments_info"]
    ]
    for key, lowest, highest in (("id", 1, _NUM_IDS - 1), ("category_id", 0, _VOID - 1)):
        outside = [segment[key] for segment in segments if not lowest <= segment[key] <= highest]
        if outside:
            raise DatasetError(
                f"'{file}': {key} of a segment in '{label}' must be from {lowest} to {highest}, got "
                f"{shown(outside[0])}."
            )
    if len(segments) > _MOST_SEGMENTS:
        raise DatasetError(f"'{file}': '{label}' must have at most {_MOST_SEGMENTS} segments, got {len(segments)}.")
    counts = Counter(segment["id"] for segment in segments)
    repeated = sorted(segment_id for segment_id, count in counts.items() if count > 1)
    if repeated:
        raise DatasetError(f"'{file}': '{label}' lists the segment(s) {first_few(repeated)} more than once.")
    image_id, stem = entry.get("image_id"), Path(label).stem
    named = (Path(images[image_id]).stem,) if image_id in images else ()
    return Annotation((*named, stem if image_id is None else str(image_id), stem), label, tuple(segments))


def plain_name(name: str) -> str:
    """Return a name in lower case without spaces and punctuation: 'Traffic Sign (Front)' becomes 'trafficsignfront'."""
    return "".join(filter(str.isalnum, one_form(name))).lower()


def read_segments(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    void_segments: Sequence[int] = (),
    max_pixels: int = MAX_PIXELS,
    *,
    all_visible: bool = True,
) -> NDArray[np.uint16]:
    """Read a panoptic PNG as an array (H, W) of segment numbers: the index in `segments` plus 1, or 0 for no segment.

    Args:
        path: path of the PNG.
        segments: all segments in the PNG except `void_segments`; at most 65,534.
        void_segments: ids of segments without a class, which are treated like black pixels.
        max_pixels: pixel limit, as in INPUT.MAX_PIXELS.
        all_visible: whether to reject segments without pixels.

    Raises:
        DatasetError: the file is missing, damaged or not RGB, has an unlisted segment, or lacks a listed one.
    """
    with open_label(path, max_pixels=max_pixels) as image:
        wide = " with 16 bits per channel" if has_wide_colors(image) else ""
        if image.mode != "RGB" or wide:
            raise DatasetError(
                f"Panoptic label '{path}' must be RGB with 8 bits per channel, got mode {image.mode}{wide}. Use PNGs "
                "in COCO's panoptic format, or correct 'label_format' in the dataset definition."
            )
        colors = np.asarray(upright(image))
    red, green, blue = colors.astype(np.uint32).transpose(2, 0, 1)
    ids = red | green << 8 | blue << 16
    numbers_of = np.zeros(_NUM_IDS, dtype=np.uint16)  # the operating system allocates only the used part
    numbers_of[list(void_segments)] = len(segments) + 1
    numbers_of[[segment["id"] for segment in segments]] = np.arange(1, len(segments) + 1)
    numbers = numbers_of[ids]
    unlisted = np.unique(ids[(numbers == 0) & (ids != 0)])
    if len(unlisted):
        raise DatasetError(
            f"Panoptic label '{path}' contains the segment(s) {first_few(unlisted.tolist())}, which its JSON file does "
            "not list. The files do not match. Regenerate or re-extract both."
        )
    pixels = np.bincount(numbers.ravel(), minlength=len(segments) + 2)
    absent = [segment["id"] for number, segment in enumerate(segments, 1) if not pixels[number]]
    if absent and all_visible:
        raise DatasetError(
            f"Panoptic label '{path}' has no pixels for the segment(s) {first_few(absent)}, which its JSON file lists. "
            "The files do not match. Regenerate or re-extract both."
        )
    numbers[numbers == len(segments) + 1] = 0
    return numbers


def semantic_labels(numbers: NDArray[np.integer[Any]], segments: Sequence[Segment], void: int) -> NDArray[np.uint16]:
    """Return the category of each pixel (`void` if it has no segment), given the numbers from `read_segments`."""
    return np.array([void, *(segment["category_id"] for segment in segments)], dtype=np.uint16)[numbers]


@dataclass(frozen=True)
class SegmentLabelReader(LabelReader):
    """Reader that converts panoptic PNGs to train ids, for uses that need only classes: mining, checks, mIoU."""

    # Returns the segments of a PNG and the ids of its void segments; `label_ids` maps their categories to train ids.
    segments_of: Callable[[str | os.PathLike[str]], tuple[Sequence[Segment], Sequence[int]]] = field(
        kw_only=True, repr=False
    )
    all_visible: bool = True  # reject segments without pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        self._table[_VOID] = self.ignore_label

    def _read_ids(self, path: str | os.PathLike[str]) -> np.ndarray:
        segments, void = self.segments_of(path)
        numbers = read_segments(path, segments, void, self.max_pixels, all_visible=self.all_visible)
        return semantic_labels(numbers, segments, _VOID)


def encode_ids(ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Encode segment ids (H, W), below 2**24, as the colors (H, W, 3) of a panoptic PNG."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=2).astype(np.uint8)
