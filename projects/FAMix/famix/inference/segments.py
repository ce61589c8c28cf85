"""Segments of panoptic networks, in one form for both of Detectron2's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from famix.data.class_table import ClassTable
from famix.data.classes import LABEL_DIVISOR

__all__ = ["Segment", "read_segments"]


@dataclass(frozen=True)
class Segment:
    """An object, or all of what is no object of one class.

    Attributes:
        id: its value in the map of segments, from 1 on.
        class_id: train id.
        class_name: of that class.
        is_thing: whether it is an object.
        area: in pixels.
        score: confidence 0-1; None where the network says none.
    """

    id: int
    class_id: int
    class_name: str
    is_thing: bool
    area: int
    score: float | None = None


def read_segments(
    panoptic: Tensor, segments: Sequence[Mapping[str, Any]] | None, classes: ClassTable
) -> tuple[NDArray[np.int32], tuple[Segment, ...]]:
    """Number the segments of an image through.

    Args:
        panoptic: (H, W) ids of segments, 0 where there is none; or where `segments` is None as Panoptic-DeepLab returns
            them, train id * LABEL_DIVISOR + instance, -1 where there is none.
        segments: "id", "category_id" (train id), "isthing" and perhaps "score" of each.
        classes: of the network.

    Returns:
        (H, W) number of the segment of every pixel, 0 where there is none, and the segments that have pixels.
    """
    found, places, areas = np.unique(panoptic.cpu().numpy(), return_inverse=True, return_counts=True)
    described = _decoded(found, classes) if segments is None else {int(entry["id"]): entry for entry in segments}
    numbers = np.zeros(len(found), dtype=np.int32)
    read: list[Segment] = []
    for place, (key, area) in enumerate(zip(found.tolist(), areas.tolist(), strict=True)):
        if key not in described:
            continue
        entry, numbers[place] = described[key], len(read) + 1
        class_id, score = int(entry["category_id"]), entry.get("score")
        name, is_thing = classes.names[class_id], bool(entry["isthing"])
        read.append(Segment(len(read) + 1, class_id, name, is_thing, area, None if score is None else float(score)))
    return numbers[places].reshape(tuple(panoptic.shape)), tuple(read)


def _decoded(ids: NDArray[Any], classes: ClassTable) -> dict[int, dict[str, Any]]:
    train_ids = {int(value): int(value) // LABEL_DIVISOR for value in ids if value >= 0}
    return {key: {"category_id": value, "isthing": value in classes.things} for key, value in train_ids.items()}
