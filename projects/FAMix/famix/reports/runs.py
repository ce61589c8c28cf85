"""Reader of run directories: scores, losses, confusion matrices, settings, and example predictions."""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import nn

from famix.config import flat_settings
from famix.data import FAMixDatasetMapper, get_dataset_dicts, get_label_readers, label_file_of, read_image
from famix.data.class_table import ClassTable
from famix.evaluation import ProtocolInference, protocol_of
from famix.evaluation.counting.confusion import CONFUSION_FILE, ConfusionMatrix, read_confusion
from famix.evaluation.counting.scores import segmentation_scores
from famix.io import parse_json, read_yaml, require_plain_file
from famix.reports.report import CLASS_IOU, TASK, Report
from famix.reports.results_file import RESULTS_FILE, read_report
from famix.reports.run_metadata import file_sha256
from famix.utils.errors import ConfigError, CorruptFileError, DatasetError
from famix.visualization.label_pictures import Ids, Pixels

__all__ = [
    "CONFIG_FILE",
    "Curve",
    "Example",
    "Run",
    "chosen_images",
    "differing_settings",
    "predict_examples",
    "read_runs",
    "scored_weights",
]

CONFIG_FILE = "config.yaml"
"""Name of the config in OUTPUT_DIR."""

_METRICS, _TOTAL, _LOSS = "metrics.json", "total_loss", "loss"
_MOST_ITERATIONS = 1 << 53
_MAX_BYTES = 1 << 30  # of metrics.json; a million iterations take a third
_SAME = 0.01  # percent; scores of one evaluation differ by rounding alone

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Curve:
    """A loss during training: ascending iterations and as many values."""

    iterations: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        name: unique among the runs that were read together.
        folder: OUTPUT_DIR.
        report: scores and metadata.
        losses: name -> curve, the total first; empty without a training.
        confusions: dataset -> confusion matrix, as far as the evaluation wrote them.
        settings: config key -> value; empty if the config is missing.
        missing: descriptions of missing or unreadable content.
    """

    name: str
    folder: Path
    report: Report
    losses: Mapping[str, Curve]
    confusions: Mapping[str, ConfusionMatrix]
    settings: Mapping[str, Any]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """An image with its ground truth and the prediction of a run.

    Attributes:
        dataset: name of the dataset.
        title: file name.
        image: (H, W, 3) RGB.
        truth: (h, w) train ids in the frame of the evaluation protocol.
        predicted: (h, w) train ids.
        classes: of the network.
    """

    dataset: str
    title: str
    image: Pixels
    truth: Ids
    predicted: Ids
    classes: ClassTable


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs and name them by method and, if that is ambiguous, by seed, weights or folder.

    Args:
        folders: OUTPUT_DIRs with a results.json; duplicates are read once.

    Raises:
        DatasetError, ConfigError: if a folder has no scores, or a file is unreadable.
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
    """Return the settings that differ between runs: key -> value of each run, None for a missing one."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def scored_weights(run: Run) -> Path:
    """Return the checkpoint that a run's scores belong to.

    Raises:
        ConfigError: if it is not in the folder, or has changed since the evaluation.
    """
    facts = run.report.run.weights
    path = run.folder / (facts.file or "")
    if not facts.file or not os.path.isfile(path):
        raise ConfigError(
            f"'{run.folder}' must contain the scored checkpoint '{facts.file or 'unknown'}', got none. Copy it there."
        )
    if facts.sha256 and file_sha256(path) != facts.sha256:
        raise ConfigError(f"'{path}' must be the scored checkpoint, got other weights. Score it with --eval-only.")
    return path


