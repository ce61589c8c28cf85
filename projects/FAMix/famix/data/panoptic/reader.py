"""The semantic part of panoptic labels, for everything that works with classes alone: mining, checks, mIoU."""

import os
from dataclasses import dataclass, field

import numpy as np

from famix.data.labels import LabelReader
from famix.data.panoptic.files import PanopticFiles
from famix.data.panoptic.segments import Segment, read_segments

__all__ = ["PanopticLabelReader", "panoptic_label_reader", "semantic_labels"]


@dataclass(frozen=True)
class PanopticLabelReader(LabelReader):
    """Reads panoptic PNGs as train ids.

    Attributes:
        files: of the split, which knows the classes of the segments.
    """

    files: PanopticFiles = field(kw_only=True, repr=False)

    def _read_ids(self, path: str | os.PathLike[str]) -> np.ndarray:
        segments, void_segments = self.files.segments_of(path)
        return semantic_labels(
            read_segments(path, segments, void_segments, self.max_pixels), segments, self.ignore_label
        )


def panoptic_label_reader(files: PanopticFiles) -> PanopticLabelReader:
    """The `label_reader` of a split's metadata."""
    definition = files.definition
    train_ids = (*range(len(definition.classes)), definition.ignore_label)
    return PanopticLabelReader(
        label_ids={train_id: train_id for train_id in train_ids},
        ignore_label=definition.ignore_label,
        source=definition.source,
        files=files,
    )


def semantic_labels(numbers: np.ndarray, segments: list[Segment], ignore_label: int) -> np.ndarray:
    """Class of every pixel.

    Args:
        numbers: (H, W) place in `segments` plus 1, or 0.
        segments: with train ids.
        ignore_label: of pixels without a segment, 0-255.

    Returns:
        (H, W) uint8 train ids.
    """
    return np.array([ignore_label, *(segment["category_id"] for segment in segments)], dtype=np.uint8)[numbers]
