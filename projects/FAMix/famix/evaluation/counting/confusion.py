"""Confusion matrices for semantic segmentation, counted on the device of the predictions, and their files."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import Tensor

from famix.io import read_json
from famix.io.atomic import whole_file
from famix.utils.errors import DatasetError

NUM_LABELS = 256
"""Number of possible values of an 8-bit label."""

CONFUSION_FILE = "confusion.json"
"""Name of the file in OUTPUT_DIR/inference/<dataset>."""

_MAX_BYTES = 64 << 20  # ten times the size for a thousand classes
_MAX_PIXELS = float(1 << 60)


def argmax_classes(scores: Tensor) -> Tensor:
    """Return the class with the highest score at every pixel. On a CPU, ties go to the lowest class.

    Args:
        scores: (K, H, W) scores without NaN, on any device.

    Returns:
        (H, W) class ids on the same device: uint8, or int64 for more than 256 classes.
    """
    if len(scores) > NUM_LABELS:
        return scores.max(dim=0).indices
    if scores.dtype != torch.float32 or scores.device.type != "cpu":
        return scores.max(dim=0).indices.to(torch.uint8)
    # Four passes per class over bytes and floats are four times as fast as torch.max with indices.
    values = scores.detach().numpy()
    highest, labels = values[0].copy(), np.zeros(values.shape[1:], np.uint8)
    is_higher = np.empty(labels.shape, bool)
    candidate = is_higher.view(np.uint8)
    for class_id in range(1, len(values)):
        np.greater(values[class_id], highest, out=is_higher)
        np.multiply(candidate, np.uint8(class_id), out=candidate)
        np.maximum(labels, candidate, out=labels)  # a later class with a higher score has the higher id
        np.maximum(highest, values[class_id], out=highest)
    return torch.from_numpy(labels)


class ConfusionCounts:
    """Pixel counts by label and predicted class, for K = 1 to 256 classes.

    Every 8-bit label has a row, so invalid labels can be detected afterwards without a per-pixel check.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts = torch.zeros(NUM_LABELS * num_classes, dtype=torch.int64)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count pixels, given integers `predicted` from 0 to K - 1 and uint8 `labels`, on the device of `predicted`."""
        device = predicted.device
        # 32 bits are several times as fast as 64, and 256 * 256 - 1 fits. Labels are copied to the device in 8 bits.
        pairs = labels.to(device).to(torch.int32).mul_(self.num_classes).add_(predicted.to(torch.int32))
        counts = torch.bincount(pairs.flatten(), minlength=self._counts.numel())
        self._counts = self._counts.to(device).add_(counts)

    def total(self) -> np.ndarray | None:
        """Return the (256, K) int64 sum over all processes on the main one, and None elsewhere. Call it everywhere."""
        parts = comm.gather(self._counts.cpu().numpy().reshape(NUM_LABELS, self.num_classes))
        return np.sum(parts, axis=0) if comm.is_main_process() else None


@dataclass(frozen=True)
class ConfusionMatrix:
    """Pixel counts by true and predicted class."""

    class_names: tuple[str, ...]
    counts: NDArray[np.int64]  # (K, K); rows are true classes, columns are predicted classes


def write_confusion(path: str | os.PathLike[str], class_names: Sequence[str], counts: NDArray[np.int64]) -> None:
    """Write a `ConfusionMatrix` atomically, creating a missing folder. Raises OSError if it cannot be written."""
    with whole_file(path) as part:
        part.write_text(json.dumps({"class_names": list(class_names), "counts": counts.tolist()}) + "\n")


def read_confusion(path: str | os.PathLike[str]) -> ConfusionMatrix:
    """Read a file written by `write_confusion`. Raises DatasetError if the file is missing or malformed."""
    try:
        plain = read_json(path, _MAX_BYTES)
        names, counts = tuple(map(str, plain["class_names"])), np.array(plain["counts"], dtype=np.int64)
        if counts.shape != (len(names), len(names)):
            raise ValueError(f"expected {len(names)} x {len(names)} counts, found shape {counts.shape}")
        if (counts < 0).any() or counts.sum(dtype=np.float64) > _MAX_PIXELS:
            raise ValueError(f"counts range from {counts.min()} to {counts.max()}")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DatasetError(
            f"Cannot read the confusion matrix '{path}': {error}. Score the checkpoint again, e.g. with --eval-only."
        ) from error
    return ConfusionMatrix(names, counts)
