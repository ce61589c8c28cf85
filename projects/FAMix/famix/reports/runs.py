"""Contents of run directories: scores, losses, confusion matrices, settings, and example predictions."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from famix.config import flat_settings
from famix.data import FAMixDatasetMapper, get_dataset_dicts, get_label_readers, label_file_of
from famix.data.classes import ClassTable
from famix.data.corruption import read_input
from famix.evaluation import ProtocolInference, protocol_of
from famix.evaluation.counting.calibration import CALIBRATION_FILE, Calibration, confidences, read_calibration
from famix.evaluation.counting.confusion import CONFUSION_FILE, ConfusionMatrix, read_confusion
from famix.evaluation.counting.scored_classes import scored_classes
from famix.evaluation.counting.scores import segmentation_scores
from famix.evaluation.evaluators import scores_are_logits
from famix.inference.loading import LoadedModel
from famix.io import file_sha256, parse_json, read_yaml, require_plain_file
from famix.reports.report import CLASS_IOU, TASK, Report
from famix.reports.results_file import RESULTS_FILE, read_report
from famix.utils.errors import ConfigError, CorruptFileError, DatasetError
from famix.visualization.figure import Pixels
from famix.visualization.overlay import Ids

CONFIG_FILE = "config.yaml"  # in OUTPUT_DIR

_METRICS, _TOTAL, _CALIBRATION = "metrics.json", "total_loss", "calibration"
_MOST_ITERATIONS = 1 << 53
_MAX_BYTES = 1 << 30  # for metrics.json; a million iterations need a third of it
_SAME = 0.01  # percent; scores from the same evaluation differ only by rounding


@dataclass(frozen=True)
class Run:
    """A run directory."""

    name: str  # unique among the runs that were read together
    folder: Path  # OUTPUT_DIR
    report: Report
    losses: Mapping[str, NDArray[np.float64]]  # name -> (2, N) ascending iterations and values, total first
    confusions: Mapping[str, ConfusionMatrix]  # dataset -> matrix, where the evaluation wrote one
    calibrations: Mapping[str, Calibration]  # dataset -> counts, where the evaluation wrote them
    settings: Mapping[str, Any]  # config key -> value; empty without a config
    missing: tuple[str, ...]  # descriptions of missing or unreadable content


@dataclass(frozen=True)
class Example:
    """Image with its ground truth and the prediction of a run."""

    dataset: str
    title: str  # file name
    image: Pixels  # (H, W, 3) RGB
    truth: Ids  # (h, w) train ids, as prepared by the evaluation protocol
    predicted: Ids  # (h, w) train ids
    confidence: NDArray[np.float32]  # (h, w) probability of the predicted class
    classes: ClassTable


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs and name them by method and, if that is ambiguous, by seed, weights or folder.

    Args:
        folders: OUTPUT_DIRs that contain a results.json. Duplicates are read once.

    Raises:
        DatasetError, ConfigError: a folder has no scores, or a file is unreadable.
    """
    runs = [_read_run(folder) for folder in dict.fromkeys(folders)]
    facts = [(run.report.run.method, f"seed {run.report.run.seed}", run.report.run.weights.label) for run in runs]
    candidates = [[" ".join(fact[:parts]) for fact in facts] for parts in (1, 2, 3)]
    candidates.append([str(run.folder) for run in runs])
    names = next(names for names in candidates if len(set(names)) == len(names))
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs, mapped to their value in each run (None if missing)."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def scored_weights(run: Run) -> Path:
    """Return the path of the checkpoint that was scored.

    Raises:
        ConfigError: the file is not in the folder, or has changed since the evaluation.
    """
    facts = run.report.run.weights
    path = run.folder / (facts.file or "")
    if not facts.file or not os.path.isfile(path):
        raise ConfigError(f"Scored checkpoint not found: '{facts.file or 'unknown'}'. Copy it to '{run.folder}'.")
    if facts.sha256 and file_sha256(path) != facts.sha256:
        raise ConfigError(f"Checkpoint '{path}' has changed since it was scored. Score it again with --eval-only.")
    return path


