"""Confusion matrices as files, for whoever wants to see what a model takes for what after the run."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from famix.io import read_json
from famix.io.atomic import whole_file
from famix.utils.errors import DatasetError

__all__ = ["CONFUSION_FILE", "ConfusionMatrix", "read_confusion", "write_confusion"]

_MAX_BYTES = 64 << 20  # a thousand classes have a tenth of it
_MOST_PIXELS = float(1 << 60)

CONFUSION_FILE = "confusion.json"
"""Name of the file in OUTPUT_DIR/inference/<data set>."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often pixels of every class were taken for every class.

    Attributes:
        class_names: of the K classes.
        counts: (K, K) int64 numbers of pixels; rows are true, columns predicted classes.
    """

    class_names: tuple[str, ...]
    counts: NDArray[np.int64]


def write_confusion(path: str | os.PathLike[str], class_names: Sequence[str], counts: NDArray[np.int64]) -> None:
    """Write a matrix; the file appears whole or not at all.

    Args:
        path: of the file; its folder is made where it is missing.
        class_names: of the K classes.
        counts: (K, K), see ConfusionMatrix.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as part:
        part.write_text(json.dumps({"class_names": list(class_names), "counts": counts.tolist()}) + "\n")


def read_confusion(path: str | os.PathLike[str]) -> ConfusionMatrix:
    """Read what `write_confusion` wrote.

    Raises:
        DatasetError: the file is missing or holds something else.
    """
    try:
        plain = read_json(path, _MAX_BYTES)
        names, counts = tuple(map(str, plain["class_names"])), np.array(plain["counts"], dtype=np.int64)
        if counts.shape != (len(names), len(names)):
            raise ValueError(f"{len(names)} classes and counts of shape {counts.shape}")
        if (counts < 0).any() or counts.sum(dtype=np.float64) > _MOST_PIXELS:
            raise ValueError(f"counts from {counts.min()} to {counts.max()}")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DatasetError(f"got no confusion matrix from {path} ({error}); score the checkpoint again") from error
    return ConfusionMatrix(names, counts)
