"""Report on a scored run: its scores on all datasets, with the settings and hashes needed to compare them."""

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode

import famix
from famix.config import flat_settings
from famix.data.corruption import parse_corruption
from famix.data.registration import domain_groups, is_source, short_names
from famix.evaluation.counting.scored_classes import scored_classes
from famix.evaluation.counting.scores import MEAN_IOUS, SEEN, SKIP, UNSEEN
from famix.evaluation.evaluators import absent_rule
from famix.evaluation.protocols.protocol import protocol_of

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # dataset -> task -> metric -> percent

METRICS = ("mIoU", "fwIoU", "mACC", "pACC")  # scores over all classes for the task "sem_seg"
PANOPTIC_METRICS = {  # score -> task and metric in the results
    **{f"{name}{kind}": ("panoptic_seg", f"{name}{suffix}")
       for kind, suffix in (("", ""), (" things", "_th"), (" stuff", "_st")) for name in ("PQ", "SQ", "RQ")},
    "mask AP": ("segm", "AP"),
}  # fmt: skip
_SPLIT_QUALITIES = {"PQ seen": ("panoptic_seg", "PQ_seen"), "PQ unseen": ("panoptic_seg", "PQ_unseen")}
MEAN = "mean"  # name of the mean over all targets
TASK = "sem_seg"
CLASS_IOU, CLASS_ACCURACY = "IoU-", "ACC-"  # prefixes of class scores; only a labeled class has an accuracy
LAST, BEST, AVERAGE, FILE, MEMORY = "last", "best", "ema", "file", "memory"  # values of ScoredWeights.selection

# Keys that do not affect training: seeds, paths, devices, logging and evaluation.
_NOT_OF_THE_METHOD = (
    *("OUTPUT_DIR", "SEED", "STYLE_MINING.SEED", "MODEL.WEIGHTS", "MODEL.STYLE.BANK", "MODEL.DEVICE"),
    *("DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "VIS_PERIOD", "TRACKERS", "MODEL_SELECTION.USE"),
    *("DATASETS.TEST", "DATASETS.FILES", "TEST.EVAL_PERIOD", "TEST.EVALUATOR", "TEST.SOURCE", "TEST.CLASSES"),
    *("TEST.ABSENT_CLASSES", "TEST.PROTOCOL", "TEST.PROTOCOL_OF", "TEST.RELEASED_PADDING"),
)
_SAME = 1e-9  # percent; smaller differences between means are rounding errors


@dataclass(frozen=True)
class ScoredWeights:
    """Weights that were scored."""

    selection: str = MEMORY  # last or best weights, moving average, file of unknown origin, or memory
    file: str | None = None  # file name; None for weights in memory
    sha256: str | None = None
    iterations: int | None = None  # training iterations
    source_val: str | None = None  # dataset that selected the best weights
    source_score: float | None = None  # mIoU on `source_val`, in percent

    @property
    def label(self) -> str:
        """One-word label for a table."""
        return Path(self.file).stem if self.selection == FILE and self.file else self.selection

    def describe(self) -> str:
        """Describe the weights in a phrase, e.g. "best on gta5_val (71.3), 300 iterations"."""
        phrases = {AVERAGE: "moving average", MEMORY: "in memory", FILE: str(self.file)}
        words = phrases.get(self.selection, self.selection)
        if self.source_val is not None and self.source_score is not None:
            words += f" on {self.source_val} ({self.source_score:.1f})"
        return words if self.iterations is None else f"{words}, {self.iterations} iterations"


@dataclass(frozen=True)
class RunMetadata:
    """Metadata of a scored run."""

    method: str  # see `method_name`
    seed: int
    trained_on: tuple[str, ...]  # DATASETS.TRAIN
    weights: ScoredWeights
    evaluator: str  # TEST.EVALUATOR
    config_hash: str  # SHA-256 of the config without OUTPUT_DIR
    method_hash: str  # SHA-256 of the settings that affect training, without seeds
    date: str  # date of evaluation, in ISO format with the time zone
    versions: Mapping[str, str]  # package -> version

    def facts(self) -> dict[str, str]:
        """Return a mapping from metadata name to text."""
        return {
            "weights": self.weights.describe(),
            "file": self.weights.file or "in memory",
            "sha256": self.weights.sha256 or "",
            "seed": str(self.seed),
            "trained on": ", ".join(self.trained_on),
            "evaluator": self.evaluator,
            "config": self.config_hash,
            "date": self.date,
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions.items()),
        }


