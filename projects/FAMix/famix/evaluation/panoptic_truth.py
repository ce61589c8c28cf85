"""What panoptic predictions are compared with: the ground truth of an image in train ids, one segment a stuff class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from famix.data.panoptic_segments import read_segments

__all__ = ["PanopticTruth", "TruthReader"]


@dataclass(frozen=True)
class PanopticTruth:
    """Segments of an image.

    Attributes:
        numbers: (H, W) int32, the `id` of the segment of a pixel; 0 where nothing is labelled.
        segments: {"id", "category_id": train id, "iscrowd"}.
    """

    numbers: NDArray[np.int32]
    segments: list[dict[str, Any]]

    def areas(self) -> list[int]:
        """Pixels of every segment, in the order of `segments`."""
        pixels = np.bincount(self.numbers.ravel(), minlength=len(self.segments) + 1)
        return [int(pixels[segment["id"]]) for segment in self.segments]


class TruthReader:
    """Reads ground truth; that of the last image is kept for the next evaluator.

    Args:
        things: train ids whose instances count. All segments of another class are one, as several categories of a
            dataset may be one class.
    """

    def __init__(self, things: tuple[int, ...]) -> None:
        self._things = things
        self._last: tuple[str, PanopticTruth] | None = None

    def read(self, inputs: Mapping[str, Any]) -> PanopticTruth:
        """Ground truth of an input.

        Args:
            inputs: with "pan_seg_file_name", "segments_info" and perhaps "void_segments".

        Raises:
            DatasetError: see `read_segments`.
        """
        file = inputs["pan_seg_file_name"]
        if self._last is None or self._last[0] != file:
            self._last = file, self._read(file, inputs["segments_info"], inputs.get("void_segments", ()))
        return self._last[1]

    def _read(self, file: str, segments: list[dict[str, Any]], void_segments: list[int]) -> PanopticTruth:
        numbers = read_segments(file, segments, void_segments)
        merged: dict[tuple[int, int], dict[str, Any]] = {}
        number_of = [0]
        for segment in segments:
            train_id, crowd = segment["category_id"], segment["iscrowd"]
            is_instance = train_id in self._things and not crowd
            key = (train_id, len(number_of) if is_instance else -crowd)
            entry = {"id": len(merged) + 1, "category_id": train_id, "iscrowd": crowd}
            number_of.append(merged.setdefault(key, entry)["id"])
        return PanopticTruth(np.array(number_of, dtype=np.int32)[numbers], list(merged.values()))
