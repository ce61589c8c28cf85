"""The scores of a run on all its data sets, with what one must know to compare them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from famix.data.domains import domain_groups, is_source, short_names
from famix.evaluation.counting.scores import ABSENT_CLASSES, MEAN_IOUS, SKIP, ZERO
from famix.evaluation.evaluators import absent_rule, scored_classes
from famix.evaluation.protocols.protocol import protocol_of
from famix.reports.run_metadata import RunFacts, ScoredWeights, describe_run, from_plain

__all__ = [
    "CLASS_ACCURACY",
    "MEAN",
    "METRICS",
    "PANOPTIC_METRICS",
    "TASK",
    "Report",
    "Results",
    "ScoredDataset",
    "count_occurring",
    "describe_occurring",
    "make_report",
]

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Data set -> task -> metric -> percent."""

METRICS = ("mIoU", "fwIoU", "mACC", "pACC")
"""Over all classes, of the task "sem_seg"."""

PANOPTIC_METRICS = {
    **{f"{name}{kind}": ("panoptic_seg", f"{name}{suffix}")
       for kind, suffix in (("", ""), (" things", "_th"), (" stuff", "_st")) for name in ("PQ", "SQ", "RQ")},
    "mask AP": ("segm", "AP"),
}  # fmt: skip
"""Name of a score of panoptic models -> task and metric in the results."""

MEAN = "mean"
"""Name of the mean over all targets among the means of a report."""

TASK = "sem_seg"
"""The task of the results that is reported on."""

CLASS_ACCURACY = "ACC-"
"""What names of accuracies begin with; a class has one if it has labelled pixels."""

_SAME = 1e-9  # percent; means that differ by less are one


@dataclass(frozen=True)
class ScoredDataset:
    """How a data set was scored.

    Attributes:
        heading: short name for tables.
        is_source: it shows the domain that was trained on, and is no part of the mean.
        group: whole that it is a condition of, e.g. "acdc"; "" where it stands alone.
        protocol: name of the evaluation protocol.
        classes: names of the classes that the means are over.
        absent_classes: what those of them are in mIoU that are predicted but nowhere labelled: "skip" or "zero".
    """

    heading: str
    is_source: bool
    group: str
    protocol: str
    classes: tuple[str, ...]
    absent_classes: str = SKIP


