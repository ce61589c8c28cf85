"""A picture of a dataset: some of its images, each beside itself under its label, and what the colours mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from famix.data.images import MAX_PIXELS, read_image
from famix.data.inspection.report import IGNORED, DatasetReport
from famix.data.labels import LabelReader
from famix.data.records import label_file_of
from famix.data.registration import get_label_readers

__all__ = ["draw_contact_sheet", "overlay_labels"]

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

_COLUMNS = 3
_WIDTH = 304  # of an image, in pixels
_SHAPES = (0.4, 1.1)  # lowest and highest height of the place of an image, relative to its width
_GAP, _MARGIN, _CAPTION, _TITLE, _ENTRY = 14, 28, 20, 52, 26
_ENTRY_WIDTH = 232
_PAPER, _INK, _GREY, _EMPTY, _DARK = (255, 255, 255), (25, 25, 30), (120, 120, 128), (232, 232, 236), (40, 40, 40)
_COLOR_WEIGHT = 0.6  # of a class's colour over the image
_IGNORED_LIGHT = 0.3  # how bright pixels without a class remain


@dataclass(frozen=True)
class _Cell:
    """An image and the same under its label, small enough for the sheet."""

    caption: str
    image: Image.Image
    overlay: Image.Image


def draw_contact_sheet(
    report: DatasetReport, records: Sequence[dict[str, Any]], max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Draw images and labels of a registered dataset.

    Args:
        report: of its check; names the dataset and tells the shares of its classes.
        records: Detectron2's standard dicts of the pairs to show, at least one.
        max_pixels: of a file, see INPUT.MAX_PIXELS.

    Returns:
        An RGB picture. Pixels without a class are dark.

    Raises:
        DatasetError: a file cannot be read.
    """
    metadata = MetadataCatalog.get(report.name)
    colors = {place: tuple(color) for place, color in enumerate(metadata.stuff_colors)}
    (reader,) = get_label_readers([report.name], max_pixels).values()
    cells = [_read_cell(record, reader, colors) for record in records]
    shape = float(np.median([cell.image.height / cell.image.width for cell in cells]))
    height = round(_WIDTH * min(max(shape, _SHAPES[0]), _SHAPES[1]))
    row_height, column_width = height + _CAPTION + _GAP, 2 * _WIDTH + 2 + _GAP
    columns = min(_COLUMNS, len(cells))
    width = 2 * _MARGIN + max(columns * column_width - _GAP, 2 * _ENTRY_WIDTH)
    legend_top = _MARGIN + _TITLE + -(-len(cells) // columns) * row_height
    entries = _legend_entries(report, metadata.stuff_classes, colors)
    per_line = (width - 2 * _MARGIN) // _ENTRY_WIDTH
    page = Image.new("RGB", (width, legend_top + -(-len(entries) // per_line) * _ENTRY + _MARGIN), _PAPER)
    title = f"{report.name}: {len(records)} of {report.num_pairs} images"
    ImageDraw.Draw(page).text((_MARGIN, _MARGIN - 6), title, _INK, _font(24, bold=True))
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        _draw_cell(page, cell, (_MARGIN + column * column_width, _MARGIN + _TITLE + row * row_height), height)
    for place, entry in enumerate(entries):
        line, column = divmod(place, per_line)
        _draw_entry(page, *entry, (_MARGIN + column * _ENTRY_WIDTH, legend_top + line * _ENTRY))
    return page


def overlay_labels(image: Pixels, labels: Pixels, colors: Mapping[int, Color]) -> Pixels:
    """Lay the colours of classes over an image, with a thin light line between them.

    Args:
        image: (H, W, 3), RGB.
        labels: (H, W) train ids.
        colors: train id -> RGB; pixels of other ids become dark.

    Returns:
        (H, W, 3), RGB.
    """
    palette, known = np.zeros((256, 3), np.float32), np.zeros(256, bool)
    palette[list(colors)], known[list(colors)] = list(colors.values()), True
    tinted = _COLOR_WEIGHT * palette[labels] + (1 - _COLOR_WEIGHT) * image
    result = np.where(known[labels][..., None], tinted, _IGNORED_LIGHT * image)
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    result[edges] = 0.5 * result[edges] + 127
    return result.astype(np.uint8)


def _read_cell(record: dict[str, Any], reader: LabelReader, colors: Mapping[int, Color]) -> _Cell:
    image = Image.fromarray(read_image(record["file_name"], max_pixels=reader.max_pixels))
    labels = Image.fromarray(reader.read(label_file_of(record)))
    scale = min(_WIDTH / image.width, _WIDTH * _SHAPES[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image, labels = image.resize(size, Image.Resampling.LANCZOS), labels.resize(size, Image.Resampling.NEAREST)
    overlay = overlay_labels(np.asarray(image), np.asarray(labels), colors)
    return _Cell(str(record.get("image_id", "")), image, Image.fromarray(overlay))


def _draw_cell(page: Image.Image, cell: _Cell, corner: tuple[int, int], height: int) -> None:
    pen = ImageDraw.Draw(page)
    left, top = corner
    for place, picture in enumerate((cell.image, cell.overlay)):
        x = left + place * (_WIDTH + 2)
        pen.rectangle((x, top, x + _WIDTH - 1, top + height - 1), _EMPTY)
        shown = picture.copy()
        shown.thumbnail((_WIDTH, height))
        page.paste(shown, (x + (_WIDTH - shown.width) // 2, top + (height - shown.height) // 2))
    font, caption = _font(12), cell.caption
    while caption and font.getlength(caption) > 2 * _WIDTH:
        caption = f"…{caption[2:]}" if caption.startswith("…") else f"…{caption[1:]}"
    pen.text((left, top + height + 2), caption, _GREY, font)


def _draw_entry(page: Image.Image, text: str, color: Color, corner: tuple[int, int]) -> None:
    pen, (left, top) = ImageDraw.Draw(page), corner
    pen.rounded_rectangle((left, top, left + 26, top + 16), 3, color)
    pen.text((left + 36, top - 1), text, _INK, _font(14))


def _legend_entries(
    report: DatasetReport, names: Sequence[str], colors: Mapping[int, Color]
) -> list[tuple[str, Color]]:
    percent = {share.name: f"  {share.pixels:.1f} %" for share in report.classes}
    titles = [*zip(names, colors.values(), strict=True), (IGNORED, _DARK)]
    return [(f"{name}{percent.get(name, '')}", color) for name, color in titles]


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"  # comes with matplotlib: the same on every machine
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)
