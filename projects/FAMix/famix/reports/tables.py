"""Reports and comparisons as Markdown for people, and comparisons as CSV for programs."""

import csv
import io
import math
from collections.abc import Sequence
from statistics import fmean, stdev

from tabulate import tabulate

from famix.evaluation.counting.scores import MEAN_IOUS, SKIP, ZERO
from famix.reports.comparison import Comparison, Group, paired_p
from famix.reports.report import CLASS_IOU, MEAN, Report, describe_classes
from famix.utils.messages import table_cell

__all__ = [
    "best_places",
    "format_classes",
    "format_comparisons",
    "format_number",
    "format_p",
    "format_report",
    "format_row",
    "format_scores",
    "format_spread",
    "markdown_table",
    "write_comparisons_csv",
]


def format_report(report: Report) -> str:
    """Format a report as Markdown; scores are in percent with one decimal, and missing ones a dash."""
    run = report.run
    mean = "the mean counts every target once" if report.targets else "no dataset is a target"
    parts = [
        f"# {run.method}",
        f"{' and '.join(report.headlines)} in percent; {describe_classes(report)}; {mean}. Trained on "
        f"{', '.join(run.trained_on) or 'an unknown dataset'}, seed {run.seed}; weights: {run.weights.describe()}.",
        format_row(report),
        *_describe_absent(report),
        "Evaluation of each dataset:",
        format_scores(report),
    ]
    if by_class := format_classes(report):
        parts += ["IoU of every class that occurs:", by_class]
    facts = markdown_table([list(fact) for fact in run.facts().items()], ["", ""], 2)
    return "\n\n".join([*parts, "The run:", facts]) + "\n"


def format_row(report: Report) -> str:
    """Format a report as one row for a paper: mIoU on every target, the means and the source; PQ in its own row."""
    facts = {"method": report.run.method, "weights": report.run.weights.label}
    if len(report.headlines) == 1:  # the text above the table names the score
        rows = [[*facts.values(), *map(format_number, report.row().values())]]
        return markdown_table(rows, [*facts, *report.row()], 2)
    rows = [[*facts.values(), metric, *map(format_number, report.row(metric).values())] for metric in report.headlines]
    return markdown_table(rows, [*facts, "score", *report.row()], 3)


def format_scores(report: Report, digits: int = 1) -> str:
    """Format a row per target, mean and source dataset: role, protocol, classes and scores."""

    def row(name: str) -> list[str]:
        scored, zeros = report.datasets[name], report.counted_as_zero(name)
        classes = report.class_count(name) + (f" + {zeros} as 0" if zeros else "")
        scores = (format_number(report.score(name, metric), digits) for metric in report.metrics)
        return [name, "source" if scored.is_source else "target", scored.protocol, classes, *scores]

    rows = [row(name) for name in report.targets]
    for group, means in report.means().items() if len(report.targets) > 1 else ():
        name = MEAN if group == MEAN else f"{MEAN} of {group}"
        rows.append([name, "", "", "", *(format_number(means[metric], digits) for metric in report.metrics)])
    rows += [row(name) for name in report.sources]
    return markdown_table(rows, ["dataset", "role", "protocol", "classes", *report.metrics], 3)


def format_classes(report: Report, digits: int = 1) -> str:
    """Format the IoU of every class that occurs, with a column per dataset; "" if there is none."""
    found = (metric for tasks in report.results.values() for scores in tasks.values() for metric in scores)
    rows = []
    for metric in dict.fromkeys(metric for metric in found if metric.startswith(CLASS_IOU)):
        values = [report.score(name, metric) for name in report.datasets]
        if not all(map(math.isnan, values)):
            rows.append([metric.removeprefix(CLASS_IOU), *(format_number(value, digits) for value in values)])
    headers = ["IoU", *(scored.heading for scored in report.datasets.values())]
    return markdown_table(rows, headers, 1) if rows else ""


def format_number(value: float, digits: int = 1, sign: str = "") -> str:
    """Format a score; NaN becomes a dash, and sign "+" shows the sign of positive numbers."""
    return "-" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def format_spread(values: Sequence[float], sign: str = "") -> str:
    """Format the mean and, for several values, the standard deviation (n - 1); a dash if a value is NaN.

    Args:
        values: at least one.
        sign: "+" shows the sign of a positive mean.
    """
    if any(map(math.isnan, values)):
        return "-"
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def format_p(gains: Sequence[float]) -> str:
    """Format `paired_p`; NaN becomes a dash."""
    p = paired_p(gains)
    return "-" if math.isnan(p) else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def best_places(texts: Sequence[str]) -> list[int]:
    """Return the indices of the largest numbers as printed; none if all numbers are equal.

    Args:
        texts: each begins with a number, or is a dash.
    """
    values = [math.nan if text == "-" else float(text.split()[0]) for text in texts]
    numbers = {value for value in values if not math.isnan(value)}
    return [place for place, value in enumerate(values) if value == max(numbers)] if len(numbers) > 1 else []


