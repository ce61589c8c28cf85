"""A report in Markdown: a row that a paper could paste, how every data set was scored, classes, and the run."""

import math
from collections.abc import Sequence

from tabulate import tabulate

from famix.evaluation.counting.scores import MEAN_IOUS, SKIP, ZERO
from famix.reports.report import MEAN, Report
from famix.utils.messages import table_cell

__all__ = [
    "class_count",
    "describe_absent",
    "describe_classes",
    "format_classes",
    "format_number",
    "format_report",
    "format_row",
    "format_scores",
    "markdown_table",
]

_CLASS_PREFIX = "IoU-"


def format_report(report: Report) -> str:
    """Lay out a report; scores are in percent with one decimal, and one that does not exist is a dash."""
    run = report.run
    mean = "the mean counts every target once" if report.targets else "no data set is a target"
    parts = [
        f"# {run.method}",
        f"{' and '.join(report.headlines)} in percent; {describe_classes(report)}; {mean}. Trained on {', '.join(run.trained_on) or 'what the file does not say'}, "
        f"seed {run.seed}; weights: {run.weights.describe()}.",
        format_row(report),
        *describe_absent(report),
        "How each data set was scored:",
        format_scores(report),
    ]
    if by_class := format_classes(report):
        parts += ["IoU of every class that a data set shows:", by_class]
    return "\n\n".join([*parts, "The run:", _facts_table(report)]) + "\n"


def format_row(report: Report) -> str:
    """The row that a paper could paste: mIoU on every target, their means, and on the source; also PQ where it exists."""
    facts = {"method": report.run.method, "weights": report.run.weights.label}
    rows = [[*facts.values(), metric, *map(format_number, report.row(metric).values())] for metric in report.headlines]
    head = [*facts, "score", *report.row()]
    if len(rows) == 1:  # the text above the table names the score
        rows, head = [[*facts.values(), *rows[0][3:]]], [*facts, *report.row()]
    return markdown_table(rows, head, len(head) - len(report.row()))


def format_scores(report: Report, digits: int = 1) -> str:
    """A row per target, their means, and a row per data set of the source: role, protocol, classes and scores."""
    rows = [_score_row(report, name, digits) for name in report.targets]
    for group, means in report.means().items() if len(report.targets) > 1 else ():
        name = MEAN if group == MEAN else f"{MEAN} of {group}"
        rows.append([name, "", "", "", *(format_number(means[metric], digits) for metric in report.metrics)])
    rows += [_score_row(report, name, digits) for name in report.sources]
    return markdown_table(rows, ["data set", "role", "protocol", "classes", *report.metrics], 3)


def format_classes(report: Report, digits: int = 1) -> str:
    """The IoU of every class that some data set shows, a column per data set; nothing where there is none."""
    found = (metric for tasks in report.results.values() for scores in tasks.values() for metric in scores)
    rows = []
    for metric in dict.fromkeys(metric for metric in found if metric.startswith(_CLASS_PREFIX)):
        values = [report.score(name, metric) for name in report.data_sets]
        if not all(map(math.isnan, values)):
            rows.append([metric.removeprefix(_CLASS_PREFIX), *(format_number(value, digits) for value in values)])
    if not rows:
        return ""
    return markdown_table(rows, ["IoU", *(scored.heading for scored in report.data_sets.values())], 1)


def class_count(report: Report, name: str) -> str:
    """How many classes of a data set's means occur in it, e.g. "10 of 19"; "19" where nothing says how many do."""
    occurring, classes = report.occurring(name), len(report.data_sets[name].classes)
    return str(classes) if occurring is None else f"{occurring} of {classes}"


def _entered(report: Report, name: str) -> str:
    """The same, with the classes that are predicted but nowhere labelled where they count as 0."""
    zeros = report.counted_as_zero(name)
    return class_count(report, name) + (f" + {zeros} as 0" if zeros else "")


def describe_classes(report: Report) -> str:
    """How many classes occur in words: "10 of 19 classes occur", or data set by data set; "19 classes" if unknown."""
    counts = {scored.heading: class_count(report, name) for name, scored in report.data_sets.items()}
    if len(set(counts.values())) > 1:
        return "classes that occur: " + ", ".join(f"{heading} {count}" for heading, count in counts.items())
    (count,) = set(counts.values()) or {"0"}
    return f"{count} classes" + (" occur" if " of " in count else "")


def describe_absent(report: Report) -> list[str]:
    """A sentence on classes that are predicted but nowhere labelled, where they make a difference; or none."""
    if not report.other_means:
        return []
    rules = {scored.absent_classes for scored in report.data_sets.values()}
    words = {SKIP: "leaves them out", ZERO: "counts them as 0"}
    means = {MEAN_IOUS[rule]: text for rule, text in words.items()}
    if len(rules) == 1:
        means = {"mIoU": words[next(iter(rules))]} | {name: means[name] for name in report.other_means}
    return ["Classes that are predicted but nowhere labelled: " + ", ".join(f"{a} {b}" for a, b in means.items()) + "."]


def format_number(value: float, digits: int = 1) -> str:
    """A score with so many decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def markdown_table(rows: Sequence[Sequence[str]], headers: Sequence[str], numbers_from: int) -> str:
    """A Markdown table of texts, whose columns from some number on are numbers, and right-aligned."""
    align = ["left"] * numbers_from + ["right"] * (len(headers) - numbers_from)
    head, *cells = ([table_cell(text) for text in row] for row in (headers, *rows))
    return tabulate(cells, headers=head, tablefmt="pipe", disable_numparse=True, colalign=align)


def _score_row(report: Report, name: str, digits: int) -> list[str]:
    scored = report.data_sets[name]
    role = "source" if scored.is_source else "target"
    scores = (format_number(report.score(name, metric), digits) for metric in report.metrics)
    return [name, role, scored.protocol, _entered(report, name), *scores]


def _facts_table(report: Report) -> str:
    run, weights = report.run, report.run.weights
    facts = {
        "weights": weights.describe(),
        "file": weights.file or "none, in memory",
        "sha256": weights.sha256 or "",
        "seed": str(run.seed),
        "trained on": ", ".join(run.trained_on),
        "evaluator": run.evaluator,
        "config": run.config_hash,
        "date": run.date,
        "versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
    }
    return markdown_table([[name, value] for name, value in facts.items()], ["", ""], 2)