def chosen_images(count: int, most: int) -> list[int]:
    """Return the indices of at most `most` of `count` images, at the centers of equal parts of the dataset."""
    chosen = min(count, most)
    return [(2 * part + 1) * count // (2 * chosen) for part in range(chosen)]


@torch.inference_mode()
def predict_examples(
    run: Run, loaded: LoadedModel, most: int, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> list[Example]:
    """Predict images from every dataset that a run was scored on, using the evaluation protocol.

    Args:
        run: run to show.
        loaded: model with its `scored_weights`.
        most: maximum number of images per dataset.
        progress: function that wraps the images during prediction, e.g. tqdm.

    Raises:
        FAMixError: an image is missing or unreadable, or the run was scored on other classes than the model predicts.
    """
    mapper, max_pixels = FAMixDatasetMapper(loaded.cfg, is_train=False), loaded.cfg.INPUT.MAX_PIXELS
    work = []
    for name in run.report.datasets:
        records = get_dataset_dicts([name])
        work += [(name, records[index]) for index in chosen_images(len(records), most)]
    examples = []
    for name, record in progress(work):
        protocol, classes = protocol_of(loaded.cfg, name), scored_classes(loaded.cfg, name)
        if not set(run.report.datasets[name].classes) <= set(classes.names):
            raise ConfigError(
                f"TEST.CLASSES of the evaluation in '{run.folder}' differs from its {CONFIG_FILE}. Set TEST.CLASSES there."
            )
        (result,) = ProtocolInference(loaded.model, protocol)([mapper(record)])
        labels = get_label_readers([name], max_pixels)[name].read(label_file_of(record))
        examples.append(
            Example(
                dataset=name,
                title=Path(record["file_name"]).name,
                image=read_input(record, max_pixels),
                truth=classes.label_ids(protocol.prepare_labels(labels)).astype(np.uint8),
                predicted=result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy(),
                confidence=confidences(result["sem_seg"], scores_are_logits(loaded.cfg, name)).cpu().numpy(),
                classes=loaded.classes,
            )
        )
    return examples


def _read_run(folder: Path) -> Run:
    report = read_report(folder / RESULTS_FILE)
    losses, damage = _read_losses(folder / _METRICS)
    missing = [f"{damage} of {_METRICS}"] if damage else []
    if damage:
        logging.getLogger(__name__).warning("'%s': skipped %s.", folder / _METRICS, damage)
    if not losses:
        missing.append(f"no losses in {_METRICS}")
    confusions: dict[str, ConfusionMatrix] = {}
    calibrations: dict[str, Calibration] = {}
    for name in report.datasets:
        try:
            confusions[name] = _read_confusion(folder / "inference" / name / CONFUSION_FILE, report, name)
        except DatasetError as error:
            missing.append(str(error))
        try:
            if _CALIBRATION in report.results[name]:  # evaluations by version 0.1 lack it
                calibrations[name] = _read_calibration(folder / "inference" / name / CALIBRATION_FILE, report, name)
        except DatasetError as error:
            missing.append(str(error))
    settings = _read_settings(folder / CONFIG_FILE)
    if not settings:
        missing.append(f"no {CONFIG_FILE}")
    return Run(report.run.method, folder, report, losses, confusions, calibrations, settings, tuple(missing))


def _read_losses(path: Path) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Read the losses, and describe unreadable lines, such as the last line of a killed run.

    Values from a resumed run replace earlier values at the same iterations.
    """
    try:
        require_plain_file(path, _MAX_BYTES)
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        raise DatasetError(f"Cannot read the training log '{path}': {error}. Remove the file.") from error
    points: dict[str, dict[int, float]] = {}
    damaged = []
    for number, line in enumerate(lines):
        try:
            record = parse_json(line.decode("utf-8"))
            values = {
                key: float(value)  # NaN if training diverged
                for key, value in record.items()
                if (key == _TOTAL or key.startswith("loss")) and isinstance(value, (int, float))
            }
            iteration = record.get("iteration")
            if values and not (isinstance(iteration, int) and 0 <= iteration <= _MOST_ITERATIONS):
                raise ValueError(f"iteration {iteration!r}")
        except (ValueError, OverflowError, AttributeError):
            damaged.append(number)
            continue
        for key, value in values.items():
            points.setdefault(key, {})[iteration] = value
    ordered = sorted(points, key=lambda name: (name != _TOTAL, name))
    curves = {name: np.array(sorted(points[name].items()), dtype=float).T for name in ordered}
    if damaged == [len(lines) - 1]:
        return curves, "the incomplete last line"
    return curves, f"{len(damaged)} damaged lines" if damaged else ""


def _read_confusion(path: Path, report: Report, name: str) -> ConfusionMatrix:
    """Read the matrix for a dataset. Raises DatasetError if it is missing or does not match the report."""
    if not os.path.isfile(path):
        raise DatasetError(
            f"no confusion matrix for {report.datasets[name].heading}: only TEST.EVALUATOR streaming writes one"
        )
    matrix = read_confusion(path)
    scores = segmentation_scores(matrix.counts, matrix.class_names, absent=report.datasets[name].absent_classes)
    for metric, value in scores.items():
        expected = report.results[name].get(TASK, {}).get(metric, math.nan)
        if metric.startswith(CLASS_IOU) and not math.isnan(expected) and not abs(value - expected) <= _SAME:
            raise DatasetError(
                f"the confusion matrix for {report.datasets[name].heading} and {RESULTS_FILE} come from different evaluations"
            )
    return matrix


def _read_calibration(path: Path, report: Report, name: str) -> Calibration:
    """Read the calibration on a dataset. Raises DatasetError if it is missing or does not match the report."""
    calibration, expected = read_calibration(path), report.results[name][_CALIBRATION].get("ECE", math.nan)
    if not np.isclose(calibration.error, expected, rtol=0, atol=_SAME, equal_nan=True):
        raise DatasetError(
            f"the calibration on {report.datasets[name].heading} and {RESULTS_FILE} come from different evaluations"
        )
    return calibration


def _read_settings(path: Path) -> dict[str, Any]:
    """Read the config, replacing the run's own folder with OUTPUT_DIR to make runs comparable."""
    if not os.path.lexists(path):
        return {}
    try:
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise CorruptFileError(f"expected KEY: value settings, found a {type(content).__name__}")
    except (OSError, CorruptFileError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the config '{path}': {error}. Remove the file.") from error
    settings = flat_settings(content)
    folder = str(settings.get("OUTPUT_DIR") or path.parent)
    return {
        key: value.replace(folder, "OUTPUT_DIR") if isinstance(value, str) else value for key, value in settings.items()
    }
