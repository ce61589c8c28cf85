"""Scores as text: numbers, Markdown and CSV tables, and the report on a run."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import scipy.special
from tabulate import tabulate

from famix.data.corruption import SEVERITIES, parse_corruption
from famix.evaluation.counting.scores import MEAN_IOUS, SKIP, ZERO
from famix.reports.report import CLASS_IOU, MEAN, Report, describe_classes
from famix.utils.messages import table_cell


def format_number(value: float, digits: int = 1, sign: str = "") -> str:
    """Format a score. NaN becomes a dash, and sign "+" shows the sign of positive numbers."""
    return "-" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def format_spread(values: Sequence[float], sign: str = "") -> str:
    """Format the mean and, for several values, the standard deviation (n - 1), or a dash if a value is NaN."""
    if any(map(math.isnan, values)):
        return "-"
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def paired_p(gains: Sequence[float]) -> float:
    """Return the p-value of the two-sided paired t-test for the differences of pairs.

    The result is NaN for fewer than two pairs, equal differences, or a NaN among them.
    """
    if len(gains) < 2 or any(map(math.isnan, gains)) or stdev(gains) == 0:
        return math.nan
    t = fmean(gains) / (stdev(gains) / math.sqrt(len(gains)))
    return float(2 * scipy.special.stdtr(len(gains) - 1, -abs(t)))  # scipy.stats has the test, but imports slowly


def format_p(gains: Sequence[float]) -> str:
    """Format the result of `paired_p`. NaN becomes a dash."""
    p = paired_p(gains)
    return "-" if math.isnan(p) else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def best_places(texts: Sequence[str]) -> list[int]:
    """Return the indices of texts that begin with the largest number, or [] if all numbers are equal."""
    values = [math.nan if text == "-" else float(text.split()[0]) for text in texts]
    numbers = {value for value in values if not math.isnan(value)}
    return [place for place, value in enumerate(values) if value == max(numbers)] if len(numbers) > 1 else []


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, style: str = "simple") -> str:
    """Format a table for a terminal or, with style "pipe", in Markdown. All but `left` columns are right-aligned."""
    if style == "pipe":
        head, *rows = ([table_cell(text) for text in row] for row in (head, *rows))
    align = ["left"] * left + ["right"] * (len(head) - left)
    return tabulate(rows, headers=head, tablefmt=style, disable_numparse=True, colalign=align)


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV with all digits. Missing entries and non-finite numbers become empty cells."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)})
    return stream.getvalue()


def format_report(report: Report) -> str:
    """Format a report as Markdown. Scores are in percent with one decimal, and missing scores are dashes."""
    run = report.run
    mean = "the mean counts every target once" if report.targets else "no dataset is a target"
    parts = [
        f"# {run.method}",
        f"{' and '.join(report.headlines)} in percent; {describe_classes(report)}; {mean}. Trained on "
        f"{', '.join(run.trained_on) or 'an unknown dataset'}, seed {run.seed}; weights: {run.weights.describe()}.",
        format_row(report),
    ]
    if report.other_means:
        rules = {scored.absent_classes for scored in report.datasets.values()}
        words = {SKIP: "leaves them out", ZERO: "counts them as 0"}
        means = {MEAN_IOUS[rule]: text for rule, text in words.items()}
        if len(rules) == 1:
            means = {"mIoU": words[rules.pop()]} | {name: means[name] for name in report.other_means}
        listed = ", ".join(f"{name} {text}" for name, text in means.items())
        parts.append(f"Classes that are predicted but never labeled: {listed}.")
    if report.unseen:
        parts.append(f"Unseen classes, without labels in training: {', '.join(sorted(report.unseen))}.")
    parts += ["Evaluation of each dataset:", format_scores(report)]
    if corrupted := format_corruptions(report):
        parts += [f"{report.headlines[0]} on corrupted images, by severity:", corrupted]
    if by_class := format_classes(report):
        parts += ["IoU of every class that occurs:", by_class]
    facts = text_table(["", ""], [list(fact) for fact in run.facts().items()], 2, "pipe")
    return "\n\n".join([*parts, "The run:", facts]) + "\n"


def format_row(report: Report) -> str:
    """Format a report as a row for a paper: mIoU on every target, the means and the source. PQ gets its own row."""
    run, with_score = report.run, len(report.headlines) > 1  # a single score is named above the table
    rows = [
        [run.method, run.weights.label, *[metric] * with_score, *map(format_number, report.row(metric).values())]
        for metric in report.headlines
    ]
    head = ["method", "weights", *["score"] * with_score, *report.row()]
    return text_table(head, rows, 2 + with_score, "pipe")


def format_scores(report: Report, digits: int = 1) -> str:
    """Format one row per target, mean and source dataset: role, protocol, classes and scores."""

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
    return text_table(["dataset", "role", "protocol", "classes", *report.metrics], rows, 3, "pipe")


def format_classes(report: Report, digits: int = 1) -> str:
    """Format the IoU of every class that occurs, with one column per dataset. Returns "" if there are none.

    Corrupted datasets, of which there may be 65 versions, are left out unless there are no others.
    """
    names = [name for name in report.datasets if not parse_corruption(name)] or list(report.datasets)
    found = (metric for tasks in report.results.values() for scores in tasks.values() for metric in scores)
    rows = []
    for metric in dict.fromkeys(metric for metric in found if metric.startswith(CLASS_IOU)):
        values = [report.score(name, metric) for name in names]
        if not all(map(math.isnan, values)):
            name = metric.removeprefix(CLASS_IOU)
            marked = f"{name} (unseen)" if name in report.unseen else name
            rows.append([marked, *(format_number(value, digits) for value in values)])
    head = ["IoU", *(report.datasets[name].heading for name in names)]
    return text_table(head, rows, style="pipe") if rows else ""


def severity_curves(report: Report) -> dict[str, dict[str, list[float]]]:
    """Return dataset -> corruption -> scores in percent for severities 0 to 5, NaN where missing.

    The score is the first of `Report.headlines`. Severity 0 is the uncorrupted dataset. With several corruptions, `MEAN`
    is the mean over all of them.
    """
    metric = report.headlines[0]
    curves: dict[str, dict[str, list[float]]] = {}
    for name in report.datasets:
        corruption = parse_corruption(name)
        if corruption is None:
            continue
        base = corruption.base
        clean = report.score(base, metric) if base in report.datasets else math.nan
        curve = curves.setdefault(base, {}).setdefault(corruption.kind, [clean, *(math.nan for _ in SEVERITIES)])
        curve[corruption.severity] = report.score(name, metric)
    for kinds in curves.values():
        if len(kinds) > 1:
            kinds[MEAN] = np.mean(list(kinds.values()), axis=0).tolist()
    return curves


def format_corruptions(report: Report, digits: int = 1) -> str:
    """Format one row per corruption with the score at each severity and their mean. Returns "" if there are none."""
    rows = []
    for base, kinds in severity_curves(report).items():
        for kind, scores in kinds.items():
            cells = [format_number(score, digits) for score in (*scores, float(np.mean(scores[1:])))]
            rows.append([base, kind, *cells])
    head = ["dataset", "corruption", "clean", *(f"severity {level}" for level in SEVERITIES), MEAN]
    return text_table(head, rows, 2, "pipe") if rows else ""
