"""Tables of a report: targets with the winners marked, seeds put together, classes as bars, settings that differ."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from famix.reports.comparison import Comparison
from famix.reports.html import bars_cell, category_color, table
from famix.reports.report import CLASS_ACCURACY, MEAN, TASK, Report
from famix.reports.report_text import format_number
from famix.reports.run_folder import Run, differing_settings
from famix.reports.significance import format_spread

__all__ = ["class_bars", "panoptic_table", "seed_table", "settings_table", "target_table", "winners"]

_IOU = "IoU-"
_PANOPTIC = ("PQ", "mask AP")
_LONG = 60  # characters of a setting


def target_table(runs: Sequence[Run], metric: str = "mIoU") -> str:
    """A score on every target, their means, and on the source, a column per run; the best of a row is marked.

    Args:
        runs: that were scored alike.
        metric: name of the score.
    """
    rows = [run.report.row(metric) for run in runs]
    cells = {heading: [format_number(row[heading]) for row in rows] for heading in rows[0]}
    return _score_table(f"{metric} in %", [run.name for run in runs], cells)


def seed_table(comparison: Comparison) -> str:
    """Means and standard deviations over the seeds of every method; "" where no method has several.

    Args:
        comparison: of runs that were scored alike.
    """
    if all(len(group.reports) == 1 for group in comparison.groups):
        return ""
    names = [f"{group.name}, {len(group.reports)} seeds" for group in comparison.groups]
    cells = {
        heading: [format_spread(group.values(heading)) for group in comparison.groups]
        for heading in comparison.headings
    }
    return _score_table("mIoU in %", names, cells)


def panoptic_table(runs: Sequence[Run]) -> str:
    """PQ and mask AP on every data set, a column per run; "" where nothing of that was scored.

    Args:
        runs: that were scored alike.
    """
    cells = {}
    for metric in _PANOPTIC:
        for name, scored in runs[0].report.data_sets.items():
            values = [run.report.score(name, metric) for run in runs]
            if not all(map(math.isnan, values)):
                cells[f"{scored.heading}: {metric}"] = list(map(format_number, values))
    return _score_table("in %", [run.name for run in runs], cells) if cells else ""


def class_bars(runs: Sequence[Run], data_sets: Sequence[str]) -> str:
    """IoU of every class as bars, a bar per run; over several data sets the mean over those that show the class.

    Args:
        runs: that were scored alike.
        data_sets: names.

    Returns:
        A table; "" where no class has a score.
    """
    scores = [_class_scores(run.report, data_sets) for run in runs]
    names = [name for name in dict.fromkeys(name for one in scores for name in one) if _any_score(scores, name)]
    rows = []
    for name in names:
        values = [one.get(name, math.nan) for one in scores]
        bars = [
            (0.0 if math.isnan(value) else value / 100, format_number(value), category_color(place))
            for place, value in enumerate(values)
        ]
        rows.append([name, bars_cell(bars)])
    return table(["class", "IoU in %"], rows, kind="bars") if rows else ""


def settings_table(runs: Sequence[Run]) -> str:
    """The settings in which runs differ; "" where there are none."""
    rows = [[key, *map(_shorten, values)] for key, values in sorted(differing_settings(runs).items())]
    return table(["setting", *(run.name for run in runs)], rows, kind="text") if rows else ""


def winners(texts: Sequence[str]) -> list[int]:
    """Places of the best numbers; none where all read the same.

    Args:
        texts: that begin with a number, or a dash where there is none.
    """
    shown = [math.nan if text == "-" else float(text.split()[0]) for text in texts]
    numbers = [value for value in shown if not math.isnan(value)]
    if len(set(numbers)) < 2:
        return []
    return [place for place, value in enumerate(shown) if value == max(numbers)]


def _score_table(corner: str, names: Sequence[str], cells: Mapping[str, Sequence[str]]) -> str:
    """A table with a column for every name and a row for every heading of `cells`."""
    best = {row: [place + 1 for place in winners(texts)] for row, texts in enumerate(cells.values())}
    totals = [row for row, heading in enumerate(cells) if heading == MEAN]
    rows = [[heading, *texts] for heading, texts in cells.items()]
    return table([corner, *names], rows, best=best, totals=totals, kind="scores")


def _class_scores(report: Report, data_sets: Sequence[str]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for name in data_sets:
        scores = report.results[name].get(TASK, {})
        for metric, value in scores.items():
            if metric.startswith(_IOU):
                if math.isnan(scores.get(metric.replace(_IOU, CLASS_ACCURACY), 0)):
                    value = math.nan  # the 0 of a class that is only predicted
                values.setdefault(metric.removeprefix(_IOU), []).append(value)
    known = {name: [value for value in found if not math.isnan(value)] for name, found in values.items()}
    return {name: fmean(found) if found else math.nan for name, found in known.items()}


def _any_score(scores: Sequence[dict[str, float]], name: str) -> bool:
    return any(not math.isnan(one.get(name, math.nan)) for one in scores)


def _shorten(value: object) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
