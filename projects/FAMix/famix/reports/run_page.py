"""HTML page about one or more runs: scores with gains, classes, confusions, examples, losses and settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from famix.evaluation.counting.confusion import ConfusionMatrix
from famix.reports.comparison import Comparison, Group, compare_reports, require_baseline
from famix.reports.page import Table, image_uri, render_page, run_color
from famix.reports.report import CLASS_ACCURACY, CLASS_IOU, MEAN, TASK, Report, RunMetadata
from famix.reports.runs import Example, Run, differing_settings
from famix.reports.tables import best_places, format_number, format_spread, severity_curves
from famix.visualization.charts import Series, line_chart
from famix.visualization.figure import Pixels
from famix.visualization.overlay import color_labels, correct_share, downsample, mark_errors, mark_unsure

_IMAGE_WIDTH = 440  # pixels
_PANOPTIC = ("PQ", "PQ seen", "PQ unseen", "mask AP")
_GAIN = "gain"  # heading of the column that the template colors
_LONG = 60  # maximum characters of a setting
_LEAST = 0.0005  # minimum share of all labeled pixels for a class to appear in the largest confusions

Examples = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Matrix:
    """Confusion matrix on the page."""

    names: Sequence[str]  # N classes that are labeled or predicted
    shares: Sequence[Sequence[float]]  # (N, N) rows of true classes, as shares of the labeled pixels in the row, 0-1
    caption: str  # the run and its largest confusions


def render_runs(runs: Sequence[Run], examples: Examples, notes: Sequence[str] = (), baseline: str | None = None) -> str:
    """Render a self-contained page about runs. The page works without scripts.

    Args:
        runs: runs to show. Runs with different evaluation settings get separate parts.
        examples: run name -> example predictions. Runs may be missing.
        notes: additional paragraphs, e.g. the reason for missing examples.
        baseline: name of the run that gains refer to. None uses the first run in each part.

    Raises:
        ConfigError: two runs have the same config and seed, or no run is named `baseline`.
    """
    names = [run.name for run in runs]
    require_baseline(baseline, names)
    colors = {name: run_color(place) for place, name in enumerate(names)}
    parts = []
    for comparison in compare_reports({str(run.folder): run.report for run in runs}):
        members = {id(report.run) for group in comparison.groups for report in group.reports.values()}
        parts.append(
            _part(comparison, [run for run in runs if id(run.report.run) in members], examples, baseline, colors)
        )
    charts = []
    for name in dict.fromkeys(name for run in runs for name in run.losses):
        curves = [(run.name, run.losses[name]) for run in runs if name in run.losses]
        series = [Series(run, colors[run], values, iterations) for run, (iterations, values) in curves]
        charts.append(Markup(line_chart(series, "iteration", name.replace("_", " "))))
    settings = [[key, *map(_shorten, values)] for key, values in sorted(differing_settings(runs).items())]
    details = []
    for run in runs:
        missing = {"missing": "; ".join(run.missing)} if run.missing else {}
        details.append((run.name, {"folder": str(run.folder), **run.report.run.facts(), **missing}))
    return render_page(
        "run.html",
        title=" and ".join(names) if len(runs) < 3 else f"{len(runs)} runs",
        facts=_facts_table(runs),
        parts=parts,
        key=list(colors.items()),
        losses=[chart for chart in charts if chart],
        settings=Table(["setting", *names], settings, kind="text"),
        details=details,
        notes=notes,
    )


def class_scores(report: Report, datasets: Sequence[str]) -> dict[str, float]:
    """Return the IoU of each class in percent, averaged over the datasets where it is labeled, or NaN if there are none."""
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
    """Make the matrix for a run. Returns None if no pixels are labeled or predicted.

    The caption names at most `most` confusions and skips classes with very few labeled pixels.
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
    """Collect the template variables for runs with equal evaluation settings."""
    report = comparison.example
    with_examples = [run for run in runs if examples.get(run.name)]
    sections: dict[str, list[tuple[str, Any]]] = {"classes": [], "confusions": [], "calibration": [], "examples": []}
    if len(report.targets) > 1:
        sections["classes"].append(("mean over targets", _class_bars(runs, report.targets, colors)))
    for name in (*report.targets, *report.sources):
        matrices = [describe_confusion(run.confusions[name], run.name) for run in runs if name in run.confusions]
        shown = [[one for one in examples[run.name] if one.dataset == name] for run in with_examples]
        for section, content in (
            ("classes", _class_bars(runs, [name], colors)),
            ("confusions", [matrix for matrix in matrices if matrix]),
            ("calibration", _calibration_chart(runs, name, colors)),
            ("examples", [_image_pairs(with_examples, row) for row in zip(*shown, strict=True)]),
        ):
            sections[section].append((report.datasets[name].heading, content))
    tables = [one.classes for run in with_examples for one in examples[run.name]]
    return {
        "scores": _score_tables(comparison, runs, baseline),
        **{section: [entry for entry in entries if entry[1]] for section, entries in sections.items()},
        "severities": _severity_charts({run.name: run.report for run in runs}, colors),
        "class_key": dict.fromkeys(
            (name, "rgb({} {} {})".format(*color))
            for table in tables
            for name, color in zip(table.names, table.colors, strict=True)
        ),
    }


