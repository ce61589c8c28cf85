"""Report of the demo: table of scores, figure of one scene in every condition, and both on one HTML page."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from famix.data import (
    CITYSCAPES_CLASSES,
    get_dataset_dicts,
    get_label_readers,
    label_file_of,
    read_image,
    register_datasets,
)
from famix.engine import SafeCheckpointer, Trainer, load_config
from famix.io.atomic import whole_file
from famix.reports.page import Table, render_page
from famix.reports.tables import best_places
from famix.visualization.figure import Tile, compose_figure, save_figure
from famix_minitown.experiment import condition_of, read_scores, unseen_mean

__all__ = ["SCENE", "FigureRow", "Results", "draw_figure", "draw_runs", "format_gain", "score_table", "write_page"]

SCENE = 7
"""Index of the scene in the figure, chosen before any result was known."""

_SENTENCES = (
    "All networks start from the same CLIP, which knows images of many looks and weathers by their captions, keep most of "
    "it frozen, and train on the same labeled images of clear days in a rendered town. The baseline adds nothing. Jitter "
    "changes brightness, contrast and saturation of the training images at random. FAMix turns short prompts, each of the "
    "words below with the name of a class, into feature styles through CLIP, and mixes these into the features of the "
    "training images. FAMix + jitter does both: its gain over jitter is the contribution of the styles. All networks are "
    "scored on the same other scenes, on clear days and in light and weather that no training image shows."
)
_CELL_WIDTH, _FONT_SIZE = 230, 24  # of the figure, in pixels
_UNLABELED = (225, 225, 225)


@dataclass(frozen=True)
class Results:
    """Results of the demo.

    Attributes:
        titles: of the networks.
        scores: of each network, condition -> mIoU in percent.
        references: titles of the networks that gains refer to.
        facts: name -> text, e.g. the time, the machine, the seed.
    """

    titles: Sequence[str]
    scores: Sequence[Mapping[str, float]]
    references: Sequence[str]
    facts: Mapping[str, str]

    def gain(self, title: str, reference: str) -> float:
        """Return the difference of two networks in the mean of the unseen conditions, in points of mIoU."""
        means = dict(zip(self.titles, map(unseen_mean, self.scores), strict=True))
        return means[title] - means[reference]


def score_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Make the table of scores.

    Returns:
        Headings: the conditions, the mean of the unseen ones, and its gain over each reference. Rows: one for each
        network, its title first; the gain of a reference over itself is empty.
    """
    heads = ["mIoU in %", *results.scores[0], "mean of unseen", *map(_over, results.references)]
    rows = []
    for title, scores in zip(results.titles, results.scores, strict=True):
        values = [f"{value:.1f}" for value in (*scores.values(), unseen_mean(scores))]
        gains = [format_gain(results.gain(title, name)) if name != title else "" for name in results.references]
        rows.append([title, *values, *gains])
    return heads, rows


def format_gain(gain: float) -> str:
    """Return a difference in points with its sign; "-" for NaN."""
    return "-" if math.isnan(gain) else f"{gain:+.1f}"


def _over(reference: str) -> str:
    return f"over {reference.removeprefix('+ ')}"


def write_page(results: Results, figure: Path, path: Path) -> None:
    """Write the HTML page, which contains the figure.

    Args:
        results: of the demo.
        figure: a PNG file.
        path: of the HTML file; its folder is made if needed.

    Raises:
        OSError: a file cannot be read or written.
    """
    heads, rows = score_table(results)
    scored = range(1, len(results.scores[0]) + 2)
    gain, headline = results.gain(results.titles[-1], results.references[-1]), "trained on clear days"
    if not math.isnan(gain):
        over = _over(results.references[-1])
        headline = f"{format_gain(gain)} points {over} in light and weather without training images"
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
    """A row of the figure.

    Attributes:
        condition: its label.
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) uint8 train ids.
        predictions: of every network, (H, W) uint8 train ids.
        scores: of every network, mIoU in percent over the whole dataset.
    """

    condition: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predictions: tuple[NDArray[np.uint8], ...]
    scores: tuple[float, ...]


