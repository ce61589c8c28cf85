"""Calibration of class probabilities: how often predictions with a given confidence are correct."""

import json
import os
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import Tensor

from famix.io import read_json
from famix.io.atomic import whole_file
from famix.utils.errors import DatasetError

CALIBRATION_FILE = "calibration.json"
"""Name of the file in OUTPUT_DIR/inference/<dataset>."""

NUM_BINS = 15
"""Number of bins of equal width for confidences from 0 to 1, as in Guo et al. (ICML 2017)."""

_STEP = 8  # every eighth row and column is counted: adjacent pixels add time but little information
_MAX_BYTES = 1 << 20


def confidences(scores: Tensor, are_logits: bool) -> Tensor:
    """Return the probability of the predicted class at every pixel.

    Args:
        scores: (K, ...) logits, or non-negative scores that are proportional to probabilities.
        are_logits: whether the scores are logits.

    Returns:
        (...) float32 in [0, 1].
    """
    scores = scores.float()
    highest = scores.amax(dim=0)
    if are_logits:
        return (scores - highest).exp_().sum(dim=0).reciprocal_()
    return highest / scores.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Calibration:
    """Counts per confidence bin."""

    pixels: NDArray[np.int64]  # (NUM_BINS,)
    confidence: NDArray[np.float64]  # (NUM_BINS,) sums over the pixels
    correct: NDArray[np.int64]  # (NUM_BINS,)

    @property
    def error(self) -> float:
        """Expected calibration error in percent: the mean distance of confidence and accuracy. NaN without pixels."""
        total = self.pixels.sum()
        return float(100 * np.abs(self.confidence - self.correct).sum() / total) if total else float("nan")

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy in percent points. NaN without pixels."""
        total = self.pixels.sum()
        return float(100 * (self.confidence.sum() - self.correct.sum()) / total) if total else float("nan")

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean confidence and the accuracy of each bin with pixels, in percent."""
        used = self.pixels > 0
        percent = 100 / self.pixels[used]
        return self.confidence[used] * percent, self.correct[used] * percent


class CalibrationCounts:
    """Sums over every eighth row and column of the images, on the device of the predictions."""

    def __init__(self, are_logits: bool) -> None:
        self._are_logits = are_logits
        self._sums = torch.zeros(3, NUM_BINS, dtype=torch.float64)  # pixels, confidence, correct

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Add an image.

        Args:
            scores: (K, H, W).
            labels: (H, W) train ids. Values outside [0, K) are ignored.
        """
        places = slice(_STEP // 2, None, _STEP)
        scores, labels = scores[:, places, places].float().contiguous(), labels[places, places].to(scores.device)
        found, predicted = confidences(scores, self._are_logits), scores.argmax(dim=0)
        counted = labels < len(scores)
        found = found[counted].double()
        correct = (predicted == labels)[counted].double()
        bins = (found * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        values = torch.stack([torch.ones_like(found), found, correct])
        self._sums = self._sums.to(scores.device).index_add_(1, bins, values)

    def total(self) -> Calibration | None:
        """Return the sum over all processes on the main one, and None elsewhere. Call it in every process."""
        parts = comm.gather(self._sums.cpu().numpy())
        if not comm.is_main_process():
            return None
        pixels, confidence, correct = np.sum(parts, axis=0)
        return Calibration(pixels.astype(np.int64), confidence, correct.astype(np.int64))


def write_calibration(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write counts atomically, creating a missing folder. Raises OSError if the file cannot be written."""
    content = {name: getattr(calibration, name).tolist() for name in ("pixels", "confidence", "correct")}
    with whole_file(path) as part:
        part.write_text(json.dumps(content) + "\n")


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a file written by `write_calibration`. Raises DatasetError if the file is missing or malformed."""
    try:
        plain = read_json(path, _MAX_BYTES)
        pixels, correct = (np.array(plain[name], dtype=np.int64) for name in ("pixels", "correct"))
        confidence = np.array(plain["confidence"], dtype=np.float64)
        shapes = {values.shape for values in (pixels, confidence, correct)}
        possible = (
            (correct >= 0) & (correct <= pixels) & (confidence >= 0) & (confidence <= 1.001 * pixels)
        )  # rounded sums
        if shapes != {(NUM_BINS,)} or not possible.all():
            raise ValueError("its counts are inconsistent")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DatasetError(
            f"Cannot read the calibration '{path}': {error}. Score the checkpoint again, e.g. with --eval-only."
        ) from error
    return Calibration(pixels, confidence, correct)
