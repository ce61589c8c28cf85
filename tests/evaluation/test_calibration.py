"""Calibration: counts against a plain loop, known errors, files, and the kind of scores under each protocol."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.evaluation.counting.calibration import (
    NUM_BINS,
    Calibration,
    CalibrationCounts,
    confidences,
    read_calibration,
    write_calibration,
)
from famix.utils.errors import DatasetError


def count(scores: torch.Tensor, labels: torch.Tensor, are_logits: bool = True) -> Calibration:
    counts = CalibrationCounts(are_logits)
    counts.add(scores, labels)
    total = counts.total()
    assert total is not None
    return total


@pytest.mark.parametrize("are_logits", [True, False])
def test_counts_equal_a_plain_loop(are_logits: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 40, 60, generator=generator) * 3
    scores = scores if are_logits else scores.exp()
    labels = torch.randint(0, 6, (40, 60), generator=generator).to(torch.uint8)
    labels[labels == 5] = 255
    pixels, confidence, correct = np.zeros(NUM_BINS), np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    for row in range(4, 40, 8):
        for column in range(4, 60, 8):
            values, label = scores[:, row, column], int(labels[row, column])
            found = float((values.softmax(0) if are_logits else values / values.sum()).max())
            if label != 255:
                place = min(int(found * NUM_BINS), NUM_BINS - 1)
                pixels[place] += 1
                confidence[place] += found
                correct[place] += int(values.argmax()) == label
    total = count(scores, labels, are_logits)
    assert total.pixels.tolist() == pixels.tolist() and total.correct.tolist() == correct.tolist()
    np.testing.assert_allclose(total.confidence, confidence, rtol=1e-5)
    expected = 100 * sum(abs(a - b) for a, b in zip(confidence, correct, strict=True)) / pixels.sum()
    assert total.error == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("share", "error", "over"), [(0.75, 5.0, 5.0), (0.8, 0.0, 0.0), (1.0, 20.0, -20.0)])
def test_known_calibration(share: float, error: float, over: float) -> None:
    """Predictions of class 0 with probability 0.8, of which a known share is right."""
    scores = torch.tensor([0.8, 0.2]).log().view(2, 1, 1).expand(2, 80, 80)
    labels = torch.ones(80, 80, dtype=torch.uint8)
    chosen = torch.ones(100, dtype=torch.uint8)
    chosen[: round(100 * share)] = 0
    labels[4::8, 4::8] = chosen.view(10, 10)
    total = count(scores, labels)
    assert total.error == pytest.approx(error, abs=1e-3) and total.overconfidence == pytest.approx(over, abs=1e-3)
    confidence, accuracy = total.curve()
    assert confidence == pytest.approx([80.0]) and accuracy == pytest.approx([100 * share])


def test_images_add_up_and_unlabeled_ones_count_nothing() -> None:
    counts = CalibrationCounts(are_logits=True)
    for _ in range(2):
        counts.add(torch.zeros(4, 16, 16), torch.zeros(16, 16, dtype=torch.uint8))
    total = counts.total()
    assert total is not None and total.pixels.sum() == 8 and total.pixels[int(0.25 * NUM_BINS)] == 8
    assert math.isnan(count(torch.zeros(4, 16, 16), torch.full((16, 16), 255, dtype=torch.uint8)).error)


def test_confidences_of_large_logits_and_of_zero_scores_are_finite() -> None:
    assert confidences(torch.tensor([[1e4], [-1e4]]), are_logits=True).tolist() == [1.0]
    assert confidences(torch.zeros(2, 1), are_logits=False).tolist() == [0.0]


def test_file_keeps_the_counts(tmp_path: Path) -> None:
    total = count(torch.randn(3, 32, 32), torch.zeros(32, 32, dtype=torch.uint8))
    write_calibration(tmp_path / "new/calibration.json", total)
    again = read_calibration(tmp_path / "new/calibration.json")
    for name in ("pixels", "confidence", "correct"):
        np.testing.assert_array_equal(getattr(again, name), getattr(total, name))


@pytest.mark.parametrize(
    ("pixels", "confidence", "correct"), [(4, math.inf, 1), (4, math.nan, 1), (4, 9.0, 1), (4, 2.0, 5), (-1, 0.0, -1)]
)
def test_impossible_counts(pixels: int, confidence: float, correct: int, tmp_path: Path) -> None:
    counts = {"pixels": pixels, "confidence": confidence, "correct": correct}
    (tmp_path / "calibration.json").write_text(json.dumps({name: [value] * NUM_BINS for name, value in counts.items()}))
    with expect_error(DatasetError, "calibration.json", remedy="--eval-only"):
        read_calibration(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pixels": [1], "confidence": [1], "correct": [1]}', '{"pixels": 3, "confidence": []}']
)
def test_malformed_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with expect_error(DatasetError, "calibration.json", remedy="--eval-only"):
        read_calibration(tmp_path / "calibration.json")
