"""A picture of panoptic predictions: stuff in the colours of its classes, every thing in a shade of its own."""

import colorsys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from famix.evaluation.panoptic.truth import PanopticSegments
from famix.io.atomic import whole_file

__all__ = ["PictureRow", "draw_picture", "overlay_segments"]

_OPACITY = 0.62
_CELL_WIDTH, _GAP, _MARGIN, _HEADER, _LABEL = 384, 8, 24, 46, 84  # pixels
_INK, _PAPER = (28, 30, 34), (255, 255, 255)
_HUES = 0.11  # of the circle of hues, over which the shades of a class's things are spread
_GOLDEN = 0.618034  # successive multiples of it, modulo 1, are far from each other

Color = tuple[int, int, int]


@dataclass(frozen=True)
class PictureRow:
    """A row of a picture.

    Attributes:
        label: written on its left.
        tiles: (H, W, 3) uint8, RGB, one for each title.
        notes: written into the right lower corner of the tiles; "" for none.
    """

    label: str
    tiles: tuple[NDArray[np.uint8], ...]
    notes: tuple[str, ...]


def overlay_segments(
    image: NDArray[np.uint8], panoptic: PanopticSegments, colors: Sequence[Color], things: Collection[int]
) -> NDArray[np.uint8]:
    """Lay segments over an image; what has none shows the image itself.

    Args:
        image: (H, W, 3) uint8, RGB.
        panoptic: segments of the same size.
        colors: of the classes, by train id.
        things: train ids whose segments get shades of their own and a white line around.

    Returns:
        (H, W, 3) uint8.
    """
    table, is_thing, seen = [(0, 0, 0)], [False], dict.fromkeys(things, 0)
    for segment in panoptic.segments:
        train_id = segment["category_id"]
        is_thing.append(train_id in seen)
        if train_id in seen:
            table.append(_shade(colors[train_id], seen[train_id]))
            seen[train_id] += 1
        else:
            table.append(colors[train_id])
    painted = np.array(table)[panoptic.numbers]
    share = np.where(panoptic.numbers > 0, _OPACITY, 0.0)[..., None]
    result = np.rint(image * (1 - share) + painted * share).astype(np.uint8)
    result[_edges(panoptic.numbers, np.array(is_thing))] = 255
    return result


def draw_picture(rows: Sequence[PictureRow], titles: Sequence[str], path: Path) -> None:
    """Draw tiles under titles.

    Args:
        rows: at least one; all tiles of one size.
        titles: of the columns.
        path: of the PNG file, whose folder is made where it is missing.
    """
    height, width = rows[0].tiles[0].shape[:2]
    cell = _CELL_WIDTH, round(_CELL_WIDTH * height / width)
    lefts = [_MARGIN + _LABEL + column * (cell[0] + _GAP) for column in range(len(titles))]
    tops = [_MARGIN + _HEADER + row * (cell[1] + _GAP) for row in range(len(rows))]
    page = Image.new("RGB", (lefts[-1] + cell[0] + _MARGIN, tops[-1] + cell[1] + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(page)
    for title, left in zip(titles, lefts, strict=True):
        pen.text((left, _MARGIN), title, _INK, _font(24))
    for row, top in zip(rows, tops, strict=True):
        pen.text((_MARGIN, top + cell[1] // 2), row.label, _INK, _font(20), anchor="lm")
        for tile, note, left in zip(row.tiles, row.notes, lefts, strict=True):
            page.paste(Image.fromarray(tile).resize(cell, Image.Resampling.LANCZOS), (left, top))
            if note:
                corner = left + cell[0] - 6, top + cell[1] - 6
                pen.rectangle((corner[0] - pen.textlength(note, _font(18)) - 12, corner[1] - 28, *corner), _PAPER)
                pen.text((corner[0] - 6, corner[1] - 14), note, _INK, _font(18), anchor="rm")
    with whole_file(path) as part:
        page.quantize(256).save(part, format="PNG", optimize=True)  # a third of the size


def _shade(color: Color, place: int) -> Color:
    """A clear colour near that of the class, another one for every place."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    step = place * _GOLDEN % 1
    hue = (hue + (step - 0.5) * _HUES) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, max(0.65, saturation * (1 - 0.3 * step)), 1 - 0.35 * (step * 3 % 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def _edges(numbers: NDArray[np.int32], is_thing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of things whose neighbour on the right or below is of another segment, or the other way round."""
    edges = np.zeros(numbers.shape, dtype=bool)
    thing = is_thing[numbers]
    edges[:, :-1] |= (numbers[:, :-1] != numbers[:, 1:]) & (thing[:, :-1] | thing[:, 1:])
    edges[:-1] |= (numbers[:-1] != numbers[1:]) & (thing[:-1] | thing[1:])
    return edges


def _font(size: int) -> ImageFont.FreeTypeFont:
    # It comes with matplotlib: the same on every machine.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
