"""The town's story as one HTML page without anything outside of it."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from famix.minitown.experiment import unseen_mean

__all__ = ["Story", "format_gain", "score_rows", "write_page"]

UNSEEN = "mean of the unseen"

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>FAMix in a miniature town</title>
<style>
:root { --ink: #1c1e22; --faint: #6a6e75; --paper: #ffffff; --line: #dcdee2; --best: #0b7a3b; --code: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa0a8; --paper: #15171a; --line: #33373d; --best: #5fd08c; --code: #202429; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; }
img { display: block; width: 100%; height: auto; border-radius: 6px; margin: 1.5rem 0; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--faint); font-weight: 600; }
tr.total td { border-top: 2px solid var(--line); font-weight: 600; }
td.best { color: var(--best); font-weight: 700; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 1.5rem 0 0; font-size: .92rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
code { background: var(--code); padding: .1rem .35rem; border-radius: 4px; font-size: .9em; }
</style>
</head>
<body>
<h1>FAMix in a miniature town: $headline</h1>
<p>$sentences</p>
<div class="wide"><table>
<thead><tr><th>mIoU in %</th>$head<th>gain</th></tr></thead>
<tbody>
$rows
</tbody>
</table></div>
<img src="data:image/png;base64,$picture" alt="One scene in every condition: image, truth, and what both networks see">
<dl>
$facts
</dl>
</body>
</html>
""")

_SENTENCES = (
    "Both networks start from the same CLIP, which knows pictures of many looks and weathers by their captions, keep most "
    "of it frozen, and learn from the same labelled images of clear days in a rendered town. FAMix also turned short "
    "prompts, each of the words below with the name of a class, into feature styles through CLIP, and mixed these into "
    "its features patch by patch while it trained; the baseline did not. Both were then scored on the same other scenes "
    "by clear day and in light and weather of which their training had no image, only, in the words, perhaps the name."
)


@dataclass(frozen=True)
class Story:
    """What the page tells.

    Attributes:
        titles: of the two networks, the baseline first.
        scores: of each, condition -> mIoU in percent.
        facts: name -> text, e.g. how long it took, the machine, the seed.
    """

    titles: tuple[str, str]
    scores: tuple[Mapping[str, float], Mapping[str, float]]
    facts: Mapping[str, str]

    @property
    def gain(self) -> float:
        """What the second network has more on the mean of the unseen conditions, in points of mIoU."""
        return unseen_mean(self.scores[1]) - unseen_mean(self.scores[0])


def score_rows(scores: Sequence[Mapping[str, float]]) -> list[tuple[str, list[float]]]:
    """Rows of the table: conditions, then the mean of the unseen ones.

    Args:
        scores: of every network, condition -> mIoU in percent.

    Returns:
        Pairs of a label and the score of every network.
    """
    rows = [(condition, [score[condition] for score in scores]) for condition in scores[0]]
    return [*rows, (UNSEEN, [unseen_mean(score) for score in scores])]


def format_gain(gain: float) -> str:
    """A difference in points, with its sign."""
    return "-" if math.isnan(gain) else f"{gain:+.1f}"


def write_page(story: Story, picture: Path, path: Path) -> None:
    """Write the page; the picture goes into it.

    Args:
        story: see Story.
        picture: a PNG file.
        path: of the HTML file, whose folder is made where it is missing.

    Raises:
        OSError: a file cannot be read or written.
    """
    facts = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in story.facts.items())
    page = _PAGE.substitute(
        headline=escape(_headline(story)),
        sentences=escape(_SENTENCES),
        head="".join(f"<th>{escape(title)}</th>" for title in story.titles),
        rows="\n".join(_row(label, values) for label, values in score_rows(story.scores)),
        picture=base64.b64encode(picture.read_bytes()).decode(),
        facts=facts,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _headline(story: Story) -> str:
    if math.isnan(story.gain):
        return "trained on clear days"
    return f"{format_gain(story.gain)} points in light and weather without training images"


def _row(label: str, values: Sequence[float]) -> str:
    best = max(values)
    tied = len({f"{value:.1f}" for value in values}) == 1  # what reads the same has no winner
    cells = [
        f"<td{_mark(value == best and not tied)}>{_score(value, value == best and not tied)}</td>" for value in values
    ]
    total = ' class="total"' if label == UNSEEN else ""
    return f"<tr{total}><td>{escape(label)}</td>{''.join(cells)}<td>{format_gain(values[-1] - values[0])}</td></tr>"


def _mark(is_best: bool) -> str:
    return ' class="best"' if is_best else ""


def _score(value: float, is_best: bool) -> str:
    return f"{value:.1f}{' ★' if is_best else ''}"