@dataclass(frozen=True)
class ScoredDataset:
    """Evaluation settings for a dataset."""

    heading: str  # short name for tables
    is_source: bool  # sources are excluded from the mean
    group: str  # parent dataset of a condition, e.g. "acdc"; "" for a single dataset
    protocol: str
    classes: tuple[str, ...]  # classes that the means include
    absent_classes: str = SKIP  # mIoU rule for classes that are predicted but never labeled, "skip" or "zero"
    unseen: tuple[str, ...] = ()  # those of the classes that had no labels in training


@dataclass(frozen=True)
class Report:
    """Scores and metadata of one run."""

    run: RunMetadata
    datasets: Mapping[str, ScoredDataset]  # name -> settings, in the order of DATASETS.TEST
    results: Results  # scores on the same datasets

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the datasets included in the mean."""
        return tuple(name for name, scored in self.datasets.items() if not scored.is_source)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the datasets in the source domain."""
        return tuple(name for name, scored in self.datasets.items() if scored.is_source)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores over all classes, including panoptic scores if any dataset has them."""
        tasks = {task for scores in self.results.values() for task in scores}
        qualities = PANOPTIC_METRICS | (_SPLIT_QUALITIES if self.unseen else {})
        panoptic = (metric for metric, (task, _) in qualities.items() if task in tasks)
        return (METRICS[0], *self.split_means, *self.other_means, *METRICS[1:], *panoptic)

    @property
    def headlines(self) -> tuple[str, ...]:
        """Names of the scores with a row of their own: PQ and mIoU, over seen and unseen classes, and mIoU under each rule."""
        candidates = ("PQ", *_SPLIT_QUALITIES, "mIoU", SEEN, UNSEEN, *MEAN_IOUS.values())
        return tuple(metric for metric in candidates if metric in self.metrics)

    @property
    def unseen(self) -> frozenset[str]:
        """Names of the classes that had no labels in training."""
        return frozenset(name for scored in self.datasets.values() for name in scored.unseen)

    @property
    def split_means(self) -> tuple[str, ...]:
        """Names of the mIoUs over seen and over unseen classes, or () if all classes are seen."""
        return (SEEN, UNSEEN) if self.unseen else ()

    @property
    def other_means(self) -> tuple[str, ...]:
        """Names in `MEAN_IOUS` whose scores differ from "mIoU" on any dataset."""
        return tuple(
            metric
            for metric in MEAN_IOUS.values()
            if any(abs(self.score(name, metric) - self.score(name)) > _SAME for name in self.datasets)
        )

    def occurring(self, name: str) -> int | None:
        """Return the number of classes in a dataset's means with labeled pixels, or None without per-class scores."""
        scores = self.results[name].get(TASK, {})
        keys = [f"{CLASS_ACCURACY}{one}" for one in self.datasets[name].classes]
        accuracies = [scores[key] for key in keys if key in scores]
        return sum(not math.isnan(value) for value in accuracies) if accuracies else None

    def class_count(self, name: str) -> str:
        """Format the number of classes that occur in a dataset, e.g. "10 of 19", or "19" if unknown."""
        occurring, classes = self.occurring(name), len(self.datasets[name].classes)
        return str(classes) if occurring is None else f"{occurring} of {classes}"

    def counted_as_zero(self, name: str) -> int:
        """Count the classes whose IoU is 0 because they are predicted but never labeled."""
        scores, classes = self.results[name].get(TASK, {}), self.datasets[name].classes
        absent = [one for one in classes if math.isnan(scores.get(f"{CLASS_ACCURACY}{one}", 0.0))]
        return sum(not math.isnan(scores.get(f"{CLASS_IOU}{one}", math.nan)) for one in absent)

    def score(self, name: str, metric: str = "mIoU") -> float:
        """Return a score on a dataset in percent, or NaN if it is missing."""
        task, key = (PANOPTIC_METRICS | _SPLIT_QUALITIES).get(metric, (TASK, metric))
        scores, scored = self.results[name].get(task, {}), self.datasets[name]
        if key in MEAN_IOUS.values() and key not in scores:  # written by an earlier version
            is_same = key == MEAN_IOUS[scored.absent_classes] or self.occurring(name) == len(scored.classes)
            return self.score(name) if is_same else math.nan
        return float(scores.get(key, math.nan))

    def means(self) -> dict[str, dict[str, float]]:
        """Return the means in percent by metric, for each group of targets and, under `MEAN`, for all targets."""
        stored = {metric for tasks in self.results.values() for metric in tasks.get(TASK, {})}
        metrics = dict.fromkeys((*self.metrics, *(metric for metric in MEAN_IOUS.values() if metric in stored)))
        return {
            group: {metric: self._mean(names, metric) for metric in metrics} for group, names in self._groups().items()
        }

    def row(self, metric: str = "mIoU") -> dict[str, float]:
        """Return a table row as a mapping from heading to score in percent, or NaN for a missing score.

        The columns are every target, the mean of each group after its last target, the mean of all targets if there are
        several, and the source datasets. Of a corruption in several severities, only the mean is a column.
        """
        cells: dict[str, float] = {}
        groups = self._groups()
        for name in self.targets:
            scored = self.datasets[name]
            if len(groups.get(scored.group, ())) < 2 or not parse_corruption(name):
                cells[scored.heading] = self.score(name, metric)
            if scored.group and groups[scored.group][-1] == name:
                cells[f"{MEAN} of {scored.group}"] = self._mean(groups[scored.group], metric)
        if len(self.targets) > 1:
            cells[MEAN] = self._mean(self.targets, metric)
        return cells | {f"source: {self.datasets[name].heading}": self.score(name, metric) for name in self.sources}

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in self.targets:
            if self.datasets[name].group:
                groups.setdefault(self.datasets[name].group, []).append(name)
        return groups | {MEAN: list(self.targets)}

    def _mean(self, names: Sequence[str], metric: str) -> float:
        return sum(self.score(name, metric) for name in names) / len(names) if names else math.nan


