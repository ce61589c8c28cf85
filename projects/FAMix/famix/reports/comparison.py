"""Runs compared: those that differ in nothing but the seed are one row, and only what was scored alike shares a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from famix.evaluation.counting.scores import MEAN_IOUS, SKIP, ZERO
from famix.reports.report import Report
from famix.reports.report_text import describe_classes
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

__all__ = ["GROUPINGS", "Comparison", "Group", "compare_reports", "require_baseline"]

GROUPINGS = ("config", "method")
"""What makes runs one group: an equal config but for the seeds, or an equal name."""

Scoring = tuple[tuple[str, str, tuple[str, ...], bool, str], ...]


@dataclass(frozen=True)
class Group:
    """Runs of several seeds.

    Attributes:
        name: the method's; with the weights or the config's hash behind it where others of a table share it.
        weights: which were scored, see `ScoredWeights.label`.
        reports: seed -> report.
        metric: name of the score that is compared.
    """

    name: str
    weights: str
    reports: Mapping[int, Report]
    metric: str = "mIoU"

    def values(self, heading: str) -> list[float]:
        """Scores under a heading of `Report.row`, seed by seed."""
        return [self._score(seed, heading) for seed in self.reports]

    def gains(self, baseline: "Group", heading: str) -> list[float]:
        """Differences in points to a baseline, for every seed that both have."""
        common = [seed for seed in self.reports if seed in baseline.reports]
        return [self._score(seed, heading) - baseline._score(seed, heading) for seed in common]

    def gain(self, baseline: "Group", heading: str) -> float:
        """Difference in points to a baseline, of the means over all seeds."""
        return fmean(self.values(heading)) - fmean(baseline.values(heading))

    def _score(self, seed: int, heading: str) -> float:
        return self.reports[seed].row(self.metric)[heading]


@dataclass(frozen=True)
class Comparison:
    """Groups whose scores may be compared: of the same data sets, by the same protocols, over the same classes.

    Attributes:
        groups: in the order of their first run.
    """

    groups: tuple[Group, ...]

    @property
    def example(self) -> Report:
        """One of the reports, for all that they share."""
        return next(iter(self.groups[0].reports.values()))

    @property
    def metric(self) -> str:
        """Name of the score that is compared."""
        return self.groups[0].metric

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the scores."""
        return tuple(self.example.row())

    def group(self, name: str) -> Group | None:
        """The group of that name, if it is here."""
        return next((group for group in self.groups if group.name == name), None)

    def other_means(self) -> "tuple[Comparison, ...]":
        """Of mIoU: the same groups compared by the mean of another rule for absent classes, where it differs."""
        if self.metric != "mIoU":
            return ()
        reports = [report for group in self.groups for report in group.reports.values()]
        names = dict.fromkeys(name for report in reports for name in report.other_means)
        return tuple(Comparison(tuple(replace(group, metric=name) for group in self.groups)) for name in names)

    def scored_how(self) -> str:
        """The protocols and classes in words, and what is made of absent classes where that makes a difference."""
        scored = self.example.data_sets
        protocols = {one.protocol for one in scored.values()}
        if len(protocols) == 1:
            words = f"protocol {protocols.pop()}"
        else:
            words = "protocols " + ", ".join(f"{one.heading} {one.protocol}" for one in scored.values())
        return "; ".join([words, describe_classes(self.example), *self._absent()])

    def _absent(self) -> list[str]:
        words = {SKIP: "are left out", ZERO: "count as 0"}
        by_metric = {MEAN_IOUS[rule]: text for rule, text in words.items()}
        rules = {one.absent_classes for one in self.example.data_sets.values()}
        if self.metric in by_metric:
            text = by_metric[self.metric]
        elif self.other_means() and len(rules) == 1:
            text = words[rules.pop()]
        else:
            return []
        return [f"classes that are predicted but nowhere labelled {text}"]


def compare_reports(reports: Mapping[str, Report], by: str = "config", metric: str = "mIoU") -> list[Comparison]:
    """Group runs.

    Args:
        reports: where it was read -> report.
        by: one of GROUPINGS.
        metric: name of the score to compare, one of `Report.metrics`.

    Returns:
        One comparison for every way of scoring. Runs of one group are never scored differently: they are two groups,
        of two comparisons.

    Raises:
        ConfigError: two runs of a group have the same seed, or a run has no such score.
    """
    tables: dict[Scoring, dict[tuple[str, str], dict[int, str]]] = {}
    for path, report in reports.items():
        if metric not in (*report.metrics, *MEAN_IOUS.values()):
            raise ConfigError(f"{path} has no score '{metric}', only {', '.join(report.metrics)}")
        run = report.run
        key = run.method_hash if by == "config" else run.method, run.weights.label
        seeds = tables.setdefault(_scoring(report, metric), {}).setdefault(key, {})
        if run.seed in seeds:
            raise ConfigError(
                f"{seeds[run.seed]} and {path} are runs of '{run.method}' with the same seed, {run.seed}; leave one out, or "
                "say which is which with SEED when they are scored"
            )
        seeds[run.seed] = path
    return [
        Comparison(_named([{seed: reports[path] for seed, path in seeds.items()} for seeds in groups.values()], metric))
        for groups in tables.values()
    ]


def require_baseline(comparisons: Sequence[Comparison], name: str) -> None:
    """Raise unless some comparison has a group of that name.

    Raises:
        ConfigError: none has.
    """
    names = [group.name for comparison in comparisons for group in comparison.groups]
    if name not in names:
        raise ConfigError(f"no run is called '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}")


def _scoring(report: Report, metric: str) -> Scoring:
    """What must be equal for two scores, and two means, to be comparable."""
    return tuple(
        sorted(
            (name, one.protocol, one.classes, one.is_source, _rule(report, name, metric))
            for name, one in report.data_sets.items()
        )
    )


def _rule(report: Report, name: str, metric: str) -> str:
    """The rule for absent classes; none where all classes occur, or the metric names the rule itself."""
    scored = report.data_sets[name]
    return (
        "" if metric in MEAN_IOUS.values() or report.occurring(name) == len(scored.classes) else scored.absent_classes
    )


def _named(groups: Sequence[Mapping[int, Report]], metric: str) -> tuple[Group, ...]:
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
