"""Looking at pairs of image and label: at their headers, which is fast, and at their pixels."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from famix.data.images import image_size, open_image, require_same_size
from famix.data.inspection.problems import ProblemLog
from famix.data.labels import LabelReader
from famix.data.records import label_file_of
from famix.data.wrong_encodings import UnknownIdsError, WrongEncodingError
from famix.utils.errors import DatasetError

__all__ = ["PairStatistics", "inspect_headers", "inspect_pixels"]

Records = Sequence[dict[str, Any]]

_NUM_TRAIN_IDS = 256
_TAIL = 4096  # bytes at the end of a file in which its end mark must stand
_END_MARKS = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}  # first bytes -> mark, of PNG and JPEG


@dataclass
class PairStatistics:
    """What was found in some pairs.

    Attributes:
        problems: of all kinds.
        bad: image files of pairs with a problem.
        sizes: (height, width) of the images -> how many have it.
        pixels: (256,) pixels of each train id.
        images: (256,) images that show each train id.
        decoded: labels whose pixels were counted.
    """

    problems: ProblemLog = field(default_factory=ProblemLog)
    bad: set[str] = field(default_factory=set)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_TRAIN_IDS, np.int64))
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_TRAIN_IDS, np.int64))
    decoded: int = 0

    def note(self, kind: str, record: dict[str, Any], error: DatasetError) -> None:
        """Note a problem of a pair."""
        self.problems.add(kind, str(error))
        self.bad.add(record["file_name"])

    def merge(self, other: "PairStatistics") -> None:
        """Take over what was found in pairs that come after these."""
        self.problems.merge(other.problems)
        self.bad |= other.bad
        self.sizes += other.sizes
        self.pixels += other.pixels
        self.images += other.images
        self.decoded += other.decoded


def inspect_headers(records: Records, reader: LabelReader) -> PairStatistics:
    """Compare the sizes of images and labels by their headers, and find files that end early.

    Args:
        records: Detectron2's standard dicts.
        reader: of the labels.
    """
    found = PairStatistics()
    read_image_size = partial(image_size, max_pixels=reader.max_pixels)
    for record in records:
        sizes = []
        image, label = record["file_name"], label_file_of(record)
        for kind, file, size_of in (
            ("unreadable image", image, read_image_size),
            ("unreadable label", label, reader.size_of),
        ):
            try:
                sizes.append(size_of(file))
                if _seems_cut(file):
                    _require_decodable(file, reader.max_pixels)
            except DatasetError as error:
                found.note(kind, record, error)
        if image not in found.bad:
            found.sizes[sizes[0]] += 1
            try:
                require_same_size(image, sizes[0], label, sizes[1])
            except DatasetError as error:
                found.note("size", record, error)
    return found


def inspect_pixels(records: Records, reader: LabelReader) -> PairStatistics:
    """Decode labels and count their train ids; decode images as far as is needed to find damage.

    Args:
        records: Detectron2's standard dicts.
        reader: of the labels.
    """
    found = PairStatistics()
    for record in records:
        try:
            _require_decodable(record["file_name"], reader.max_pixels)
        except DatasetError as error:
            found.note("unreadable image", record, error)
        try:
            pixels, _ = reader.count_pixels(label_file_of(record))
        except DatasetError as error:
            found.note(_kind_of(error), record, error)
            continue
        found.pixels += pixels
        found.images += pixels > 0
        found.decoded += 1
    return found


def _kind_of(error: DatasetError) -> str:
    if isinstance(error, UnknownIdsError):
        return "unknown id"
    return "encoding" if isinstance(error, WrongEncodingError) else "unreadable label"


def _seems_cut(path: str) -> bool:
    """Whether a PNG or JPEG lacks its end, as an interrupted download or copy does."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(4)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            end = stream.read()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    return any(start.startswith(first) and mark not in end for first, mark in _END_MARKS.items())


def _require_decodable(path: str, max_pixels: int) -> None:
    with open_image(path, max_pixels=max_pixels) as image:
        if image.format == "PNG":
            image.verify()  # compares the checksums of all chunks, without the cost of decompressing them
        else:
            image.draft("RGB", (image.width // 8, image.height // 8))  # of a JPEG: reads all, computes a 64th
            image.load()
