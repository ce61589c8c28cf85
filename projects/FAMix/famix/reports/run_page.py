"""Page of one or several runs: scores with gains, classes, confusions, examples, losses and settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from famix.evaluation.counting.confusion import ConfusionMatrix
from famix.reports.comparison import Comparison, compare_reports
from famix.reports.page import Table, image_uri, render_page, run_color
from famix.reports.report import CLASS_ACCURACY, CLASS_IOU, MEAN, TASK, Report
from famix.reports.runs import Example, Run, differing_settings
from famix.reports.tables import best_places, format_number, format_spread
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean
from famix.visualization.charts import Series, line_chart
from famix.visualization.label_pictures import Pixels, color_labels, mark_errors, right_share, shrink

__all__ = ["Matrix", "class_scores", "describe_confusion", "gain_heading", "render_runs", "score_table"]

_PICTURE_WIDTH = 440  # pixels
_PANOPTIC = ("PQ", "mask AP")
_GAIN = "gain"  # heading, by which the template colours the cells
_LONG = 60  # characters of a setting
_LEAST = 0.0005  # share of all labelled pixels that a class needs to be named among the largest confusions

Examples = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix on the page.

    Attributes:
        names: N classes that are labelled or predicted.
        shares: (N, N) rows of true classes, each entry relative to the labelled pixels of its row, 0-1.
        caption: the run, followed by the largest confusions.
    """

    names: Sequence[str]
    shares: Sequence[Sequence[float]]
    caption: str


def render_runs(runs: Sequence[Run], examples: Examples, notes: Sequence[str] = (), baseline: str | None = None) -> str:
    """Render the page of runs, which holds all its content and is readable without scripts.

    Args:
        runs: see `read_runs`. Runs with different evaluation settings get separate parts.
        examples: name of a run -> example predictions; runs may be missing.
        notes: further paragraphs, e.g. the reason for missing examples.
        baseline: name of the run that gains refer to; None takes the first run of each part.

    Raises:
        ConfigError: if two runs have the same config and seed, or no run is called `baseline`.
    """
    names = [run.name for run in runs]
    if baseline is not None and baseline not in names:
        raise ConfigError(
            f"--baseline must be the name of a run, got '{baseline}'.{did_you_mean(baseline, names)} Choose from "
            f"{', '.join(names)}."
        )
    colors = {run.name: run_color(place) for place, run in enumerate(runs)}
    parts = []
    for comparison in compare_reports({str(run.folder): run.report for run in runs}):
        members = {id(report) for group in comparison.groups for report in group.reports.values()}
        parts.append(_part(comparison, [run for run in runs if id(run.report) in members], examples, baseline, colors))
    charts = []
    for name in dict.fromkeys(name for run in runs for name in run.losses):
        series = [
            Series(run.name, colors[run.name], run.losses[name].values, run.losses[name].iterations)
            for run in runs
            if name in run.losses
        ]
        charts.append(Markup(line_chart(series, "iteration", name.replace("_", " "))))
    settings = sorted(differing_settings(runs).items())
    return render_page(
        "run.html",
        title=" and ".join(names) if len(runs) < 3 else f"{len(runs)} runs",
        facts=_facts_table(runs),
        parts=parts,
        key=list(colors.items()),
        losses=[chart for chart in charts if chart],
        settings=Table(["setting", *names], [[key, *map(_shorten, values)] for key, values in settings], kind="text"),
        details=[(run.name, _details(run)) for run in runs],
        notes=notes,
    )


