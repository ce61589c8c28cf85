"""What a run left in its OUTPUT_DIR, read for a report."""

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from famix.engine.config_files import read_saved_settings
from famix.evaluation.counting.confusion import CONFUSION_FILE, ConfusionMatrix, read_confusion
from famix.evaluation.counting.scores import segmentation_scores
from famix.io import parse_json, require_plain_file
from famix.reports import RESULTS_FILE, Report, read_report
from famix.reports.report import TASK
from famix.utils.errors import DatasetError

__all__ = ["Curve", "Run", "differing_settings", "read_runs"]

_METRICS, _CONFIG = "metrics.json", "config.yaml"
_TOTAL, _LOSS = "total_loss", "loss"
_MOST_ITERATIONS = 1 << 53
_MAX_BYTES = 1 << 30  # of metrics.json; a million iterations have a third of it
_SAME = 0.01  # percent: scores of one evaluation differ by rounding alone


@dataclass(frozen=True)
class Curve:
    """A loss over the training: iterations, ascending, and values, of one length."""

    iterations: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        name: unlike those of all others.
        folder: OUTPUT_DIR.
        report: its scores.
        losses: name -> curve, the total first; none where nothing was trained here.
        confusions: data set -> matrix, of those that the scoring left.
        settings: the config, KEY.OF.IT -> value; empty where it is missing.
        missing: what could not be read, in words.
    """

    name: str
    folder: Path
    report: Report
    losses: Mapping[str, Curve]
    confusions: Mapping[str, ConfusionMatrix]
    settings: Mapping[str, Any]
    missing: tuple[str, ...]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, and name them by method and, where that is not enough, by seed, weights or folder.

    Args:
        folders: OUTPUT_DIRs with a results.json.

    Raises:
        DatasetError, ConfigError: a folder has no scores, or an unreadable file.
    """
    runs = [_read_run(folder) for folder in dict.fromkeys(folders)]
    facts = [(run.report.run.method, f"seed {run.report.run.seed}", run.report.run.weights.label) for run in runs]
    for parts in range(1, 4):
        names = [" ".join(fact[:parts]) for fact in facts]
        if max(Counter(names).values()) == 1:
            break
    else:
        names = [str(run.folder) for run in runs]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings in which runs differ: key -> the value of each run, None where it has none."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _read_run(folder: Path) -> Run:
    report = read_report(folder / RESULTS_FILE)
    missing: list[str] = []
    losses, damaged = _read_losses(folder / _METRICS)
    if damaged:
        missing.append(f"{damaged} of {_METRICS}")
        logging.getLogger(__name__).warning("%s: %s left out", folder / _METRICS, damaged)
    if not losses:
        missing.append(f"no losses in {_METRICS}")
    confusions = {}
    for name in report.data_sets:
        try:
            confusions[name] = _read_confusion(folder / "inference" / name / CONFUSION_FILE, report, name)
        except DatasetError as error:
            missing.append(str(error))
    settings = _read_settings(folder / _CONFIG)
    if not settings:
        missing.append(f"no {_CONFIG}")
    return Run(report.run.method, folder, report, losses, confusions, settings, tuple(missing))


def _read_losses(path: Path) -> tuple[dict[str, Curve], str]:
    """Losses by name; what a run wrote before it was taken up again at an earlier iteration is replaced.

    Returns:
        The losses, and in words which lines cannot be read, such as the last one of a run that was killed.

    Raises:
        DatasetError: the file cannot be read at all.
    """
    points: dict[str, dict[int, float]] = {}
    try:
        require_plain_file(path, _MAX_BYTES)
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} must be a file that a training wrote, got none ({error}). Remove it.") from error
    damaged = []
    for number, line in enumerate(lines):
        try:
            iteration, values = _read_line(line)
        except (ValueError, OverflowError):
            damaged.append(number)
            continue
        for key, value in values.items():
            points.setdefault(key, {})[iteration] = value
    ordered = sorted(points, key=lambda name: (name != _TOTAL, name))
    curves = {name: Curve(*map(np.array, zip(*sorted(points[name].items()), strict=True))) for name in ordered}
    if damaged == [len(lines) - 1]:
        return curves, "the last line, which is incomplete,"
    return curves, f"{len(damaged)} damaged lines" if damaged else ""


def _read_line(line: bytes) -> tuple[int, dict[str, float]]:
    """Iteration and losses of a line of metrics.json. A loss may be NaN: that of a training that failed is.

    Raises:
        ValueError, OverflowError: it is damaged.
    """
    record = parse_json(line.decode("utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it holds no object")
    losses = {
        key: float(value)
        for key, value in record.items()
        if (key == _TOTAL or key.startswith(_LOSS)) and isinstance(value, (int, float))
    }
    iteration = record.get("iteration")
    if losses and not (isinstance(iteration, int) and 0 <= iteration <= _MOST_ITERATIONS):
        raise ValueError(f"its iteration is {iteration!r}")
    return (iteration or 0) if losses else 0, losses


def _read_confusion(path: Path, report: Report, name: str) -> ConfusionMatrix:
    """The matrix of a data set.

    Raises:
        DatasetError: it is missing, or of another evaluation than the report.
    """
    if not os.path.isfile(path):
        raise DatasetError(f"no confusion matrix of {name}; TEST.EVALUATOR streaming leaves one when it scores")
    matrix = read_confusion(path)
    rule = report.data_sets[name].absent_classes
    scores = segmentation_scores(matrix.counts, matrix.class_names, absent=rule)
    for metric, value in scores.items():
        expected = report.results[name].get(TASK, {}).get(metric, math.nan)
        if metric.startswith("IoU-") and not math.isnan(expected) and not abs(value - expected) <= _SAME:
            raise DatasetError(f"the confusion matrix of {name} is of another evaluation than {RESULTS_FILE}: left out")
    return matrix


def _read_settings(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    settings = read_saved_settings(str(path))
    folder = str(settings.get("OUTPUT_DIR") or path.parent)
    # Files of the run's own folder are the same setting wherever that is.
    return {
        key: value.replace(folder, "OUTPUT_DIR") if isinstance(value, str) else value for key, value in settings.items()
    }
