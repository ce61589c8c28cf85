"""The town's story as one HTML page without anything outside of it."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from famix.io.atomic import whole_file
from famix.reports.html import facts_list, html_page, paragraph, table
from famix_minitown.experiment import unseen_mean

__all__ = ["Story", "format_gain", "score_table", "write_page"]

_SENTENCES = (
    "All networks start from the same CLIP, which knows images of many looks and weathers by their captions, keep most of "
    "it frozen, and train on the same labelled images of clear days in a rendered town. The baseline adds nothing. Jitter "
    "changes brightness, contrast and saturation of the training images at random. FAMix turns short prompts, each of the "
    "words below with the name of a class, into feature styles through CLIP, and mixes these into the features of the "
    "training images. FAMix + jitter does both: its gain over jitter is what styles add. All "
    "networks are scored on the same other scenes, by clear day and in light and weather that no training image shows."
)
_CSS = """.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--paper); }
@media (max-width: 45rem) { figure { overflow-x: auto; } figure img { width: 56rem; } }
"""


@dataclass(frozen=True)
class Story:
    """What the page tells.

    Attributes:
        titles: of the networks.
        scores: of each network, condition -> mIoU in percent.
        references: titles of the networks that the gains of the others are given over.
        facts: name -> text, e.g. how long it took, the machine, the seed.
    """

    titles: Sequence[str]
    scores: Sequence[Mapping[str, float]]
    references: Sequence[str]
    facts: Mapping[str, str]

    def gain(self, title: str, reference: str) -> float:
        """Difference of two networks in the mean of the unseen conditions, in points of mIoU."""
        means = dict(zip(self.titles, map(unseen_mean, self.scores), strict=True))
        return means[title] - means[reference]


def score_table(story: Story) -> tuple[list[str], list[list[str]]]:
    """Make the table of scores.

    Returns:
        Headings: the conditions, the mean of the unseen ones, and the gains in that over each reference. Rows: one for
        each network, its title first; a gain is empty for the reference itself.
    """
    heads = ["mIoU in %", *story.scores[0], "mean of unseen", *map(_over, story.references)]
    rows = []
    for title, scores in zip(story.titles, story.scores, strict=True):
        values = [f"{value:.1f}" for value in (*scores.values(), unseen_mean(scores))]
        gains = [format_gain(story.gain(title, name)) if name != title else "" for name in story.references]
        rows.append([title, *values, *gains])
    return heads, rows


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
    heads, rows = score_table(story)
    uri = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    body = [
        f"<h1>FAMix in a miniature town: {escape(_headline(story))}</h1>",
        paragraph(_SENTENCES),
        table(heads, rows, best=_winners(rows, len(story.scores[0]) + 1)),
        f'<figure><img src="{uri}" alt="One scene in every condition: image, ground truth, and what each network sees"></figure>',
        facts_list(story.facts),
    ]
    with whole_file(path) as part:
        part.write_text(html_page("FAMix in a miniature town", "\n".join(body), css=_CSS), encoding="utf-8")


def _headline(story: Story) -> str:
    """The gain of the last network over the last reference."""
    gain = story.gain(story.titles[-1], story.references[-1])
    if math.isnan(gain):
        return "trained on clear days"
    return f"{format_gain(gain)} points {_over(story.references[-1])} in light and weather without training images"


def _over(reference: str) -> str:
    return f"over {reference.removeprefix('+ ')}"


def _winners(rows: Sequence[Sequence[str]], count: int) -> dict[int, list[int]]:
    """Row -> columns in which it has the best score, as it reads; none where all rows read the same.

    Args:
        rows: of the table.
        count: number of columns with scores, behind the first column.
    """
    winners: dict[int, list[int]] = {}
    for column in range(1, count + 1):
        values = [float(row[column]) for row in rows]
        for number in [number for number, value in enumerate(values) if value == max(values) > min(values)]:
            winners.setdefault(number, []).append(column)
    return winners
