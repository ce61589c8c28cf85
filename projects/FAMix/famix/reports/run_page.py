"""One or several runs as a page: scores, classes, confusions, examples, losses, and what was run."""

from collections.abc import Mapping, Sequence
from html import escape

from famix.reports.comparison import Comparison, compare_reports
from famix.reports.confusion_view import draw_confusion, largest_confusions
from famix.reports.html import category_color, facts_list, folded, html_page, image_uri, paragraph
from famix.reports.report_text import format_number
from famix.reports.run_examples import Example
from famix.reports.run_folder import Run
from famix.reports.run_tables import class_bars, panoptic_table, seed_table, settings_table, target_table
from famix.visualization.charts import Series, color_key, line_chart
from famix.visualization.label_pictures import Pixels, color_labels, mark_errors, right_share, shrink

__all__ = ["render_runs"]

_PICTURE_WIDTH = 440  # pixels
_CSS = """
.matrix .right { fill: var(--best); }
.matrix .wrong { fill: #d6336c; }
.matrix .grid { fill: none; }
.pictures { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); margin: .6rem 0; }
.pair { display: grid; gap: .6rem; grid-template-columns: 1fr 1fr; }
.pair figure { margin: 0; }
.pictures figcaption { margin-top: .15rem; }
.bars { max-width: 46rem; }
.bars td { border-bottom: 0; padding-top: .2rem; padding-bottom: .2rem; }
"""
_WINNERS = " ★ marks the best of a row, unless all read the same."
_ERRORS = (
    "The images stand at fixed places of each data set and were not picked by what they show. Red: labelled pixels that "
    "are wrong."
)

Examples = Mapping[str, Sequence[Example]]


def render_runs(runs: Sequence[Run], examples: Examples, notes: Sequence[str] = ()) -> str:
    """The page of some runs: everything inside, nothing from elsewhere, and readable without scripts.

    Args:
        runs: see `read_runs`. Those that were scored differently stand in parts of their own.
        examples: name of a run -> what its model makes of some images; runs may be missing.
        notes: what else the reader should know, e.g. why there are no examples.

    Raises:
        ConfigError: two runs are of the same config and seed, so that one of them would be counted twice.
    """
    comparisons = compare_reports({str(run.folder): run.report for run in runs})
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    body = [f"<h1>{escape(title)}</h1>"]
    if len(comparisons) > 1:
        body.append(
            paragraph("Runs that were scored in different ways stand in different parts and cannot be compared.")
        )
    for comparison in comparisons:
        members = {id(report) for group in comparison.groups for report in group.reports.values()}
        body += _comparison_part(comparison, [run for run in runs if id(run.report) in members], examples)
    body += _losses(runs)
    body += _facts(runs, notes)
    return html_page(title, "\n".join(body), css=_CSS)


def _comparison_part(comparison: Comparison, runs: Sequence[Run], examples: Examples) -> list[str]:
    report = comparison.example
    words = f"Mean IoU over the classes; {comparison.scored_how()}.{_WINNERS if len(runs) > 1 else ''}"
    part = ["<h2>Targets</h2>", paragraph(words), target_table(runs)]
    for other in comparison.other_means():
        part += [
            f"<h3>{escape(other.metric)}</h3>",
            paragraph(f"{other.scored_how()}."),
            target_table(runs, other.metric),
        ]
    if seeds := seed_table(comparison):
        part += ["<h3>Mean ± standard deviation over the seeds</h3>", seeds]
    if panoptic := panoptic_table(runs):
        part += ["<h3>Panoptic scores</h3>", panoptic]
    part += _classes(runs, report.targets, report.sources)
    part += _confusions(runs, [*report.targets, *report.sources])
    return part + _examples(runs, [*report.targets, *report.sources], examples)


def _classes(runs: Sequence[Run], targets: Sequence[str], sources: Sequence[str]) -> list[str]:
    headings = {name: scored.heading for name, scored in runs[0].report.data_sets.items()}
    parts = [folded("mean of the targets", class_bars(runs, targets), is_open=True)] if len(targets) > 1 else []
    for name in (*targets, *sources):
        if bars := class_bars(runs, [name]):
            parts.append(folded(headings[name], bars, is_open=not parts))
    return ["<h2>Classes</h2>", _run_key(runs), *parts] if parts else []