def markdown_table(rows: Sequence[Sequence[str]], headers: Sequence[str], numbers_from: int) -> str:
    """Format a Markdown table whose columns from index `numbers_from` on are right-aligned."""
    align = ["left"] * numbers_from + ["right"] * (len(headers) - numbers_from)
    head, *cells = ([table_cell(text) for text in row] for row in (headers, *rows))
    return tabulate(cells, headers=head, tablefmt="pipe", disable_numparse=True, colalign=align)


def format_comparisons(comparisons: Sequence[Comparison], baseline: str | None = None) -> str:
    """Format comparisons as Markdown: a table of scores each, and one of gains over the baseline.

    Args:
        comparisons: see `compare_reports`.
        baseline: name of a group.

    Returns:
        Mean ± standard deviation (n - 1) over the seeds, in percent; the best mean of a column is bold.
    """
    parts = []
    if len(comparisons) > 1:
        parts.append("Runs with different evaluation settings are in separate tables and cannot be compared.")
    for comparison in _with_other_means(comparisons):
        parts += [f"{comparison.metric} in percent; {comparison.describe()}.", _score_table(comparison)]
        if baseline is None:
            continue
        reference = comparison.group(baseline)
        if reference is None:
            parts.append(f"{baseline} has no run with these evaluation settings.")
        elif len(comparison.groups) > 1:
            parts += [
                f"Gains over {baseline} in points, over the common seeds, and p of the two-sided paired t-test. Without "
                "a common seed: the difference of the means.",
                _gain_table(comparison, reference),
            ]
    return "\n\n".join(parts) + "\n"


def write_comparisons_csv(comparisons: Sequence[Comparison], baseline: str | None = None) -> str:
    """Format comparisons as CSV: a row per group and heading, all digits, and an empty cell for a missing number."""
    stream = io.StringIO()
    head = ["method", "weights", "seeds", "scored", "metric", "data_set", "mean", "std", "runs"]
    writer = csv.DictWriter(stream, [*head, "gain", "paired_gain", "p", "pairs"], lineterminator="\n")
    writer.writeheader()
    for comparison in _with_other_means(comparisons):
        reference = comparison.group(baseline) if baseline is not None else None
        for group in comparison.groups:
            for heading in comparison.headings:
                values = group.values(heading)
                deviation = stdev(values) if len(values) > 1 else math.nan
                facts = (group.name, group.weights, group.seeds, comparison.describe(), comparison.metric, heading,
                         _full(fmean(values)), _full(deviation), len(values))  # fmt: skip
                row = dict(zip(head, facts, strict=True))
                if reference is not None and group is not reference:
                    gains = group.gains(reference, heading)
                    paired = fmean(gains) if gains else math.nan
                    row |= {"gain": _full(group.gain(reference, heading)), "paired_gain": _full(paired)}
                    row |= {"p": _full(paired_p(gains)), "pairs": len(gains)}
                writer.writerow(row)
    return stream.getvalue()


def _describe_absent(report: Report) -> list[str]:
    """Explain the rules for classes that are predicted but never labelled if they differ."""
    if not report.other_means:
        return []
    rules = {scored.absent_classes for scored in report.datasets.values()}
    words = {SKIP: "leaves them out", ZERO: "counts them as 0"}
    means = {MEAN_IOUS[rule]: text for rule, text in words.items()}
    if len(rules) == 1:
        means = {"mIoU": words[next(iter(rules))]} | {name: means[name] for name in report.other_means}
    return ["Classes that are predicted but never labelled: " + ", ".join(f"{a} {b}" for a, b in means.items()) + "."]


def _with_other_means(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [one for comparison in comparisons for one in (comparison, *comparison.other_means())]


def _score_table(comparison: Comparison) -> str:
    columns = []
    for heading in comparison.headings:
        texts = [format_spread(group.values(heading)) for group in comparison.groups]
        best = best_places(texts)
        columns.append([f"**{text}**" if place in best else text for place, text in enumerate(texts)])
    rows = [
        [group.name, group.weights, group.seeds, *(column[index] for column in columns)]
        for index, group in enumerate(comparison.groups)
    ]
    return markdown_table(rows, ["method", "weights", "seeds", *comparison.headings], 3)


def _gain_table(comparison: Comparison, baseline: Group) -> str:
    rows = []
    for group in comparison.groups:
        if group is baseline:
            continue
        cells = []
        for heading in comparison.headings:
            gains = group.gains(baseline, heading)
            p = format_p(gains)
            text = format_spread(gains or [group.gain(baseline, heading)], "+")
            cells.append(text if p == "-" else f"{text} (p {p})")
        rows.append([group.name, str(sum(seed in baseline.reports for seed in group.reports)), *cells])
    return markdown_table(rows, ["method", "pairs", *comparison.headings], 2)


def _full(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
