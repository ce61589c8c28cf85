"""Scores of one run on all its datasets, with the settings needed to compare them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from famix.data.domains import domain_groups, is_source, short_names
from famix.evaluation.counting.scores import MEAN_IOUS, SKIP
from famix.evaluation.evaluators import absent_rule, scored_classes
from famix.evaluation.protocols.protocol import protocol_of
from famix.reports.run_metadata import RunMetadata, ScoredWeights, describe_run

__all__ = [
    "CLASS_ACCURACY",
    "CLASS_IOU",
    "MEAN",
    "METRICS",
    "PANOPTIC_METRICS",
    "TASK",
    "Report",
    "Results",
    "ScoredDataset",
    "count_occurring",
    "describe_classes",
    "describe_occurring",
    "make_report",
]

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Dataset -> task -> metric -> percent."""

METRICS = ("mIoU", "fwIoU", "mACC", "pACC")
"""Scores over all classes of the task "sem_seg"."""

PANOPTIC_METRICS = {
    **{f"{name}{kind}": ("panoptic_seg", f"{name}{suffix}")
       for kind, suffix in (("", ""), (" things", "_th"), (" stuff", "_st")) for name in ("PQ", "SQ", "RQ")},
    "mask AP": ("segm", "AP"),
}  # fmt: skip
"""Score of panoptic models -> task and metric in the results."""

MEAN = "mean"
"""Name of the mean over all targets."""

TASK = "sem_seg"
"""Task of the results that a report shows."""

CLASS_IOU, CLASS_ACCURACY = "IoU-", "ACC-"
"""Prefixes of scores per class; only a class with labelled pixels has an accuracy."""

_SAME = 1e-9  # percent; smaller differences between means are rounding


@dataclass(frozen=True)
class ScoredDataset:
    """Evaluation settings of a dataset.

    Attributes:
        heading: short name for tables.
        is_source: True if it shows the training domain; it then does not enter the mean.
        group: dataset family that it is a condition of, e.g. "acdc"; "" for a single dataset.
        protocol: name of the evaluation protocol.
        classes: names of the classes in the means.
        absent_classes: rule of mIoU for classes that are predicted but never labelled, "skip" or "zero".
    """

    heading: str
    is_source: bool
    group: str
    protocol: str
    classes: tuple[str, ...]
    absent_classes: str = SKIP


