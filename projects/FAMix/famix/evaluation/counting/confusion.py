"""Confusion matrices of semantic segmentation: counted on the device of the predictions, written to and read from files."""

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

__all__ = [
    "CONFUSION_FILE",
    "NUM_LABELS",
    "ConfusionCounts",
    "ConfusionMatrix",
    "argmax_classes",
    "read_confusion",
    "write_confusion",
]

NUM_LABELS = 256
"""Labels have 8 bits."""

CONFUSION_FILE = "confusion.json"
"""Name of the file in OUTPUT_DIR/inference/<dataset>."""

_MAX_BYTES = 64 << 20  # ten times the size of a thousand classes
_MOST_PIXELS = float(1 << 60)


def argmax_classes(scores: Tensor) -> Tensor:
    """Return the class with the highest score at every pixel; on a CPU, the first of equal ones.

    Args:
        scores: (K, H, W) without NaN, on any device.

    Returns:
        (H, W) on the same device: uint8, or int64 for more than 256 classes.
    """
    if len(scores) > NUM_LABELS:
        return scores.max(dim=0).indices
    if scores.dtype != torch.float32 or scores.device.type != "cpu":
        return scores.max(dim=0).indices.to(torch.uint8)
    # Four passes per class over bytes and floats take a quarter of the time of torch's maximum with indices.
    values = scores.detach().numpy()
    highest, labels = values[0].copy(), np.zeros(values.shape[1:], np.uint8)
    is_higher = np.empty(labels.shape, bool)
    candidate = is_higher.view(np.uint8)
    for class_id in range(1, len(values)):
        np.greater(values[class_id], highest, out=is_higher)
        np.multiply(candidate, np.uint8(class_id), out=candidate)
        np.maximum(labels, candidate, out=labels)  # the later of two ids had the higher score
        np.maximum(highest, values[class_id], out=highest)
    return torch.from_numpy(labels)


class ConfusionCounts:
    """Counts pixels by label and predicted class in memory that does not grow with the images.

    Every possible label has a row, so that a pixel costs one multiplication, one addition and one increment, and
    unexpected labels are found afterwards.

    Args:
        num_classes: K, 1-256.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts = torch.zeros(NUM_LABELS * num_classes, dtype=torch.int64)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count the pixels of an image, on the device of the prediction.

        Args:
            predicted: integers from 0 to K - 1.
            labels: uint8, of the same shape, on any device.
        """
        device = predicted.device
        # In 32 bits: several times faster than in 64, and 256 * 256 - 1 fits. Labels travel to the device in 8 bits.
        pairs = labels.to(device).to(torch.int32).mul_(self.num_classes).add_(predicted.to(torch.int32))
        counts = torch.bincount(pairs.flatten(), minlength=self._counts.numel())
        self._counts = self._counts.to(device).add_(counts)

    def total(self, over_processes: bool = True) -> np.ndarray | None:
        """Return the counts.

        Args:
            over_processes: sum over all processes, which must all call this method.

        Returns:
            (256, K) int64; None on other processes than the main one.
        """
        own = self._counts.cpu().numpy().reshape(NUM_LABELS, self.num_classes)
        if not over_processes:
            return own
        parts = comm.gather(own)  # gathered on the CPU, which works with every device and backend
        return np.sum(parts, axis=0) if comm.is_main_process() else None


@dataclass(frozen=True)
class ConfusionMatrix:
    """Numbers of pixels by true and predicted class.

    Attributes:
        class_names: of the K classes.
        counts: (K, K) int64; rows are true, columns predicted classes.
    """

    class_names: tuple[str, ...]
    counts: NDArray[np.int64]


def write_confusion(path: str | os.PathLike[str], class_names: Sequence[str], counts: NDArray[np.int64]) -> None:
    """Write a confusion matrix atomically.

    Args:
        path: of the file; a missing folder is created.
        class_names: of the K classes.
        counts: (K, K), see ConfusionMatrix.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as part:
        part.write_text(json.dumps({"class_names": list(class_names), "counts": counts.tolist()}) + "\n")


def read_confusion(path: str | os.PathLike[str]) -> ConfusionMatrix:
    """Read a file of `write_confusion`.

    Raises:
        DatasetError: the file is missing or malformed.
    """
    try:
        plain = read_json(path, _MAX_BYTES)
        names, counts = tuple(map(str, plain["class_names"])), np.array(plain["counts"], dtype=np.int64)
        if counts.shape != (len(names), len(names)):
            raise ValueError(f"{len(names)} classes and counts of shape {counts.shape}")
        if (counts < 0).any() or counts.sum(dtype=np.float64) > _MOST_PIXELS:
            raise ValueError(f"counts from {counts.min()} to {counts.max()}")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DatasetError(
            f"'{path}' must hold a confusion matrix, got: {error}. Score the checkpoint again, e.g. with --eval-only."
        ) from error
    return ConfusionMatrix(names, counts)
