"""The town's story as one HTML page without anything outside of it."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from famix.io.atomic import whole_file
from famix.reports.page import Table, render_page
from famix.reports.tables import best_places
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
    page = render_page(
        "town.html",
        "famix_minitown",
        title=f"FAMix in a miniature town: {_headline(story)}",
        words=_SENTENCES,
        scores=Table(heads, rows, best=_winners(rows, len(story.scores[0]) + 1)),
        uri=f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}",
        facts=story.facts,
    )
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


def _headline(story: Story) -> str:
    """The gain of the last network over the last reference."""
    gain = story.gain(story.titles[-1], story.references[-1])
    if math.isnan(gain):
        return "trained on clear days"
    return f"{format_gain(gain)} points {_over(story.references[-1])} in light and weather without training images"


def _over(reference: str) -> str:
    return f"over {reference.removeprefix('+ ')}"


def _winners(rows: Sequence[Sequence[str]], count: int) -> set[tuple[int, int]]:
    """Return the (row, column) of the best score of each column, as printed; none for equal scores.

    Args:
        rows: of the table.
        count: number of columns with scores after the first column.
    """
    columns = range(1, count + 1)
    return {(row, column) for column in columns for row in best_places([one[column] for one in rows])}
