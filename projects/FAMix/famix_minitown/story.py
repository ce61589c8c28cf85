"""The picture of the town's story: one scene in every condition, and what the networks see in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
from famix_minitown.experiment import condition_of, read_scores

__all__ = ["SCENE", "StoryRow", "draw_story", "tell_story"]

SCENE = 7
"""Number of the scene that is shown, chosen before any result was seen."""

_WIDTH, _MARGIN, _LABEL_WIDTH, _GAP = 1600, 32, 104, 8  # pixels
_HEADER_HEIGHT, _LEGEND_LINE = 84, 34
_INK, _FAINT, _PAPER = (28, 30, 34), (112, 116, 122), (255, 255, 255)
_UNLABELLED = (225, 225, 225)
_IGNORE_LABEL = 255

Box = tuple[int, int]  # left, top


@dataclass(frozen=True)
class StoryRow:
    """A row of the picture.

    Attributes:
        condition: its label.
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) uint8 train ids.
        predictions: of every network, (H, W) uint8 train ids.
        scores: of every network, mIoU in percent over the whole data set.
    """

    condition: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predictions: tuple[NDArray[np.uint8], ...]
    scores: tuple[float, ...]


def tell_story(runs: Sequence[Path], titles: Sequence[str], path: Path, scene: int = SCENE) -> None:
    """Let finished runs label one scene in every condition, and draw that.

    Args:
        runs: OUTPUT_DIRs with config.yaml, model_final.pth and results.json, of the same DATASETS.TEST.
        titles: of the runs.
        path: of the PNG file.
        scene: number of the scene in every data set; counted from the start again where a data set is smaller.

    Raises:
        FAMixError: a run is not finished, or a data set cannot be read.
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
        rows.append(StoryRow(condition, image, truth, predicted, tuple(score[condition] for score in scores)))
    draw_story(rows, titles, path)


@torch.inference_mode()
def _predict(run: Path, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Train ids (H, W) of every image, by the last checkpoint of a run."""
    cfg = load_config(str(run / "config.yaml"))
    model = Trainer.build_model(cfg).eval()
    SafeCheckpointer(model, str(run), strict=True).load(str(run / "model_final.pth"))
    predictions = []
    for image in images:
        inputs = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
        (result,) = model([{**inputs, "height": image.shape[0], "width": image.shape[1]}])
        predictions.append(result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy())
    return predictions


def draw_story(rows: Sequence[StoryRow], titles: Sequence[str], path: Path) -> None:
    """Draw the picture, some 1600 pixels wide: a row per condition; image, truth and a column per network.

    Args:
        rows: at least one; all images of one size.
        titles: of the networks.
        path: of the PNG file, whose folder is made where it is missing.
    """
    columns = 2 + len(titles)
    cell_width = (_WIDTH - 2 * _MARGIN - _LABEL_WIDTH - (columns - 1) * _GAP) // columns
    cell = cell_width, round(cell_width * rows[0].image.shape[0] / rows[0].image.shape[1])
    legend = _legend_lines(rows)
    top = _MARGIN + _HEADER_HEIGHT
    legend_top = top + len(rows) * (cell[1] + _GAP) + 16
    page = Image.new("RGB", (_WIDTH, legend_top + len(legend) * _LEGEND_LINE + _MARGIN - 12), _PAPER)
    lefts = [_MARGIN + _LABEL_WIDTH + column * (cell_width + _GAP) for column in range(columns)]
    _draw_header(page, ("image", "ground truth", *titles), lefts, cell_width)
    for number, row in enumerate(rows):
        _draw_row(page, row, lefts, top + number * (cell[1] + _GAP), cell)
    _draw_legend(page, legend, (lefts[0], legend_top))
    with whole_file(path) as part:
        page.save(part, format="PNG", optimize=True)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"  # comes with matplotlib: the same on every machine
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def _draw_header(page: Image.Image, titles: Sequence[str], lefts: Sequence[int], width: int) -> None:
    pen = ImageDraw.Draw(page)
    explanations = ["one scene", "labels", *["mIoU in %, all scenes"] * (len(titles) - 2)]
    for title, explanation, left in zip(titles, explanations, lefts, strict=True):
        pen.text((left, _MARGIN + 34), title, _INK, _fitting_font(title, width, 30, bold=True), anchor="ls")
        pen.text((left, _MARGIN + 42), explanation, _FAINT, _fitting_font(explanation, width, 19))


def _fitting_font(text: str, width: int, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The largest font, of a size at most, in which a text is not wider than its column."""
    return next(font for font in (_font(s, bold) for s in range(size, 0, -1)) if font.getlength(text) <= width)


def _draw_row(page: Image.Image, row: StoryRow, lefts: Sequence[int], top: int, cell: tuple[int, int]) -> None:
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, top + cell[1] // 2), row.condition, _INK, _font(26), anchor="lm")
    tiles = [Image.fromarray(row.image).resize(cell, Image.Resampling.LANCZOS)]
    tiles += [_colour(ids).resize(cell, Image.Resampling.NEAREST) for ids in (row.truth, *row.predictions)]
    for tile, left in zip(tiles, lefts, strict=True):
        page.paste(tile, (left, top))
    best = max(row.scores)
    for score, left in zip(row.scores, lefts[2:], strict=True):
        _draw_score(pen, score, (left + cell[0] - 6, top + cell[1] - 6), score == best)


def _draw_score(pen: ImageDraw.ImageDraw, score: float, corner: Box, is_best: bool) -> None:
    """A number on a light plate, whose right lower corner is given; the best of a row is bold."""
    font, text = _font(22, bold=is_best), f"{score:.1f}"
    width = int(pen.textlength(text, font))
    right, bottom = corner
    pen.rounded_rectangle((right - width - 12, bottom - 28, right, bottom), 5, _PAPER)
    pen.text((right - 6, bottom - 14), text, _INK if is_best else _FAINT, font, anchor="rm")


def _colour(ids: NDArray[np.uint8]) -> Image.Image:
    table = np.full((256, 3), _UNLABELLED, np.uint8)
    table[: len(CITYSCAPES_CLASSES)] = [entry.color for entry in CITYSCAPES_CLASSES]
    return Image.fromarray(table[ids])


def _legend_lines(rows: Sequence[StoryRow]) -> list[list[int]]:
    """Ids of all classes that the picture shows, in lines that fit the page."""
    shown = {int(i) for row in rows for ids in (row.truth, *row.predictions) for i in np.unique(ids)}
    lines: list[list[int]] = [[]]
    room = left = _WIDTH - 2 * _MARGIN - _LABEL_WIDTH
    for class_id in sorted(shown - {_IGNORE_LABEL}):
        width = _entry_width(class_id)
        if width > left:
            lines.append([])
            left = room
        lines[-1].append(class_id)
        left -= width
    return lines


def _entry_width(class_id: int) -> int:
    return 30 + int(_font(20).getlength(CITYSCAPES_CLASSES[class_id].name)) + 26


def _draw_legend(page: Image.Image, lines: Sequence[Sequence[int]], corner: Box) -> None:
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        left, middle = corner[0], corner[1] + number * _LEGEND_LINE + 12
        for class_id in line:
            entry = CITYSCAPES_CLASSES[class_id]
            pen.rounded_rectangle((left, middle - 10, left + 20, middle + 10), 4, entry.color)
            pen.text((left + 29, middle), entry.name, _INK, _font(20), anchor="lm")
            left += _entry_width(class_id)