def describe_occurring(counts: Iterable[int], total: int) -> str:
    """Describe how many classes are labeled: "10 of 19 classes occur", or "9 to 10 of 19" if datasets differ."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low if low == high else f'{low} to {high}'} of {total} classes occur"


def describe_classes(report: Report) -> str:
    """Describe the class counts: "10 of 19 classes occur", a list if datasets differ, or "19 classes" if unknown."""
    counts = {scored.heading: report.class_count(name) for name, scored in report.datasets.items()}
    if len(set(counts.values())) > 1:
        return "classes that occur: " + ", ".join(f"{heading} {count}" for heading, count in counts.items())
    (count,) = set(counts.values()) or {"0"}
    return f"{count} classes" + (" occur" if " of " in count else "")


def make_report(cfg: CfgNode, results: Results, weights: ScoredWeights) -> Report:
    """Make a report from the scores on DATASETS.TEST and the effective config."""
    targets = [name for name in results if not is_source(cfg, name)]
    headings = short_names(targets)
    group_of = {name: group for group, members in domain_groups(targets).items() for name in members}
    classes = {name: scored_classes(cfg, name) for name in results}
    datasets = {
        name: ScoredDataset(
            heading=headings.get(name, name),
            is_source=name not in targets,
            group=group_of.get(name, ""),
            protocol=protocol_of(cfg, name).name,
            classes=tuple(classes[name].names[class_id] for class_id in classes[name].scored),
            absent_classes=absent_rule(cfg, name),
            unseen=tuple(classes[name].names[class_id] for class_id in classes[name].unseen),
        )
        for name in results
    }
    return Report(describe_run(cfg, weights), datasets, results)


def describe_run(cfg: CfgNode, weights: ScoredWeights) -> RunMetadata:
    """Collect the metadata of a run during its evaluation."""

    def hash_without(*keys: str) -> str:
        settings = {key: value for key, value in flat_settings(cfg).items() if key not in keys}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    return RunMetadata(
        method=method_name(cfg.OUTPUT_DIR),
        seed=cfg.SEED,
        trained_on=tuple(cfg.DATASETS.TRAIN),
        weights=weights,
        evaluator=cfg.TEST.EVALUATOR,
        config_hash=hash_without("OUTPUT_DIR"),
        method_hash=hash_without(*_NOT_OF_THE_METHOD),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "famix": famix.__version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def method_name(output_dir: str) -> str:
    """Return the name of a method, e.g. "famix" for output/famix, output/famix/seed2 and output/famix_seed2."""
    for part in reversed(Path(output_dir).resolve().parts):
        name = re.sub(r"[_.-]*seed[_=-]?\d+$", "", part)
        if name:
            return name
    return output_dir
