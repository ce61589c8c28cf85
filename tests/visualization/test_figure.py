"""The figure composer, and overlays of segments."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from famix.visualization.figure import Tile, compose_figure, draw_legend, save_figure
from famix.visualization.overlay import overlay_segments

ROAD, CAR = 0, 1
COLORS = [(128, 64, 128), (0, 0, 142)]


def test_stuff_has_its_colour_things_a_shade_each_and_unlabelled_pixels_stay() -> None:
    numbers = np.repeat(np.repeat([[1, 2, 3, 0]], 4, axis=1), 6, axis=0)
    image = np.full((*numbers.shape, 3), 100, np.uint8)
    got = overlay_segments(image, numbers, [ROAD, CAR, CAR], [CAR], COLORS, 0.62)
    road, first, second, nothing = (tuple(got[2, column].tolist()) for column in (1, 5, 9, 14))
    assert road == tuple(round(100 * 0.38 + channel * 0.62) for channel in COLORS[ROAD])
    assert first != second
    for shade in (first, second):
        assert shade[2] == max(shade)  # both are a kind of blue, as cars are
    assert nothing == (100, 100, 100)
    edges = (got == 255).all(axis=2)
    assert edges[:, [4, 7, 8, 11]].all() and edges.sum() == 4 * 6  # around the things, between them too


def cell(color: tuple[int, int, int], size: tuple[int, int] = (20, 40)) -> np.ndarray:
    return np.full((*size, 3), color, np.uint8)


def test_every_tile_fills_its_cell_and_a_file_holds_the_figure(tmp_path: Path) -> None:
    grey = [Tile(cell((value,) * 3), title, note=note) for value, title, note in ((10, "a", ""), (120, "b", "PQ 1.0"))]
    page = compose_figure([grey, grey[:1]], (384, 192), row_labels=("night", "fog"))
    save_figure(page, tmp_path / "new/figure.png", num_colors=256)
    with Image.open(tmp_path / "new/figure.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (page.height, page.width, 3)
    assert (pixels == 10).all(axis=2).sum() >= 2 * 384 * 192
    assert 384 * 192 > (pixels == 120).all(axis=2).sum() > 0.9 * 384 * 192, "the note hides a part"


def test_tiles_of_other_shapes_keep_their_aspect_ratio() -> None:
    page = np.asarray(compose_figure([[Tile(cell((9, 9, 9), (100, 10)))]], (200, 100)))
    assert (page == 9).all(axis=2).sum() == 100 * 10


def test_label_maps_keep_their_colours() -> None:
    stripes = np.stack([cell(COLORS[column % 2])[:, 0] for column in range(40)], axis=1)
    page = compose_figure([[Tile(stripes, smooth=False)]], (97, 53))
    assert {color for _, color in page.getcolors()} == {*COLORS, (255, 255, 255)}


@pytest.mark.parametrize("text", ["x" * 300, "", "ä"])
def test_long_texts_stay_in_their_columns(text: str) -> None:
    tile = Tile(cell((0, 0, 0)), text, text)
    narrow = compose_figure([[tile, Tile(cell((0, 0, 0)))]], (60, 30), heading=text)
    strip = np.asarray(narrow)[:, 24 + 60 : 24 + 60 + 10]
    heading = 48
    assert (strip[heading:] == 255).all(), "nothing is written into the gap between the columns"


def test_legend_breaks_lines() -> None:
    entries = [("road", COLORS[ROAD]), ("car", COLORS[CAR]), ("a class with a long name", (0, 0, 50))]
    wide, narrow = (draw_legend(entries, width) for width in (700, 70))
    assert wide.shape[1] == 700 and narrow.shape[1] == 70
    assert narrow.shape[0] > wide.shape[0]
    for legend in (wide, narrow):
        assert {color for _, color in entries} <= {tuple(color) for color in legend.reshape(-1, 3).tolist()}
    assert draw_legend([], 70).shape[1] == 70