def score_table(corner: str, names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    """Make a table with a row per name and a star for the best of each column but that of gains.

    Args:
        corner: heading of the names.
        names: of the runs or groups.
        rows: heading -> text for each name.
    """
    headings = list(rows[0])
    best = [(row, 1 + column) for column, heading in enumerate(headings) if heading != _GAIN
            for row in best_places([cells[heading] for cells in rows])]  # fmt: skip
    cells = [[name, *row.values()] for name, row in zip(names, rows, strict=True)]
    total = 1 + headings.index(MEAN) if MEAN in headings else None
    return Table([corner, *headings], cells, best, total, "scores")


def gain_heading(report: Report) -> str | None:
    """Return the heading of the score that gains are of: the mean of the targets or the only target; None without."""
    row = list(report.row())
    return MEAN if MEAN in row else row[0] if report.targets else None


def class_scores(report: Report, datasets: Sequence[str]) -> dict[str, float]:
    """Return the IoU of each class in percent, averaged over the datasets that show it; NaN for a class without."""
    values: dict[str, list[float]] = {}
    for name in datasets:
        scores = report.results[name].get(TASK, {})
        for metric, value in scores.items():
            if metric.startswith(CLASS_IOU):
                occurs = not math.isnan(scores.get(metric.replace(CLASS_IOU, CLASS_ACCURACY), 0.0))
                found = values.setdefault(metric.removeprefix(CLASS_IOU), [])
                found += [value] if occurs and not math.isnan(value) else []
    return {name: fmean(found) if found else math.nan for name, found in values.items()}


def describe_confusion(matrix: ConfusionMatrix, name: str, most: int = 6) -> Matrix | None:
    """Make the matrix of a run; None without labelled or predicted pixels.

    Args:
        matrix: pixel counts.
        name: of the run.
        most: number of confusions in the caption; classes with very few labelled pixels are left out there.
    """
    counts, totals = matrix.counts, matrix.counts.sum(axis=1)
    shown = np.flatnonzero(counts.any(axis=1) | counts.any(axis=0))
    if not len(shown):
        return None
    shares = counts / np.maximum(totals[:, None], 1)
    wrong = np.where(np.eye(len(counts), dtype=bool) | (totals < _LEAST * totals.sum())[:, None], 0, shares)
    pairs = [divmod(int(place), len(counts)) for place in np.argsort(-wrong, axis=None, kind="stable")[:most]]
    largest = [
        f"{matrix.class_names[row]} as {matrix.class_names[column]} {100 * wrong[row, column]:.0f} %"
        for row, column in pairs
        if wrong[row, column] > 0
    ]
    caption = f"{name}. Largest confusions: {'; '.join(largest)}" if largest else name
    return Matrix([matrix.class_names[place] for place in shown], shares[np.ix_(shown, shown)].tolist(), caption)


def _part(
    comparison: Comparison, runs: Sequence[Run], examples: Examples, baseline: str | None, colors: Mapping[str, str]
) -> dict[str, Any]:
    """Collect the variables of the template for runs with equal evaluation settings."""
    report = comparison.example
    names = [*report.targets, *report.sources]
    headings = {name: scored.heading for name, scored in report.datasets.items()}
    classes = [(headings[name], _class_bars(runs, [name], colors)) for name in names]
    if len(report.targets) > 1:
        classes.insert(0, ("mean of the targets", _class_bars(runs, report.targets, colors)))
    confusions, pictures = [], []
    with_examples = [run for run in runs if examples.get(run.name)]
    for name in names:
        matrices = [describe_confusion(run.confusions[name], run.name) for run in runs if name in run.confusions]
        confusions.append((headings[name], [one for one in matrices if one]))
        shown = [[one for one in examples[run.name] if one.dataset == name] for run in with_examples]
        pictures.append((headings[name], [_pictures(with_examples, row) for row in zip(*shown, strict=True)]))
    tables = [one.classes for run in with_examples for one in examples[run.name]]
    return {
        "scores": _score_tables(comparison, runs, baseline),
        "classes": [entry for entry in classes if entry[1]],
        "confusions": [entry for entry in confusions if entry[1]],
        "examples": [entry for entry in pictures if entry[1]],
        "class_key": dict.fromkeys(
            (name, "rgb({} {} {})".format(*color))
            for table in tables
            for name, color in zip(table.names, table.colors, strict=True)
        ),
    }


def _score_tables(comparison: Comparison, runs: Sequence[Run], baseline: str | None) -> list[tuple[str, str, Table]]:
    """Make the tables of mIoU by either rule, of means over seeds, and of panoptic scores: heading, words, table."""
    names, heading = [run.name for run in runs], gain_heading(comparison.example)
    references = (
        [run for run in runs if run.name == baseline or baseline is None][:1] if heading and len(runs) > 1 else []
    )
    words = ["★ is the best of a column."] if len(runs) > 1 else []
    if references:
        score = heading if heading == MEAN else f"mIoU on {heading}"
        words.append(f"Gain: {score} against {references[0].name}, in points.")
    tables = []
    for one in (comparison, *comparison.other_means()):
        rows = [run.report.row(one.metric) for run in runs]
        texts = [{head: format_number(value) for head, value in row.items()} for row in rows]
        for reference in references:
            zero = reference.report.row(one.metric)[str(heading)]
            gains = ["baseline" if run is reference else format_number(row[str(heading)] - zero, sign="+")
                     for run, row in zip(runs, rows, strict=True)]  # fmt: skip
            texts = [_with_gain(row, heading, gain) for row, gain in zip(texts, gains, strict=True)]
        title = "" if one is comparison else one.metric
        text = f"{one.metric} in percent; {one.describe()}. {' '.join(words)}"
        tables.append((title, text, score_table(f"{one.metric} in %", names, texts)))
    groups = comparison.groups
    if any(len(group.reports) > 1 for group in groups):
        texts = [{head: format_spread(group.values(head)) for head in comparison.headings} for group in groups]
        bases = [group for group in groups for run in references if run.report in group.reports.values()]
        for base in bases if len(groups) > 1 else ():
            pairs = [(group, group.gains(base, str(heading)) or [group.gain(base, str(heading))]) for group in groups]
            gains = ["baseline" if group is base else format_spread(values, "+") for group, values in pairs]
            texts = [_with_gain(row, heading, gain) for row, gain in zip(texts, gains, strict=True)]
        labels = [f"{group.name}, {len(group.reports)} seeds" for group in groups]
        tables.append(("Mean ± standard deviation over the seeds", "", score_table("mIoU in %", labels, texts)))
    panoptic: list[dict[str, str]] = [{} for _ in runs]
    for metric in _PANOPTIC:
        for name, scored in comparison.example.datasets.items():
            values = [run.report.score(name, metric) for run in runs]
            for row, value in zip(panoptic, values, strict=True):
                if not all(map(math.isnan, values)):
                    row[f"{scored.heading}: {metric}"] = format_number(value)
    return [*tables, *([("Panoptic scores", "", score_table("in %", names, panoptic))] if panoptic[0] else [])]


def _with_gain(row: Mapping[str, str], heading: str | None, gain: str) -> dict[str, str]:
    """Insert a gain after the score that it is of."""
    place = 1 + list(row).index(str(heading))
    cells = list(row.items())
    return dict([*cells[:place], (_GAIN, gain), *cells[place:]])


def _class_bars(
    runs: Sequence[Run], datasets: Sequence[str], colors: Mapping[str, str]
) -> list[tuple[str, list[tuple[float, str, str]]]]:
    """Make a row per class with a bar per run: share of the width, text and colour."""
    scores = [class_scores(run.report, datasets) for run in runs]
    rows = []
    for name in dict.fromkeys(name for one in scores for name in one):
        values = [one.get(name, math.nan) for one in scores]
        if not all(map(math.isnan, values)):
            bars = [(0.0 if math.isnan(value) else value / 100, format_number(value), colors[run.name])
                    for run, value in zip(runs, values, strict=True)]  # fmt: skip
            rows.append((name, bars))
    return rows


def _pictures(runs: Sequence[Run], row: Sequence[Example]) -> list[list[tuple[str, str]]]:
    """Make the pictures of one image as pairs of (URI, caption): image and truth, then prediction and errors of each run."""
    first, classes = row[0], row[0].classes
    truth = color_labels(first.truth, classes.colors)
    pairs = [[(_photo(first.image), first.title), (_labels(truth), "ground truth")]]
    for run, one in zip(runs, row, strict=True):
        correct = 100 * right_share(one.truth, one.predicted, classes.ignore_label)
        errors = mark_errors(one.image, one.truth, one.predicted, classes.ignore_label)
        caption = f"errors, {format_number(correct, 0)} % correct"
        pairs.append([(_labels(color_labels(one.predicted, classes.colors)), run.name), (_photo(errors), caption)])
    return pairs


def _photo(pixels: Pixels) -> str:
    return image_uri(shrink(pixels, _PICTURE_WIDTH, smooth=True))


def _labels(pixels: Pixels) -> str:
    return image_uri(shrink(pixels, _PICTURE_WIDTH, smooth=False), lossless=True)


def _facts_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        facts, strategy = run.report.run, run.settings.get("MODEL.STYLE.STRATEGY", "-")
        trained_on = ", ".join(facts.trained_on) or "-"
        rows.append(
            [run.name, trained_on, _shorten(strategy), str(facts.seed), facts.weights.describe(), facts.date[:10]]
        )
    return Table(["run", "trained on", "style strategy", "seed", "weights", "scored"], rows, kind="text")


def _details(run: Run) -> dict[str, str]:
    facts = {"folder": str(run.folder), **run.report.run.facts()}
    return facts | ({"missing": "; ".join(run.missing)} if run.missing else {})


def _shorten(value: object) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
