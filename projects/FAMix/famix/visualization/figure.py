"""Figures: grids of images with titles, notes and a legend, drawn with PIL for identical pixels on every machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from famix.io.atomic import whole_file

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Color = tuple[int, int, int]

_INK, _FAINT, _PAPER, _EDGE = (28, 30, 34), (112, 116, 122), (255, 255, 255), (205, 207, 212)
_MARGIN, _GAP = 24, 10  # pixels
_MIN_FONT_SIZE = 11


@dataclass(frozen=True)
class Tile:
    """Image in a figure."""

    image: Pixels  # scaled to fit its cell, keeping the aspect ratio
    title: str = ""  # bold text above the image
    subtitle: str = ""  # small text between title and image
    note: str = ""  # text on a light plate in the lower right corner of the image
    bold: bool = False  # whether the note is bold
    smooth: bool = True  # whether scaling interpolates; False keeps the exact colors of a label map


def compose_figure(
    rows: Sequence[Sequence[Tile]],
    cell: tuple[int, int],
    *,
    heading: str = "",
    row_labels: Sequence[str] = (),
    legend: Sequence[tuple[str, Color]] = (),
    font_size: int = 20,
) -> Image.Image:
    """Draw a grid of tiles.

    Args:
        rows: tiles from top to bottom and left to right. At least one is required, and rows may differ in length.
        cell: (width, height) of each image in pixels.
        heading: text above the grid.
        row_labels: text to the left of each row.
        legend: (name, color) entries below the grid.
        font_size: height of titles and row labels in pixels. Other text scales with it.

    Returns:
        The figure in RGB. Text that exceeds its column is drawn smaller and, if still too long, cut on the left.
    """
    (width, height), small = cell, round(0.8 * font_size)
    left = _MARGIN + round(max((_font(font_size).getlength(label) + 2 * _GAP for label in row_labels), default=0))
    top = _MARGIN + (round(2.4 * font_size) if heading else 0)
    title_heights = [
        (round(1.4 * font_size) if any(tile.title for tile in row) else 0)
        + (round(1.5 * small) if any(tile.subtitle for tile in row) else 0)
        for row in rows
    ]
    right = left + max(map(len, rows)) * (width + _GAP) - _GAP
    bottom = top + sum(title_heights) + len(rows) * (height + _GAP)
    indent = small // 2  # of the legend
    strip = draw_legend(legend, indent + right - left, small) if legend else np.zeros((0, 1, 3), np.uint8)
    page = Image.new("RGB", (right + _MARGIN, bottom + len(strip) + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    _write(pen, (_MARGIN, _MARGIN), heading, right - _MARGIN, round(1.4 * font_size), bold=True)
    for number, (row, title_height) in enumerate(zip(rows, title_heights, strict=True)):
        top += title_height
        if row_labels:
            pen.text((_MARGIN, top + height // 2), row_labels[number], _INK, _font(font_size), anchor="lm")
        for column, tile in enumerate(row):
            x = left + column * (width + _GAP)
            if tile.subtitle:
                _write(pen, (x, top - round(1.4 * small)), tile.subtitle, width, small, fill=_FAINT)
            _write(pen, (x, top - title_height), tile.title, width, font_size, bold=True)
            resampling = Image.Resampling.LANCZOS if tile.smooth else Image.Resampling.NEAREST
            page.paste(ImageOps.pad(Image.fromarray(tile.image), cell, resampling, _PAPER), (x, top))
            if tile.note:  # on a light plate
                font, plate = _font(round(0.9 * font_size), tile.bold), round(1.4 * font_size)
                end, base = x + width - 6, top + height - 6
                pen.rounded_rectangle((end - font.getlength(tile.note) - 12, base - plate, end, base), 5, _PAPER)
                fill = _INK if tile.bold else _FAINT
                pen.text((end - 6, base - plate // 2), tile.note, fill, font, anchor="rm")
        top += height + _GAP
    page.paste(Image.fromarray(strip), (left - indent, bottom))
    return page


def draw_legend(entries: Sequence[tuple[str, Color]], width: int, font_size: int = 13) -> Pixels:
    """Draw (name, color) entries in as many columns as fit into `width` pixels.

    The font size is the height of the text in pixels. The result is an (H, width, 3) uint8 RGB image.
    """
    font, swatch, line, margin = _font(font_size), font_size, round(1.6 * font_size), font_size // 2
    entry_width = round(max((font.getlength(name) for name, _ in entries), default=0)) + 3 * swatch
    columns = max(1, (width - margin + swatch) // entry_width)
    page = Image.new("RGB", (width, -(-len(entries) // columns) * line + margin), _PAPER)
    pen = ImageDraw.Draw(page)
    for place, (name, color) in enumerate(entries):
        x, y = margin + place % columns * entry_width, margin + place // columns * line
        pen.rounded_rectangle((x, y, x + swatch, y + swatch), swatch // 5, color, _EDGE)
        pen.text((x + round(1.5 * swatch), y + swatch // 2), name, _INK, font, anchor="lm")
    return np.asarray(page)


def save_figure(figure: Image.Image, path: Path) -> None:
    """Write a figure as a PNG file atomically, creating a missing folder."""
    with whole_file(path) as part:
        figure.save(part, format="PNG", optimize=True)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"  # shipped with Matplotlib, so it is the same everywhere
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


def _write(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, size: int,
    *, bold: bool = False, fill: Color = _INK,
) -> None:  # fmt: skip
    """Draw a line of text, shrunk or cut to at most `width` pixels."""
    while size > _MIN_FONT_SIZE and _font(size, bold).getlength(text) > width:
        size -= 1
    font, shown, cut = _font(size, bold), text, 0
    while cut < len(text) and font.getlength(shown) > width:
        cut += 1
        shown = f"…{text[cut:]}"
    pen.text(corner, shown, fill, font)