def _severity_charts(reports: Mapping[str, Report], colors: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """Draw the mean score over the corruptions of each dataset, by severity, and return pairs of dataset and SVG."""
    curves = {name: severity_curves(report) for name, report in reports.items()}
    charts = []
    for base in dict.fromkeys(base for bases in curves.values() for base in bases):
        series = [
            Series(run, colors[run], np.mean(list(bases[base].values()), axis=0), np.arange(6.0))
            for run, bases in curves.items()
            if base in bases
        ]
        # A row with the mean over the corruptions does not change their mean.
        metric = next(iter(reports.values())).headlines[0]
        charts.append((base, Markup(line_chart(series, "severity of the corruption", f"{metric} in %"))))
    return [(base, chart) for base, chart in charts if chart]


def _calibration_chart(runs: Sequence[Run], dataset: str, colors: Mapping[str, str]) -> tuple[Markup, str] | None:
    """Make a chart of accuracy over confidence and its caption, or None if no run was scored with calibration."""
    found = [(run.name, run.calibrations[dataset]) for run in runs if dataset in run.calibrations]
    if not found:
        return None
    ends = np.array([0.0, 100.0])
    series = [Series("perfect calibration", "var(--faint)", ends, ends)]
    for name, calibration in found:
        confidence, accuracy = calibration.curve()
        series.append(Series(name, colors[name], accuracy, confidence))
    errors = ", ".join(f"{name} {format_number(one.error)}" for name, one in found)
    return Markup(line_chart(series, "confidence in %", "accuracy in %")), f"calibration error (ECE) in %: {errors}"


def _score_tables(comparison: Comparison, runs: Sequence[Run], baseline: str | None) -> list[tuple[str, str, Table]]:
    """Make (heading, text, table) for mIoU under each rule, for means over seeds and for panoptic scores."""
    headings, report = comparison.headings, comparison.example
    # Gains refer to the mean over targets, or to the only target.
    scored = MEAN if MEAN in headings else headings[0] if report.targets else ""
    candidates = [run for run in runs if baseline in (None, run.name)]
    reference = candidates[0] if candidates and scored and len(runs) > 1 else None
    words = ["★ marks the best score in a column."] if len(runs) > 1 else []
    if reference is not None:
        score = scored if scored == MEAN else f"mIoU on {scored}"
        words.append(f"Gain: {score} relative to {reference.name}, in points.")
    base = reference.report.run if reference is not None else None
    tables = []
    single = Comparison(tuple(Group(run.name, "", {run.report.run.seed: run.report}) for run in runs))
    for one in (single, *single.other_means()):
        text = f"{one.metric} in percent; {one.describe()}. {' '.join(words)}"
        names = [group.name for group in one.groups]
        tables.append(("" if one is single else one.metric, text, _score_table(one, names, scored, base)))
    if any(len(group.reports) > 1 for group in comparison.groups):
        names = [f"{group.name}, {len(group.reports)} seeds" for group in comparison.groups]
        table = _score_table(comparison, names, scored, base)
        tables.append(("Mean ± standard deviation over the seeds", "", table))
    columns = {"in %": [run.name for run in runs]}
    for metric in _PANOPTIC:
        for name, dataset in report.datasets.items():
            values = [run.report.score(name, metric) for run in runs]
            if not all(map(math.isnan, values)):
                columns[f"{dataset.heading}: {metric}"] = list(map(format_number, values))
    if len(columns) > 1:
        tables.append(("Panoptic scores", "", _with_stars(list(columns), list(zip(*columns.values(), strict=True)))))
    return tables


def _score_table(comparison: Comparison, names: Sequence[str], scored: str, reference: RunMetadata | None) -> Table:
    """Make a table with one row per group, and gains over the group of `reference` after the column `scored`."""
    groups, head = comparison.groups, [f"{comparison.metric} in %", *comparison.headings]
    rows = [
        [name, *(format_spread(group.values(heading)) for heading in comparison.headings)]
        for name, group in zip(names, groups, strict=True)
    ]
    base = next((group for group in groups if reference in [one.run for one in group.reports.values()]), None)
    if base is not None and len(groups) > 1:
        place = 1 + head.index(scored)
        head.insert(place, _GAIN)
        for row, group in zip(rows, groups, strict=True):
            row.insert(place, "baseline" if group is base else format_spread(group.gains(base, scored), "+"))
    return _with_stars(head, rows)


def _with_stars(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    columns = [column for column, heading in enumerate(head) if column > 0 and heading != _GAIN]
    best = [(row, column) for column in columns for row in best_places([cells[column] for cells in rows])]
    return Table(head, rows, best, head.index(MEAN) if MEAN in head else None, "scores")


def _class_bars(
    runs: Sequence[Run], datasets: Sequence[str], colors: Mapping[str, str]
) -> list[tuple[str, list[tuple[float, str, str]]]]:
    """Make one row per class with one bar per run: share of the width, text and color."""
    scores = [class_scores(run.report, datasets) for run in runs]
    rows = []
    for name in dict.fromkeys(name for one in scores for name in one):
        values = [one.get(name, math.nan) for one in scores]
        if not all(map(math.isnan, values)):
            bars = [(0.0 if math.isnan(value) else value / 100, format_number(value), colors[run.name])
                    for run, value in zip(runs, values, strict=True)]  # fmt: skip
            unseen = any(name in run.report.unseen for run in runs)
            rows.append((f"{name} (unseen)" if unseen else name, bars))
    return rows


def _image_pairs(runs: Sequence[Run], row: Sequence[Example]) -> list[list[tuple[str, str]]]:
    """Make (URI, caption) for an image: image and ground truth, then prediction, errors and confidence for each run."""
    first, classes = row[0], row[0].classes

    def photo(pixels: Pixels) -> str:
        return image_uri(downsample(pixels, _IMAGE_WIDTH, smooth=True))

    def labels(ids: Any) -> str:
        return image_uri(downsample(color_labels(ids, classes.colors), _IMAGE_WIDTH, smooth=False), lossless=True)

    pairs = [[(photo(first.image), first.title), (labels(first.truth), "ground truth")]]
    for run, one in zip(runs, row, strict=True):
        correct = 100 * correct_share(one.truth, one.predicted, classes.ignore_label)
        errors = mark_errors(one.image, one.truth, one.predicted, classes.ignore_label)
        caption = f"errors, {format_number(correct, 0)} % correct"
        sure = 100 * float(one.confidence.mean())
        unsure = photo(mark_unsure(one.image, one.confidence)), f"not sure, mean confidence {format_number(sure, 0)} %"
        pairs.append([(labels(one.predicted), run.name), (photo(errors), caption), unsure])
    return pairs


def _facts_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        facts, strategy = run.report.run, _shorten(run.settings.get("MODEL.STYLE.STRATEGY", "-"))
        trained_on = ", ".join(facts.trained_on) or "-"
        rows.append([run.name, trained_on, strategy, str(facts.seed), facts.weights.describe(), facts.date[:10]])
    return Table(["run", "trained on", "style strategy", "seed", "weights", "scored"], rows, kind="text")


def _shorten(value: object) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
