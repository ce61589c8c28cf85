"""Segments of an image in train ids: ground truth with one segment per stuff class, and predictions of either head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from famix.data.images import MAX_PIXELS
from famix.data.panoptic.segments import read_segments

__all__ = ["PanopticSegments", "TruthReader", "predicted_segments"]


@dataclass(frozen=True)
class PanopticSegments:
    """Segments of an image.

    Attributes:
        numbers: (H, W) int32, the `id` of every pixel's segment; 0 is void.
        segments: {"id", "category_id": train id, "iscrowd"}.
    """

    numbers: NDArray[np.int32]
    segments: list[dict[str, Any]]

    def described(self) -> list[dict[str, Any]]:
        """Return copies of the segments with their "area" in pixels."""
        areas = np.bincount(self.numbers.ravel(), minlength=len(self.segments) + 1).tolist()
        return [{**segment, "area": areas[segment["id"]]} for segment in self.segments]


class TruthReader:
    """Reads ground truth; keeps the last image for the next evaluator.

    Args:
        things: train ids of things. All segments of another class become one, since several categories of a dataset may
            be one class.
        max_pixels: of a file, see INPUT.MAX_PIXELS.
    """

    def __init__(self, things: tuple[int, ...], max_pixels: int = MAX_PIXELS) -> None:
        self._things = things
        self._max_pixels = max_pixels
        self._last: tuple[str, PanopticSegments] | None = None

    def read(self, inputs: Mapping[str, Any]) -> PanopticSegments:
        """Read the ground truth of an input.

        Args:
            inputs: with "pan_seg_file_name", "segments_info" and optionally "void_segments".

        Raises:
            DatasetError: see `read_segments`.
        """
        file, segments = inputs["pan_seg_file_name"], inputs["segments_info"]
        if self._last is not None and self._last[0] == file:
            return self._last[1]
        numbers = read_segments(file, segments, inputs.get("void_segments", ()), self._max_pixels)
        merged: dict[tuple[int, int], dict[str, Any]] = {}
        number_of = [0]
        for segment in segments:
            train_id, crowd = segment["category_id"], segment["iscrowd"]
            is_instance = train_id in self._things and not crowd
            key = (train_id, len(number_of) if is_instance else -crowd)
            entry = {"id": len(merged) + 1, "category_id": train_id, "iscrowd": crowd}
            number_of.append(merged.setdefault(key, entry)["id"])
        truth = PanopticSegments(np.array(number_of, dtype=np.int32)[numbers], list(merged.values()))
        self._last = file, truth
        return truth


def predicted_segments(panoptic: Tensor, segments: list[dict[str, Any]] | None, label_divisor: int) -> PanopticSegments:
    """Convert the prediction of either panoptic head.

    Args:
        panoptic: (H, W) ids; without `segments` train id * label divisor + instance, or -1 for void.
        segments: {"id", "category_id": train id}, or None.
        label_divisor: of the dataset's metadata.
    """
    ids = panoptic.cpu().numpy()
    if segments is None:
        found = [int(label) for label in np.unique(ids) if label >= 0]
        segments = [{"id": label, "category_id": label // label_divisor} for label in found]
    numbers = np.zeros(ids.shape, dtype=np.int32)
    for number, segment in enumerate(segments, 1):
        numbers[ids == segment["id"]] = number
    own = [
        {"id": number, "category_id": entry["category_id"], "iscrowd": 0} for number, entry in enumerate(segments, 1)
    ]
    return PanopticSegments(numbers, own)
