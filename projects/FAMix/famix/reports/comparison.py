"""Comparison of runs. Runs that differ only in seed form a group, and groups with equal settings share a table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from famix.evaluation.counting.scores import MEAN_IOUS, SEEN, SKIP, UNSEEN, ZERO
from famix.reports.report import Report, describe_classes
from famix.reports.tables import best_places, csv_table, format_p, format_spread, paired_p, text_table
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

GROUPINGS = ("config", "method")  # ways to group runs: by equal configs without seeds, or by equal names


@dataclass(frozen=True)
class Group:
    """Runs of a method with different seeds."""

    name: str  # method, followed by the weights or the config hash if other groups share it
    weights: str  # label of the scored weights
    reports: Mapping[int, Report]  # seed -> report
    metric: str = "mIoU"

    @property
    def seeds(self) -> str:
        """Seeds as text."""
        return ", ".join(map(str, self.reports))

    def values(self, heading: str) -> list[float]:
        """Return the scores under a heading of `Report.row`, one per seed."""
        return [report.row(self.metric)[heading] for report in self.reports.values()]

    def gains(self, baseline: "Group", heading: str) -> list[float]:
        """Return the gains over a baseline in points: one per common seed or, without any, the gain of the means."""
        own, other = (dict(zip(one.reports, one.values(heading), strict=True)) for one in (self, baseline))
        paired = [own[seed] - other[seed] for seed in own if seed in other]
        return paired or [fmean(own.values()) - fmean(other.values())]


@dataclass
class Comparison:
    """Groups of runs with equal evaluation settings, in the order of their first runs.

    Attributes:
        metric: name of the compared score.
        example: first report, used for the settings that all reports share.
        headings: column headings of the scores.
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        self.metric = self.groups[0].metric
        self.example = next(iter(self.groups[0].reports.values()))
        self.headings = tuple(self.example.row())
        self.groups = tuple(
            replace(group, reports={seed: _with_headings_of(self.example, one) for seed, one in group.reports.items()})
            for group in self.groups
        )

    def other_means(self) -> "tuple[Comparison, ...]":
        """Return comparisons of the mIoU over seen and unseen classes, and under the other rule for absent classes.

        They exist where classes are unseen, and where the rules differ.
        """
        if self.metric != "mIoU":
            return ()
        reports = [report for group in self.groups for report in group.reports.values()]
        names = dict.fromkeys(name for report in reports for name in (*report.split_means, *report.other_means))
        return tuple(Comparison(tuple(replace(group, metric=name) for group in self.groups)) for name in names)

    def describe(self) -> str:
        """Describe the protocols, the classes and, where it matters, the rule for absent classes."""
        scored = self.example.datasets.values()
        protocols = {one.protocol for one in scored}
        if len(protocols) == 1:
            words = f"protocol {protocols.pop()}"
        else:
            words = "protocols " + ", ".join(f"{one.heading} {one.protocol}" for one in scored)
        words = f"{words}; {describe_classes(self.example)}"
        by_rule = {SKIP: "are left out", ZERO: "count as 0"}
        by_metric = {MEAN_IOUS[rule]: text for rule, text in by_rule.items()}
        rules = {one.absent_classes for one in scored}
        if any(one.metric in MEAN_IOUS.values() for one in self.other_means()) and len(rules) == 1:
            by_metric["mIoU"] = by_rule[rules.pop()]
        if self.metric in (SEEN, UNSEEN):
            kind = "without" if self.metric == UNSEEN else "with"
            words += f"; mean over the classes {kind} labels in training"
        if self.metric in by_metric:
            words += f"; classes that are predicted but never labeled {by_metric[self.metric]}"
        return words


def compare_reports(reports: Mapping[str, Report], by: str = "config", metric: str = "mIoU") -> list[Comparison]:
    """Group and compare runs.

    Args:
        reports: path -> report.
        by: way to group runs, one of GROUPINGS.
        metric: name of the compared score, one of `Report.metrics`.

    Returns:
        One comparison per set of evaluation settings. Runs with different settings never share a group.

    Raises:
        ConfigError: two runs in a group have the same seed, or a run lacks the score.
    """
    tables: dict[Any, dict[tuple[str, str], dict[int, str]]] = {}
    for path, report in reports.items():
        if metric not in (*report.metrics, *MEAN_IOUS.values()):
            raise ConfigError(
                f"--metric must be a score in '{path}', got '{metric}'. Choose from {', '.join(report.metrics)}."
            )
        run = report.run
        key = run.method_hash if by == "config" else run.method, run.weights.label
        seeds = tables.setdefault(_scoring(report, metric), {}).setdefault(key, {})
        if run.seed in seeds:
            raise ConfigError(
                f"Runs of a method need different seeds, but '{seeds[run.seed]}' and '{path}' of '{run.method}' both have seed "
                f"{run.seed}. Omit one of them, or set SEED when scoring them."
            )
        seeds[run.seed] = path
    return [
        Comparison(_named([{seed: reports[path] for seed, path in seeds.items()} for seeds in groups.values()], metric))
        for groups in tables.values()
    ]


