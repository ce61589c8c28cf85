"""Comparison of runs: runs that differ only in their seed form a group, and groups scored alike share a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import scipy.stats

from famix.evaluation.counting.scores import MEAN_IOUS, SKIP, ZERO
from famix.reports.report import Report, describe_classes
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

__all__ = ["GROUPINGS", "Comparison", "Group", "compare_reports", "paired_p", "require_baseline"]

GROUPINGS = ("config", "method")
"""Ways to group runs: by an equal config without seeds, or by an equal name."""

Scoring = tuple[tuple[str, str, tuple[str, ...], bool, str], ...]


@dataclass(frozen=True)
class Group:
    """Runs of several seeds.

    Attributes:
        name: the method, followed by the weights or the hash of the config if other groups share it.
        weights: label of the scored weights.
        reports: seed -> report.
        metric: name of the compared score.
    """

    name: str
    weights: str
    reports: Mapping[int, Report]
    metric: str = "mIoU"

    @property
    def seeds(self) -> str:
        """The seeds as text."""
        return ", ".join(map(str, self.reports))

    def values(self, heading: str) -> list[float]:
        """Return the scores under a heading of `Report.row`, by seed."""
        return [report.row(self.metric)[heading] for report in self.reports.values()]

    def gains(self, baseline: "Group", heading: str) -> list[float]:
        """Return the differences to a baseline in points, for every common seed."""
        common = [seed for seed in self.reports if seed in baseline.reports]
        rows = [[group.reports[seed].row(self.metric)[heading] for group in (self, baseline)] for seed in common]
        return [own - other for own, other in rows]

    def gain(self, baseline: "Group", heading: str) -> float:
        """Return the difference to a baseline in points, between the means over all seeds."""
        return fmean(self.values(heading)) - fmean(baseline.values(heading))


@dataclass(frozen=True)
class Comparison:
    """Groups with equal evaluation settings: datasets, protocols, classes and roles.

    Attributes:
        groups: in the order of their first run.
    """

    groups: tuple[Group, ...]

    @property
    def example(self) -> Report:
        """One of the reports."""
        return next(iter(self.groups[0].reports.values()))

    @property
    def metric(self) -> str:
        """Name of the compared score."""
        return self.groups[0].metric

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the scores."""
        return tuple(self.example.row())

    def group(self, name: str) -> Group | None:
        """Return the group of a name; None if there is none."""
        return next((group for group in self.groups if group.name == name), None)

    def other_means(self) -> "tuple[Comparison, ...]":
        """Return the comparisons by the mean IoU with the other rule for absent classes, where it differs."""
        if self.metric != "mIoU":
            return ()
        reports = [report for group in self.groups for report in group.reports.values()]
        names = dict.fromkeys(name for report in reports for name in report.other_means)
        return tuple(Comparison(tuple(replace(group, metric=name) for group in self.groups)) for name in names)

    def describe(self) -> str:
        """Describe the protocols, the classes and, where it matters, the rule for absent classes."""
        scored = self.example.datasets
        protocols = {one.protocol for one in scored.values()}
        if len(protocols) == 1:
            words = f"protocol {protocols.pop()}"
        else:
            words = "protocols " + ", ".join(f"{one.heading} {one.protocol}" for one in scored.values())
        words = f"{words}; {describe_classes(self.example)}"
        by_rule = {SKIP: "are left out", ZERO: "count as 0"}
        by_metric = {MEAN_IOUS[rule]: text for rule, text in by_rule.items()}
        rules = {one.absent_classes for one in scored.values()}
        if self.metric not in by_metric and self.other_means() and len(rules) == 1:
            by_metric[self.metric] = by_rule[rules.pop()]
        if self.metric in by_metric:
            words += f"; classes that are predicted but never labelled {by_metric[self.metric]}"
        return words


def compare_reports(reports: Mapping[str, Report], by: str = "config", metric: str = "mIoU") -> list[Comparison]:
    """Group runs.

    Args:
        reports: path -> report.
        by: one of GROUPINGS.
        metric: name of the compared score, one of `Report.metrics`.

    Returns:
        One comparison per set of evaluation settings. Runs with different settings are never in one group.

    Raises:
        ConfigError: if two runs of a group have the same seed, or a run lacks the score.
    """
    tables: dict[Scoring, dict[tuple[str, str], dict[int, str]]] = {}
    for path, report in reports.items():
        if metric not in (*report.metrics, *MEAN_IOUS.values()):
            raise ConfigError(
                f"--metric must be a score of '{path}', got '{metric}'. Choose from {', '.join(report.metrics)}."
            )
        run = report.run
        key = run.method_hash if by == "config" else run.method, run.weights.label
        seeds = tables.setdefault(_scoring(report, metric), {}).setdefault(key, {})
        if run.seed in seeds:
            raise ConfigError(
                f"runs of '{run.method}' must have different seeds, got {run.seed} in '{seeds[run.seed]}' and '{path}'. "
                "Leave one out, or set SEED when they are scored."
            )
        seeds[run.seed] = path
    return [
        Comparison(_named([{seed: reports[path] for seed, path in seeds.items()} for seeds in groups.values()], metric))
        for groups in tables.values()
    ]


def require_baseline(comparisons: Sequence[Comparison], name: str) -> None:
    """Check that some comparison has a group of that name.

    Raises:
        ConfigError: if there is none.
    """
    names = [group.name for comparison in comparisons for group in comparison.groups]
    if name not in names:
        raise ConfigError(
            f"--baseline must be the name of a run, got '{name}'.{did_you_mean(name, names)} Choose from {', '.join(names)}."
        )


def paired_p(gains: Sequence[float]) -> float:
    """Compute p of the two-sided paired t-test.

    Args:
        gains: differences of the pairs.

    Returns:
        p; NaN for fewer than two pairs or equal differences.
    """
    if len(gains) < 2 or any(map(math.isnan, gains)) or stdev(gains) == 0:
        return math.nan
    return float(scipy.stats.ttest_1samp(gains, 0.0).pvalue)  # of the differences: equals the paired test


def _scoring(report: Report, metric: str) -> Scoring:
    """Return the evaluation settings that two scores and two means must share to be comparable."""
    settings = []
    for name, one in report.datasets.items():
        # The rule for absent classes matters only if some are absent and the metric does not fix it.
        fixed = metric in MEAN_IOUS.values() or report.occurring(name) == len(one.classes)
        settings.append((name, one.protocol, one.classes, one.is_source, "" if fixed else one.absent_classes))
    return tuple(sorted(settings))


def _named(groups: Sequence[Mapping[int, Report]], metric: str) -> tuple[Group, ...]:
    """Name each group by its method, followed by the weights and the hash of the config where needed."""
    runs = [next(iter(reports.values())).run for reports in groups]
    methods = [run.method for run in runs]
    with_weights = [(run.method, run.weights.label) for run in runs]
    named = []
    for reports, run in zip(groups, runs, strict=True):
        label = run.weights.label
        if methods.count(run.method) == 1:
            name = run.method
        elif with_weights.count((run.method, label)) == 1:
            name = f"{run.method} ({label})"
        else:
            name = f"{run.method} ({label}, {run.method_hash[:6]})"
        named.append(Group(name, label, dict(sorted(reports.items())), metric))
    return tuple(named)
