"""Comparisons of runs as Markdown for people and as CSV for programs."""

import csv
import io
import math
from collections.abc import Sequence
from statistics import fmean, stdev

from famix.reports.comparison import Comparison, Group
from famix.reports.report_text import markdown_table
from famix.reports.significance import format_p, format_spread, paired_p

__all__ = ["format_comparisons", "write_comparisons_csv"]

_CSV_HEAD = (
    *("method", "weights", "seeds", "scored", "metric", "data_set", "mean", "std", "runs"),
    *("gain", "paired_gain", "p", "pairs"),
)


def format_comparisons(comparisons: Sequence[Comparison], baseline: str | None = None) -> str:
    """Lay out comparisons: a table of scores each, and one of differences where there is a baseline.

    Args:
        comparisons: see `compare_reports`.
        baseline: name of a group; where a comparison lacks it, it says so.

    Returns:
        Markdown: mean ± standard deviation (n - 1) over the seeds, in percent; the best mean of a column is bold.
    """
    parts = []
    if len(comparisons) > 1:
        parts.append("Runs that were scored in different ways stand in different tables and cannot be compared.")
    for comparison in _with_other_means(comparisons):
        parts += [f"{comparison.metric} in percent; {comparison.scored_how()}.", _score_table(comparison)]
        if baseline is None:
            continue
        reference = comparison.group(baseline)
        if reference is None:
            parts.append(f"No run of {baseline} was scored this way.")
        elif len(comparison.groups) > 1:
            parts += [
                f"Differences to {baseline} in points, over the seeds that both have, and p of the two-sided paired "
                "t-test. Without a common seed it is the difference of the means.",
                _gain_table(comparison, reference),
            ]
    return "\n\n".join(parts) + "\n"


def write_comparisons_csv(comparisons: Sequence[Comparison], baseline: str | None = None) -> str:
    """Write comparisons as CSV, a row for every group and heading; numbers in full, empty where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for comparison in _with_other_means(comparisons):
        reference = comparison.group(baseline) if baseline is not None else None
        for group in comparison.groups:
            for heading in comparison.headings:
                writer.writerow(_csv_row(comparison, group, heading, reference))
    return stream.getvalue()


def _with_other_means(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [one for comparison in comparisons for one in (comparison, *comparison.other_means())]


def _score_table(comparison: Comparison) -> str:
    columns = [[group.values(heading) for group in comparison.groups] for heading in comparison.headings]
    cells = [_mark_best(values) for values in columns]
    rows = [
        [group.name, group.weights, _seeds(group), *(column[index] for column in cells)]
        for index, group in enumerate(comparison.groups)
    ]
    return markdown_table(rows, ["method", "weights", "seeds", *comparison.headings], 3)


def _mark_best(values: Sequence[Sequence[float]]) -> list[str]:
    """Texts of a column; in bold what no other exceeds by what the text shows."""
    texts = [format_spread(one) for one in values]
    shown = [math.nan if text == "-" else float(text.split()[0]) for text in texts]
    best = max((value for value in shown if not math.isnan(value)), default=math.nan)
    return [
        f"**{text}**" if value == best and len(values) > 1 else text for text, value in zip(texts, shown, strict=True)
    ]


def _gain_table(comparison: Comparison, baseline: Group) -> str:
    rows = []
    for group in comparison.groups:
        if group is not baseline:
            rows.append(
                [group.name, _pairs(group, baseline), *(_gain(group, baseline, h) for h in comparison.headings)]
            )
    return markdown_table(rows, ["method", "pairs", *comparison.headings], 2)


def _gain(group: Group, baseline: Group, heading: str) -> str:
    gains = group.gains(baseline, heading)
    if not gains:
        return format_spread([group.gain(baseline, heading)], "+")
    text, p = format_spread(gains, "+"), format_p(gains)
    return text if p == "-" else f"{text} (p {p})"


def _csv_row(comparison: Comparison, group: Group, heading: str, baseline: Group | None) -> list[str]:
    values = group.values(heading)
    row = [group.name, group.weights, _seeds(group), comparison.scored_how(), comparison.metric, heading]
    row += [_number(fmean(values)), _number(stdev(values) if len(values) > 1 else math.nan), str(len(values))]
    if baseline is None or group is baseline:
        return [*row, "", "", "", ""]
    gains = group.gains(baseline, heading)
    paired = fmean(gains) if gains else math.nan
    return [*row, *map(_number, (group.gain(baseline, heading), paired, paired_p(gains))), str(len(gains))]


def _seeds(group: Group) -> str:
    return ", ".join(map(str, group.reports))


def _pairs(group: Group, baseline: Group) -> str:
    return str(sum(seed in baseline.reports for seed in group.reports))


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