@dataclass(frozen=True)
class Report:
    """Scores and facts of one run.

    Attributes:
        run: what was run.
        data_sets: name -> how it was scored, in the order of DATASETS.TEST.
        results: name -> task -> metric -> percent, for the same names.
    """

    run: RunFacts
    data_sets: Mapping[str, ScoredDataset]
    results: Results

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the data sets that the mean is over."""
        return tuple(name for name, scored in self.data_sets.items() if not scored.is_source)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the data sets that show the source domain."""
        return tuple(name for name, scored in self.data_sets.items() if scored.is_source)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores over all classes; those of panoptic models where a data set has them.

        The mean IoU by the other rule for absent classes is among them where it differs.
        """
        tasks = {task for scores in self.results.values() for task in scores}
        mean, *others = METRICS
        return (
            mean,
            *self.other_means,
            *others,
            *(metric for metric, (task, _) in PANOPTIC_METRICS.items() if task in tasks),
        )

    @property
    def headlines(self) -> tuple[str, ...]:
        """Names of the scores that a row of a table is made of: mIoU by either rule, and PQ where there is one."""
        return tuple(metric for metric in ("PQ", "mIoU", *MEAN_IOUS.values()) if metric in self.metrics)

    @property
    def other_means(self) -> tuple[str, ...]:
        """Names of mean IoUs, of MEAN_IOUS, that differ from "mIoU" on a data set."""
        return tuple(
            metric
            for metric in MEAN_IOUS.values()
            if any(abs(self.score(name, metric) - self.score(name)) > _SAME for name in self.data_sets)
        )

    def occurring(self, name: str) -> int | None:
        """How many of the classes of a data set's means have labelled pixels; None where nothing says so."""
        return count_occurring(self.results[name].get(TASK, {}), self.data_sets[name].classes)

    def counted_as_zero(self, name: str) -> int:
        """How many classes are in a data set's mean IoU as 0 because they are predicted but nowhere labelled."""
        scores, classes = self.results[name].get(TASK, {}), self.data_sets[name].classes
        absent = [one for one in classes if math.isnan(scores.get(f"{CLASS_ACCURACY}{one}", 0.0))]
        return sum(not math.isnan(scores.get(f"IoU-{one}", math.nan)) for one in absent)

    def score(self, name: str, metric: str = "mIoU") -> float:
        """A score of a data set in percent; NaN where it has none of that name."""
        task, key = PANOPTIC_METRICS.get(metric, (TASK, metric))
        scores, scored = self.results[name].get(task, {}), self.data_sets[name]
        if key in MEAN_IOUS.values() and key not in scores:  # as in files of before
            is_same = key == MEAN_IOUS[scored.absent_classes] or self.occurring(name) == len(scored.classes)
            return self.score(name) if is_same else math.nan
        return float(scores.get(key, math.nan))

    def means(self) -> dict[str, dict[str, float]]:
        """Means over data sets, each counted once, in percent.

        Returns:
            Name of a group of targets, or `MEAN` for all targets -> metric -> mean. NaN where a data set lacks the
            score.
        """
        groups: dict[str, list[str]] = {}
        for name in self.targets:
            if self.data_sets[name].group:
                groups.setdefault(self.data_sets[name].group, []).append(name)
        return {group: self._mean_scores(names) for group, names in {**groups, MEAN: list(self.targets)}.items()}

    def row(self, metric: str = "mIoU") -> dict[str, float]:
        """What stands in a row of a table.

        Args:
            metric: name of a score.

        Returns:
            Heading -> score in percent, NaN where there is none: every target, the mean of each group behind its last
            one, the mean of all targets where there are several, the data sets of the source.
        """
        cells: dict[str, float] = {}
        last_of_group = {self.data_sets[name].group: name for name in self.targets}
        for name in self.targets:
            scored = self.data_sets[name]
            cells[scored.heading] = self.score(name, metric)
            if scored.group and last_of_group[scored.group] == name:
                members = [one for one in self.targets if self.data_sets[one].group == scored.group]
                cells[f"{MEAN} of {scored.group}"] = self._mean(members, metric)
        if len(self.targets) > 1:
            cells[MEAN] = self._mean(self.targets, metric)
        return cells | {f"source: {self.data_sets[name].heading}": self.score(name, metric) for name in self.sources}

    def to_json(self) -> dict[str, Any]:
        """All but the results, as `from_json` takes it."""
        return {
            "run": asdict(self.run),
            "data_sets": {name: asdict(scored) for name, scored in self.data_sets.items()},
            "means": self.means(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], results: Results) -> "Report":
        """A report as `to_json` wrote it, whatever numbers it says are means.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it has another form.
        """
        weights = from_plain(ScoredWeights, plain["run"]["weights"])
        run = from_plain(RunFacts, plain["run"], weights=weights)
        for name, scored in plain["data_sets"].items():
            if scored.get("absent_classes", SKIP) not in ABSENT_CLASSES:
                raise ValueError(f"absent_classes {scored['absent_classes']!r} of {name}")
        before = {"absent_classes": ZERO if run.evaluator == "cityscapes" else SKIP}  # of files that do not say it
        data_sets = {
            name: from_plain(ScoredDataset, {**before, **scored}) for name, scored in plain["data_sets"].items()
        }
        if data_sets.keys() != results.keys():
            raise ValueError(f"facts of {sorted(data_sets)}, but scores of {sorted(results)}")
        return cls(run, data_sets, results)

    def _mean_scores(self, names: Sequence[str]) -> dict[str, float]:
        scored = {metric for tasks in self.results.values() for metric in tasks.get(TASK, {})}
        metrics = dict.fromkeys((*self.metrics, *(metric for metric in MEAN_IOUS.values() if metric in scored)))
        return {metric: self._mean(names, metric) for metric in metrics}

    def _mean(self, names: Sequence[str], metric: str) -> float:
        values = [self.score(name, metric) for name in names]
        return sum(values) / len(values) if values else math.nan


def count_occurring(scores: Mapping[str, float], classes: Sequence[str]) -> int | None:
    """Count the classes that have labelled pixels.

    Args:
        scores: metric -> percent, of the task "sem_seg".
        classes: names of the classes to count.

    Returns:
        Of how many the scores have an accuracy; None where they have no accuracies of classes.
    """
    accuracies = [scores[f"{CLASS_ACCURACY}{name}"] for name in classes if f"{CLASS_ACCURACY}{name}" in scores]
    return sum(not math.isnan(value) for value in accuracies) if accuracies else None


def describe_occurring(counts: Iterable[int], total: int) -> str:
    """How many classes occur, e.g. "10 of 19 classes occur", or "9 to 10 of 19" where datasets differ.

    Args:
        counts: classes with labelled pixels, of every dataset.
        total: number of classes.
    """
    low, high = min(counts := list(counts)), max(counts)
    return f"{low if low == high else f'{low} to {high}'} of {total} classes occur"


def make_report(cfg: CfgNode, results: Results, weights: ScoredWeights) -> Report:
    """Report on what was just scored.

    Args:
        cfg: the effective config.
        results: data set of DATASETS.TEST -> task -> metric -> percent.
        weights: what was scored.
    """
    names = list(results)
    headings = short_names(names)
    targets = [name for name in names if not is_source(cfg, name)]
    group_of = {name: group for group, members in domain_groups(targets).items() for name in members}
    return Report(
        describe_run(cfg, weights),
        {
            name: ScoredDataset(
                heading=headings[name],
                is_source=name not in targets,
                group=group_of.get(name, ""),
                protocol=protocol_of(cfg, name).name,
                classes=tuple(MetadataCatalog.get(name).stuff_classes[index] for index in scored_classes(cfg, name)),
                absent_classes=absent_rule(cfg, name),
            )
            for name in names
        },
        results,
    )