def _confusions(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    parts: list[str] = []
    for name in names:
        drawn = [_confusion(run, name) for run in runs if name in run.confusions]
        if drawn:
            heading = runs[0].report.data_sets[name].heading
            parts.append(folded(heading, f'<div class="side">{"".join(drawn)}</div>', is_open=not parts))
    if not parts:
        return []
    words = "Rows are true classes, columns what they were taken for: green is found, red is not; the stronger, the larger the share of the row."
    return ["<h2>Confusions</h2>", paragraph(words), *parts]


def _confusion(run: Run, name: str) -> str:
    matrix = run.confusions[name]
    found = "; ".join(
        f"{one.true} taken for {one.predicted} {100 * one.share:.0f} %" for one in largest_confusions(matrix)
    )
    caption = f"{run.name}. {found}" if found else run.name
    return f"<figure>{draw_confusion(matrix)}<figcaption>{escape(caption)}</figcaption></figure>"


def _examples(runs: Sequence[Run], names: Sequence[str], examples: Examples) -> list[str]:
    with_examples = [run for run in runs if examples.get(run.name)]
    parts: list[str] = []
    for name in names:
        shown = [[one for one in examples[run.name] if one.data_set == name] for run in with_examples]
        rows = [_example_row(with_examples, row) for row in zip(*shown, strict=True)]
        if rows:
            heading = runs[0].report.data_sets[name].heading
            parts.append(folded(heading, "\n".join(rows), is_open=not parts))
    if not parts:
        return []
    return ["<h2>Examples</h2>", paragraph(_ERRORS), _class_key(examples), *parts]


def _example_row(runs: Sequence[Run], row: Sequence[Example]) -> str:
    """One image: itself, the truth, and for every run its prediction and its errors."""
    first = row[0]
    classes = first.classes
    pairs = [_pair(first.image, first.title, color_labels(first.truth, classes.colors), "truth", smooth=(True, False))]
    for run, one in zip(runs, row, strict=True):
        right = 100 * right_share(one.truth, one.predicted, classes.ignore_label)
        errors = mark_errors(one.image, one.truth, one.predicted, classes.ignore_label)
        colored = color_labels(one.predicted, classes.colors)
        pairs.append(
            _pair(colored, run.name, errors, f"errors, {format_number(right, 0)} % right", smooth=(False, True))
        )
    return f'<div class="pictures">{"".join(pairs)}</div>'


def _pair(first: Pixels, first_caption: str, second: Pixels, second_caption: str, *, smooth: tuple[bool, bool]) -> str:
    figures = [
        _figure(pixels, caption, smooth=one)
        for pixels, caption, one in zip((first, second), (first_caption, second_caption), smooth, strict=True)
    ]
    return f'<div class="pair">{"".join(figures)}</div>'


def _figure(pixels: Pixels, caption: str, *, smooth: bool) -> str:
    """A picture with words; `smooth` ones are photographs rather than drawings."""
    uri = image_uri(shrink(pixels, _PICTURE_WIDTH, smooth=smooth), lossless=not smooth)
    words = escape(caption)
    return f'<figure><img src="{uri}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _class_key(examples: Examples) -> str:
    tables = [one.classes for found in examples.values() for one in found]
    entries = {
        (name, f"rgb({red} {green} {blue})"): None
        for classes in tables
        for name, (red, green, blue) in zip(classes.names, classes.colors, strict=True)
    }
    return color_key(list(entries))


def _losses(runs: Sequence[Run]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.losses)
    charts = []
    for name in names:
        series = [
            Series(run.name, category_color(place), run.losses[name].values, run.losses[name].iterations)
            for place, run in enumerate(runs)
            if name in run.losses
        ]
        if chart := line_chart(series, "iteration", name.replace("_", " ")):
            charts.append(f"<figure>{chart}</figure>")
    return ["<h2>Losses</h2>", _run_key(runs), f'<div class="side">{"".join(charts)}</div>'] if charts else []


def _facts(runs: Sequence[Run], notes: Sequence[str]) -> list[str]:
    parts = ["<h2>What was run</h2>"]
    if settings := settings_table(runs):
        parts += [paragraph("Settings in which the runs differ:"), settings]
    for run in runs:
        facts = run.report.run
        described = {
            "folder": str(run.folder),
            "weights": facts.weights.describe(),
            "file": facts.weights.file or "none, in memory",
            "sha256": facts.weights.sha256 or "",
            "seed": str(facts.seed),
            "trained on": ", ".join(facts.trained_on),
            "scored": facts.date,
            "versions": ", ".join(f"{name} {number}" for name, number in facts.versions.items()),
        }
        if run.missing:
            described["missing here"] = "; ".join(run.missing)
        parts.append(folded(run.name, facts_list(described)))
    return [*parts, *(paragraph(note) for note in notes)]


def _run_key(runs: Sequence[Run]) -> str:
    return color_key([(run.name, category_color(place)) for place, run in enumerate(runs)])