def draw_runs(runs: Sequence[Path], titles: Sequence[str], path: Path, scene: int = SCENE) -> None:
    """Draw the predictions of finished runs in one scene in every condition.

    Args:
        runs: OUTPUT_DIRs with config.yaml, model_final.pth and results.json, of the same DATASETS.TEST.
        titles: of the runs.
        path: of the PNG file.
        scene: index of the scene, modulo the size of the dataset.

    Raises:
        FAMixError: a run is not finished, or a dataset cannot be read.
    """
    cfg = load_config(str(runs[0] / "config.yaml"))
    register_datasets(cfg.DATASETS.FILES)
    names = list(cfg.DATASETS.TEST)
    records = [dicts[scene % len(dicts)] for dicts in (get_dataset_dicts([name]) for name in names)]
    readers = get_label_readers(names)
    images = [np.asarray(read_image(record["file_name"])) for record in records]
    truths = [readers[record["dataset_name"]].read(label_file_of(record)) for record in records]
    predictions = list(zip(*(_predict(run, images) for run in runs), strict=True))
    scores = [read_scores(run) for run in runs]
    rows = []
    for name, image, truth, predicted in zip(names, images, truths, predictions, strict=True):
        condition = condition_of(name)
        rows.append(FigureRow(condition, image, truth, predicted, tuple(score[condition] for score in scores)))
    draw_figure(rows, titles, path)


@torch.inference_mode()
def _predict(run: Path, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Return the train ids (H, W) that the last checkpoint of a run predicts in each image."""
    model = Trainer.build_model(load_config(str(run / "config.yaml"))).eval()
    SafeCheckpointer(model, str(run), strict=True).load(str(run / "model_final.pth"))
    predictions = []
    for image in images:
        inputs = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
        (result,) = model([{**inputs, "height": image.shape[0], "width": image.shape[1]}])
        predictions.append(result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy())
    return predictions


def draw_figure(rows: Sequence[FigureRow], titles: Sequence[str], path: Path) -> None:
    """Draw a row per condition: image, ground truth and the prediction of each network; the best score is bold.

    Args:
        rows: at least one; all images of one size.
        titles: of the networks.
        path: of the PNG file; its folder is made if needed.
    """
    colors = np.full((256, 3), _UNLABELED, np.uint8)
    colors[: len(CITYSCAPES_CLASSES)] = [entry.color for entry in CITYSCAPES_CLASSES]
    grid: list[list[Tile]] = []
    for row in rows:
        heads = [
            ("image", "one scene"),
            ("ground truth", "labels"),
            *((title, "mIoU in %, all scenes") for title in titles),
        ]
        if grid:
            heads = [("", "")] * len(heads)
        labels = zip((row.truth, *row.predictions), ("", *(f"{s:.1f}" for s in row.scores)), strict=True)
        best = f"{max(row.scores):.1f}"
        tiles = [Tile(row.image, *heads[0])]
        for (ids, note), head in zip(labels, heads[1:], strict=True):
            tiles.append(Tile(colors[ids], *head, note=note, bold=note == best, smooth=False))
        grid.append(tiles)
    shown = {int(i) for row in rows for ids in (row.truth, *row.predictions) for i in np.unique(ids)}
    legend = [(entry.name, entry.color) for i, entry in enumerate(CITYSCAPES_CLASSES) if i in shown]
    height = round(_CELL_WIDTH * rows[0].image.shape[0] / rows[0].image.shape[1])
    labels_of_rows = [row.condition for row in rows]
    figure = compose_figure(grid, (_CELL_WIDTH, height), row_labels=labels_of_rows, legend=legend, font_size=_FONT_SIZE)
    save_figure(figure, path)
