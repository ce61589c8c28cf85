"""The town's story as one HTML page without anything outside of it."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from famix.files import whole_file
from famix.insight.html import facts_list, html_page, paragraph, table
from famix.minitown.experiment import unseen_mean

__all__ = ["Story", "format_gain", "score_rows", "write_page"]

UNSEEN = "mean of the unseen"

_SENTENCES = (
    "Both networks start from the same CLIP, which knows pictures of many looks and weathers by their captions, keep most "
    "of it frozen, and learn from the same labelled images of clear days in a rendered town. FAMix also turned short "
    "prompts, each of the words below with the name of a class, into feature styles through CLIP, and mixed these into "
    "the features of pictures while it trained; the baseline did not. Both were then scored on the same other scenes "
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
    rows = score_rows(story.scores)
    uri = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    body = [
        f"<h1>FAMix in a miniature town: {escape(_headline(story))}</h1>",
        paragraph(_SENTENCES),
        table(
            ["mIoU in %", *story.titles, "gain"],
            [
                [label, *(f"{value:.1f}" for value in values), format_gain(values[-1] - values[0])]
                for label, values in rows
            ],
            best={number: _winner(values) for number, (_, values) in enumerate(rows)},
            totals=[number for number, (label, _) in enumerate(rows) if label == UNSEEN],
        ),
        f'<figure><img src="{uri}" alt="One scene in every condition: image, truth, and what both networks see"></figure>',
        facts_list(story.facts),
    ]
    with whole_file(path) as part:
        part.write_text(html_page("FAMix in a miniature town", "\n".join(body)), encoding="utf-8")


def _headline(story: Story) -> str:
    if math.isnan(story.gain):
        return "trained on clear days"
    return f"{format_gain(story.gain)} points in light and weather without training images"


def _winner(values: Sequence[float]) -> list[int]:
    """Columns of the best score; none where all read the same."""
    if len({f"{value:.1f}" for value in values}) == 1:
        return []
    return [1 + column for column, value in enumerate(values) if value == max(values)]