def chosen_images(count: int, most: int) -> list[int]:
    """Return the indices of at most `most` of `count` images: the centres of equal parts of the dataset."""
    chosen = min(count, most)
    return [(2 * part + 1) * count // (2 * chosen) for part in range(chosen)]


@torch.inference_mode()
def predict_examples(
    run: Run, model: nn.Module, cfg: CfgNode, classes: ClassTable, most: int, progress: Progress = iter
) -> list[Example]:
    """Predict images of every dataset that a run was scored on, with the protocol of the evaluation.

    Args:
        run: the run.
        model: its network with `scored_weights`, in evaluation mode.
        cfg: its config.
        classes: of the network.
        most: maximum number of images per dataset.
        progress: wraps the images during the prediction, e.g. tqdm.

    Raises:
        FAMixError: if an image is missing or unreadable.
    """
    mapper, max_pixels = FAMixDatasetMapper(cfg, is_train=False), cfg.INPUT.MAX_PIXELS
    work = []
    for name in run.report.datasets:
        records = get_dataset_dicts([name])
        work += [(name, records[index]) for index in chosen_images(len(records), most)]
    examples = []
    for name, record in progress(work):
        protocol = protocol_of(cfg, name)
        (result,) = ProtocolInference(model, protocol)([mapper(record)])
        labels = get_label_readers([name], max_pixels)[name].read(label_file_of(record))
        examples.append(
            Example(
                dataset=name,
                title=Path(record["file_name"]).name,
                image=np.asarray(read_image(record["file_name"], max_pixels=max_pixels)),
                truth=protocol.prepare_labels(labels).astype(np.uint8),
                predicted=result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy(),
                classes=classes,
            )
        )
    return examples


def _read_run(folder: Path) -> Run:
    report = read_report(folder / RESULTS_FILE)
    missing: list[str] = []
    losses, damaged = _read_losses(folder / _METRICS)
    if damaged:
        missing.append(f"{damaged} of {_METRICS}")
        logging.getLogger(__name__).warning("'%s': %s left out.", folder / _METRICS, damaged)
    if not losses:
        missing.append(f"no losses in {_METRICS}")
    confusions = {}
    for name in report.datasets:
        try:
            confusions[name] = _read_confusion(folder / "inference" / name / CONFUSION_FILE, report, name)
        except DatasetError as error:
            missing.append(str(error))
    settings = _read_settings(folder / CONFIG_FILE)
    if not settings:
        missing.append(f"no {CONFIG_FILE}")
    return Run(report.run.method, folder, report, losses, confusions, settings, tuple(missing))


def _read_losses(path: Path) -> tuple[dict[str, Curve], str]:
    """Read the losses; a resumed run replaces its earlier values at the same iterations.

    Returns:
        The losses, and a description of unreadable lines, such as the last one of a killed run.

    Raises:
        DatasetError: if the file is unreadable as a whole.
    """
    points: dict[str, dict[int, float]] = {}
    try:
        require_plain_file(path, _MAX_BYTES)
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        raise DatasetError(f"'{path}' must be a file of a training, got none ({error}). Remove it.") from error
    damaged = []
    for number, line in enumerate(lines):
        try:
            record = parse_json(line.decode("utf-8"))
            values = {
                key: float(value)  # NaN in a diverged training
                for key, value in record.items()
                if (key == _TOTAL or key.startswith(_LOSS)) and isinstance(value, (int, float))
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
    curves = {name: Curve(*map(np.array, zip(*sorted(points[name].items()), strict=True))) for name in ordered}
    if damaged == [len(lines) - 1]:
        return curves, "the incomplete last line"
    return curves, f"{len(damaged)} damaged lines" if damaged else ""


def _read_confusion(path: Path, report: Report, name: str) -> ConfusionMatrix:
    """Read the matrix of a dataset.

    Raises:
        DatasetError: if it is missing, or belongs to another evaluation than the report.
    """
    if not os.path.isfile(path):
        raise DatasetError(f"no confusion matrix of {name}: only TEST.EVALUATOR streaming writes one")
    matrix = read_confusion(path)
    scores = segmentation_scores(matrix.counts, matrix.class_names, absent=report.datasets[name].absent_classes)
    for metric, value in scores.items():
        expected = report.results[name].get(TASK, {}).get(metric, math.nan)
        if metric.startswith(CLASS_IOU) and not math.isnan(expected) and not abs(value - expected) <= _SAME:
            raise DatasetError(f"the confusion matrix of {name} belongs to another evaluation than {RESULTS_FILE}")
    return matrix


def _read_settings(path: Path) -> dict[str, Any]:
    """Read the config; the run's own folder is replaced by OUTPUT_DIR, so that equal settings of two runs are equal."""
    if not os.path.lexists(path):
        return {}
    try:
        content = read_yaml(path)
    except (OSError, CorruptFileError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"'{path}' must be the config of a run, got an unreadable file ({error}). Remove it."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' must hold KEY: value settings, got a {type(content).__name__}. Remove it.")
    settings = flat_settings(content)
    folder = str(settings.get("OUTPUT_DIR") or path.parent)
    return {
        key: value.replace(folder, "OUTPUT_DIR") if isinstance(value, str) else value for key, value in settings.items()
    }
