"""Report for the demo: a table of scores, a figure of one scene in every condition, and an HTML page with both."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from famix.data import (
    CITYSCAPES_CLASSES,
    get_dataset_dicts,
    get_label_readers,
    label_file_of,
    read_image,
    register_datasets,
)
from famix.engine import load_config
from famix.inference import Predictor
from famix.io.atomic import whole_file
from famix.reports.page import Table, render_page
from famix.reports.tables import best_places, format_number
from famix.visualization.figure import Tile, compose_figure, save_figure
from famix_minitown.runs.experiment import condition_of, read_scores, unseen_mean

SCENE = 7  # index of the scene in the figure, chosen before any result was known

_SENTENCES = (
    "All networks start from the same CLIP, which was trained on captioned images with many looks and kinds of weather. "
    "They keep most of it frozen and train on the same labeled clear-day images of a rendered town. The baseline adds "
    "nothing. Jitter randomly changes the brightness, contrast and saturation of the training images. FAMix uses CLIP to "
    "turn short prompts, which combine the words below with class names, into feature styles, and mixes these styles into "
    "the features of the training images. FAMix + jitter does both: its gain over jitter is the contribution of the "
    "styles. All networks are evaluated on the same held-out scenes, on clear days and in light and weather absent "
    "from the training images."
)
_CELL_WIDTH, _FONT_SIZE = 230, 24  # of the figure, in pixels
_UNLABELED = (225, 225, 225)


@dataclass(frozen=True)
class Results:
    """Results of the demo."""

    titles: Sequence[str]  # titles of the networks
    scores: Sequence[Mapping[str, float]]  # for each network: condition -> mIoU in percent
    references: Sequence[str]  # titles of the networks that gains are relative to
    facts: Mapping[str, str]  # name -> text

    def gain(self, title: str, reference: str) -> float:
        """Return the difference between two networks in unseen mean mIoU, in points."""
        means = dict(zip(self.titles, map(unseen_mean, self.scores), strict=True))
        return means[title] - means[reference]


def score_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Build the table of scores.

    Returns:
        The headings (conditions, unseen mean, and its gain over each reference) and one row for each network, which starts
        with its title. The gain of a reference over itself is empty.
    """
    heads = ["mIoU in %", *results.scores[0], "unseen mean", *map(_over, results.references)]
    rows = []
    for title, scores in zip(results.titles, results.scores, strict=True):
        values = [f"{value:.1f}" for value in (*scores.values(), unseen_mean(scores))]
        gains = [
            format_number(results.gain(title, ref), sign="+") if ref != title else "" for ref in results.references
        ]
        rows.append([title, *values, *gains])
    return heads, rows


def _over(reference: str) -> str:
    return f"vs. {reference.removeprefix('+ ')}"


def write_page(results: Results, figure: Path, path: Path) -> None:
    """Write the HTML page, which contains the figure (a PNG file).

    Raises:
        OSError: a file cannot be read or written.
    """
    heads, rows = score_table(results)
    scored = range(1, len(results.scores[0]) + 2)
    gain, headline = results.gain(results.titles[-1], results.references[-1]), "trained on clear days"
    if not math.isnan(gain):
        over = _over(results.references[-1]).replace("vs.", "over")
        headline = f"{gain:+.1f} points {over} in light and weather without training images"
    page = render_page(
        "town.html",
        "famix_minitown",
        title=f"FAMix in a miniature town: {headline}",
        words=_SENTENCES,
        scores=Table(heads, rows, best={(row, col) for col in scored for row in best_places([r[col] for r in rows])}),
        uri=f"data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}",
        facts=results.facts,
    )
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


@dataclass(frozen=True)
class FigureRow:
    """Row of the figure. Labels are train ids, (H, W) uint8. Scores are mIoU in percent over the whole dataset."""

    condition: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predictions: tuple[NDArray[np.uint8], ...]  # one for each network
    scores: tuple[float, ...]


def draw_runs(runs: Sequence[Path], titles: Sequence[str], path: Path) -> None:
    """Draw the predictions of finished runs for one scene in every condition.

    Args:
        runs: OUTPUT_DIRs with config.yaml, model_final.pth and results.json, all with the same DATASETS.TEST.
        titles: titles of the runs.
        path: PNG file to write.

    Raises:
        FAMixError: a run is not finished, or a dataset cannot be read.
    """
    cfg = load_config(str(runs[0] / "config.yaml"))
    register_datasets(cfg.DATASETS.FILES)
    names = list(cfg.DATASETS.TEST)
    predictors = [Predictor.from_checkpoint(run / "model_final.pth", device=cfg.MODEL.DEVICE) for run in runs]
    readers, scores = get_label_readers(names), [read_scores(run) for run in runs]
    rows = []
    for name in names:
        dicts = get_dataset_dicts([name])
        record, condition = dicts[SCENE % len(dicts)], condition_of(name)
        image, truth = np.asarray(read_image(record["file_name"])), readers[name].read(label_file_of(record))
        predicted = tuple(predictor(image, keep_scores=False).labels.astype(np.uint8) for predictor in predictors)
        rows.append(FigureRow(condition, image, truth, predicted, tuple(score[condition] for score in scores)))
    draw_figure(rows, titles, path)


def draw_figure(rows: Sequence[FigureRow], titles: Sequence[str], path: Path) -> None:
    """Draw a row per condition: image, ground truth and each network's prediction, with the best score in bold.

    Args:
        rows: one or more rows. All images have the same size.
        titles: titles of the networks.
        path: PNG file to write. Its folder is created if needed.
    """
    colors = np.full((256, 3), _UNLABELED, np.uint8)
    colors[: len(CITYSCAPES_CLASSES)] = [entry.color for entry in CITYSCAPES_CLASSES]
    grid: list[list[Tile]] = []
    for row in rows:
        heads = [("image", "one scene"), ("ground truth", "labels"), *((t, "mIoU in %, all scenes") for t in titles)]
        heads = [("", "")] * len(heads) if grid else heads
        notes, best = ("", *(f"{score:.1f}" for score in row.scores)), f"{max(row.scores):.1f}"
        tiles = [Tile(row.image, *heads[0])]
        for ids, note, head in zip((row.truth, *row.predictions), notes, heads[1:], strict=True):
            tiles.append(Tile(colors[ids], *head, note=note, bold=note == best, smooth=False))
        grid.append(tiles)
    shown = np.unique([ids for row in rows for ids in (row.truth, *row.predictions)])
    legend = [(entry.name, entry.color) for i, entry in enumerate(CITYSCAPES_CLASSES) if i in shown]
    cell = (_CELL_WIDTH, round(_CELL_WIDTH * rows[0].image.shape[0] / rows[0].image.shape[1]))
    conditions = [row.condition for row in rows]
    save_figure(compose_figure(grid, cell, row_labels=conditions, legend=legend, font_size=_FONT_SIZE), path)