@dataclass(frozen=True)
class Report:
    """Scores and metadata of one run.

    Attributes:
        run: metadata of the run.
        datasets: name -> evaluation settings, in the order of DATASETS.TEST.
        results: name -> task -> metric -> percent, for the same names.
    """

    run: RunMetadata
    datasets: Mapping[str, ScoredDataset]
    results: Results

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the datasets in the mean."""
        return tuple(name for name, scored in self.datasets.items() if not scored.is_source)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the datasets that show the source domain."""
        return tuple(name for name, scored in self.datasets.items() if scored.is_source)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores over all classes, with the panoptic ones if a dataset has them."""
        tasks = {task for scores in self.results.values() for task in scores}
        panoptic = (metric for metric, (task, _) in PANOPTIC_METRICS.items() if task in tasks)
        return (METRICS[0], *self.other_means, *METRICS[1:], *panoptic)

    @property
    def headlines(self) -> tuple[str, ...]:
        """Names of the scores that get a row each: PQ if there is one, and mIoU by either rule."""
        return tuple(metric for metric in ("PQ", "mIoU", *MEAN_IOUS.values()) if metric in self.metrics)

    @property
    def other_means(self) -> tuple[str, ...]:
        """Names of `MEAN_IOUS` that differ from "mIoU" on some dataset."""
        return tuple(
            metric
            for metric in MEAN_IOUS.values()
            if any(abs(self.score(name, metric) - self.score(name)) > _SAME for name in self.datasets)
        )

    def occurring(self, name: str) -> int | None:
        """Count the classes in a dataset's means that have labelled pixels; None if unknown."""
        return count_occurring(self.results[name].get(TASK, {}), self.datasets[name].classes)

    def class_count(self, name: str) -> str:
        """Format the number of classes that occur in a dataset, e.g. "10 of 19"; "19" if unknown."""
        occurring, classes = self.occurring(name), len(self.datasets[name].classes)
        return str(classes) if occurring is None else f"{occurring} of {classes}"

    def counted_as_zero(self, name: str) -> int:
        """Count the classes in a dataset's mIoU that are 0 because they are predicted but never labelled."""
        scores, classes = self.results[name].get(TASK, {}), self.datasets[name].classes
        absent = [one for one in classes if math.isnan(scores.get(f"{CLASS_ACCURACY}{one}", 0.0))]
        return sum(not math.isnan(scores.get(f"{CLASS_IOU}{one}", math.nan)) for one in absent)

    def score(self, name: str, metric: str = "mIoU") -> float:
        """Return a score of a dataset in percent; NaN if it is missing."""
        task, key = PANOPTIC_METRICS.get(metric, (TASK, metric))
        scores, scored = self.results[name].get(task, {}), self.datasets[name]
        if key in MEAN_IOUS.values() and key not in scores:  # written by an earlier version
            is_same = key == MEAN_IOUS[scored.absent_classes] or self.occurring(name) == len(scored.classes)
            return self.score(name) if is_same else math.nan
        return float(scores.get(key, math.nan))

    def mean(self, names: Sequence[str], metric: str = "mIoU") -> float:
        """Return the mean of a score over datasets, in percent; NaN without datasets or if one lacks the score."""
        return sum(self.score(name, metric) for name in names) / len(names) if names else math.nan

    def means(self) -> dict[str, dict[str, float]]:
        """Return the means over each group of targets and, as `MEAN`, over all targets: group -> metric -> percent."""
        groups: dict[str, list[str]] = {}
        for name in self.targets:
            if self.datasets[name].group:
                groups.setdefault(self.datasets[name].group, []).append(name)
        stored = {metric for tasks in self.results.values() for metric in tasks.get(TASK, {})}
        metrics = dict.fromkeys((*self.metrics, *(metric for metric in MEAN_IOUS.values() if metric in stored)))
        groups[MEAN] = list(self.targets)
        return {group: {metric: self.mean(names, metric) for metric in metrics} for group, names in groups.items()}

    def row(self, metric: str = "mIoU") -> dict[str, float]:
        """Return a row of a table.

        Args:
            metric: name of a score.

        Returns:
            Heading -> score in percent, NaN for a missing one: each target, the mean of a group after its last
            target, the mean of all targets if there are several, and the source's datasets.
        """
        cells: dict[str, float] = {}
        last_of_group = {self.datasets[name].group: name for name in self.targets}
        for name in self.targets:
            scored = self.datasets[name]
            cells[scored.heading] = self.score(name, metric)
            if scored.group and last_of_group[scored.group] == name:
                members = [one for one in self.targets if self.datasets[one].group == scored.group]
                cells[f"{MEAN} of {scored.group}"] = self.mean(members, metric)
        if len(self.targets) > 1:
            cells[MEAN] = self.mean(self.targets, metric)
        return cells | {f"source: {self.datasets[name].heading}": self.score(name, metric) for name in self.sources}


def count_occurring(scores: Mapping[str, float], classes: Sequence[str]) -> int | None:
    """Count the classes that have labelled pixels.

    Args:
        scores: metric -> percent of the task "sem_seg".
        classes: names of the classes to count.

    Returns:
        Number of classes with an accuracy; None if the scores have no accuracies per class.
    """
    accuracies = [scores[f"{CLASS_ACCURACY}{name}"] for name in classes if f"{CLASS_ACCURACY}{name}" in scores]
    return sum(not math.isnan(value) for value in accuracies) if accuracies else None


def describe_occurring(counts: Iterable[int], total: int) -> str:
    """Describe class counts, e.g. "10 of 19 classes occur", or "9 to 10 of 19" if datasets differ.

    Args:
        counts: number of classes with labelled pixels for each dataset.
        total: number of classes.
    """
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
    """Make the report of an evaluation.

    Args:
        cfg: the effective config.
        results: dataset of DATASETS.TEST -> task -> metric -> percent.
        weights: the scored weights.
    """
    headings = short_names(list(results))
    targets = [name for name in results if not is_source(cfg, name)]
    group_of = {name: group for group, members in domain_groups(targets).items() for name in members}
    datasets = {
        name: ScoredDataset(
            heading=headings[name],
            is_source=name not in targets,
            group=group_of.get(name, ""),
            protocol=protocol_of(cfg, name).name,
            classes=tuple(MetadataCatalog.get(name).stuff_classes[index] for index in scored_classes(cfg, name)),
            absent_classes=absent_rule(cfg, name),
        )
        for name in results
    }
    return Report(describe_run(cfg, weights), datasets, results)