def _with_headings_of(first: Report, report: Report) -> Report:
    """Return a report with the headings of another one. Earlier versions have stored shorter ones."""
    datasets = {
        name: replace(one, heading=first.datasets[name].heading, group=first.datasets[name].group)
        for name, one in report.datasets.items()
    }
    return replace(report, datasets=datasets)


def require_baseline(name: str | None, names: Iterable[str]) -> None:
    """Raise ConfigError unless a baseline is None or one of the compared names."""
    known = list(names)
    if name is not None and name not in known:
        raise ConfigError(f"--baseline must be one of {', '.join(known)}, got '{name}'.{did_you_mean(name, known)}")


def format_comparisons(comparisons: Sequence[Comparison], baseline: str | None = None) -> str:
    """Format each comparison in Markdown as a table of scores and a table of gains over the group `baseline`.

    A score is the mean ± standard deviation (n - 1) over seeds in percent. The best mean in a column is bold.
    """
    parts = []
    if len(comparisons) > 1:
        parts.append("Runs with different evaluation settings are in separate tables and cannot be compared.")
    for comparison in comparisons:
        for one in (comparison, *comparison.other_means()):
            parts += [f"{one.metric} in percent; {one.describe()}.", _format_scores(one)]
            reference = _find_group(one, baseline)
            if baseline is not None and reference is None:
                parts.append(f"{baseline} has no run with these evaluation settings.")
            elif reference is not None and len(one.groups) > 1:
                parts += [
                    f"Gains over {baseline} in points for the common seeds, and p-values of the two-sided paired t-test. "
                    "Without common seeds, the gain is the difference of the means.",
                    _format_gains(one, reference),
                ]
    return "\n\n".join(parts) + "\n"


def write_comparisons_csv(comparisons: Sequence[Comparison], baseline: str | None = None) -> str:
    """Format comparisons as CSV: one row per group and heading, all digits, and empty cells for missing numbers."""
    columns = ["method", "weights", "seeds", "scored", "metric", "data_set", "mean", "std", "runs"]
    rows = []
    for comparison in (one for first in comparisons for one in (first, *first.other_means())):
        reference = _find_group(comparison, baseline)
        for group in comparison.groups:
            for heading in comparison.headings:
                values = group.values(heading)
                facts = (group.name, group.weights, group.seeds, comparison.describe(), comparison.metric, heading,
                         fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))  # fmt: skip
                row: dict[str, Any] = dict(zip(columns, facts, strict=True))
                if reference is not None and group is not reference:
                    gains, pairs = group.gains(reference, heading), len(group.reports.keys() & reference.reports.keys())
                    row |= {
                        "gain": row["mean"] - fmean(reference.values(heading)),
                        "p": paired_p(gains),
                        "pairs": pairs,
                    }
                    row["paired_gain"] = fmean(gains) if pairs else math.nan
                rows.append(row)
    return csv_table([*columns, "gain", "paired_gain", "p", "pairs"], rows)


def _find_group(comparison: Comparison, name: str | None) -> Group | None:
    return next((group for group in comparison.groups if group.name == name), None)


def _format_scores(comparison: Comparison) -> str:
    rows = [[group.name, group.weights, group.seeds] for group in comparison.groups]
    for heading in comparison.headings:
        texts = [format_spread(group.values(heading)) for group in comparison.groups]
        best = best_places(texts)
        for place, text in enumerate(texts):
            rows[place].append(f"**{text}**" if place in best else text)
    return text_table(["method", "weights", "seeds", *comparison.headings], rows, 3, "pipe")


def _format_gains(comparison: Comparison, baseline: Group) -> str:
    rows = []
    for group in comparison.groups:
        if group is baseline:
            continue
        row = [group.name, str(len(group.reports.keys() & baseline.reports.keys()))]
        for heading in comparison.headings:
            gains = group.gains(baseline, heading)
            text, p = format_spread(gains, "+"), format_p(gains)
            row.append(text if p == "-" else f"{text} (p {p})")
        rows.append(row)
    return text_table(["method", "pairs", *comparison.headings], rows, 2, "pipe")


def _scoring(report: Report, metric: str) -> tuple[Any, ...]:
    """Return the evaluation settings that scores and their means must share to be comparable."""
    settings = []
    for name, one in report.datasets.items():
        # The rule for absent classes matters only if some are absent and the metric does not determine it.
        fixed = metric in MEAN_IOUS.values() or report.occurring(name) == len(one.classes)
        settings.append((name, one.protocol, one.classes, one.is_source, "" if fixed else one.absent_classes))
    return tuple(sorted(settings))


def _named(groups: Sequence[Mapping[int, Report]], metric: str) -> tuple[Group, ...]:
    """Name each group after its method, followed by the weights and the config hash where needed."""
    runs = [next(iter(reports.values())).run for reports in groups]
    methods = [run.method for run in runs]
    with_weights = [f"{run.method} ({run.weights.label})" for run in runs]
    named = []
    for reports, run, name in zip(groups, runs, with_weights, strict=True):
        label = run.weights.label
        if methods.count(run.method) == 1:
            name = run.method
        elif with_weights.count(name) > 1:
            name = f"{run.method} ({label}, {run.method_hash[:6]})"
        named.append(Group(name, label, dict(sorted(reports.items())), metric))
    return tuple(named)
