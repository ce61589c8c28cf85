"""The figure composer, and drawings of labels, errors and segments."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from famix.visualization.figure import Tile, compose_figure, draw_legend, save_figure
from famix.visualization.overlay import (
    color_labels,
    correct_share,
    downsample,
    mark_errors,
    mark_unsure,
    overlay_colors,
    overlay_segments,
)

ROAD, CAR = 0, 1
COLORS = [(128, 64, 128), (0, 0, 142)]


def test_overlay_segments() -> None:
    numbers = np.repeat(np.repeat([[1, 2, 3, 0]], 4, axis=1), 6, axis=0)
    image = np.full((*numbers.shape, 3), 100, np.uint8)
    got = overlay_segments(image, numbers, [ROAD, CAR, CAR], [CAR], COLORS, 0.62)
    road, first, second, unlabeled = (tuple(got[2, column].tolist()) for column in (1, 5, 9, 14))
    assert road == tuple(round(100 * 0.38 + channel * 0.62) for channel in COLORS[ROAD])
    assert first != second and unlabeled == (100, 100, 100)
    for shade in (first, second):
        assert shade[2] == max(shade), "shades of blue, the color of cars"
    edges = (got == 255).all(axis=2)
    assert edges[:, [4, 7, 8, 11]].all() and edges.sum() == 4 * 6, "around the things, and between them"


@pytest.mark.parametrize("brightness", [0, 20, 60, 120, 240])
def test_overlay_colors(brightness: int) -> None:
    classes = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 4, axis=0)
    colors = color_labels(classes.astype(np.uint8), COLORS)
    image = np.full((*classes.shape, 3), brightness, np.uint8)
    image[0, :2] = (brightness // 2, brightness, 255)
    got = {alpha: overlay_colors(image, colors, classes, alpha) for alpha in (0.0, 0.5, 1.0)}
    np.testing.assert_array_equal(got[0.0], image)
    np.testing.assert_array_equal(got[1.0], colors)
    np.testing.assert_array_equal(got[0.5][:, 3:5], colors[:, 3:5], "borders have full opacity")
    plain = (image[2, 0] / 2 + colors[2, 0] / 2).round()
    if brightness >= 0.35 * 255:
        np.testing.assert_allclose(got[0.5][2, 0], plain, atol=1)
    elif brightness:
        assert (got[0.5][2, 0] > plain + 5).all(), "dark images are brightened"


def test_mark_errors() -> None:
    truth, predicted = np.array([[0, 1, 255, 1]], np.uint8), np.array([[0, 0, 0, 1]], np.uint8)
    drawn = mark_errors(np.full((2, 8, 3), 200, np.uint8), truth, predicted, 255)
    assert drawn.tolist() == [[[110] * 3, [232, 30, 60], [110] * 3, [110] * 3]]
    assert correct_share(truth, predicted, 255) == pytest.approx(2 / 3)
    assert math.isnan(correct_share(np.full((1, 1), 255, np.uint8), predicted[:, :1], 255))


def test_mark_unsure() -> None:
    confidence = np.array([[1.0, 0.5, 0.0]], np.float32)
    drawn = mark_unsure(np.full((2, 6, 3), 200, np.uint8), confidence)
    assert drawn.tolist() == [[[110] * 3, [182, 143, 55], [255, 176, 0]]]


def test_downsample_keeps_label_colors() -> None:
    ids = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (50, 100))
    colored = color_labels(ids, [(10, 20, 30), (1, 2, 3)])
    small = downsample(colored, 40, smooth=False)
    assert small.shape == (20, 40, 3)
    assert {tuple(pixel) for pixel in small.reshape(-1, 3).tolist()} == {(10, 20, 30), (1, 2, 3), (225, 225, 225)}
    assert downsample(colored, 100, smooth=True) is colored
    assert len(np.unique(downsample(colored, 40, smooth=True).reshape(-1, 3), axis=0)) > 3


def cell(color: tuple[int, int, int], size: tuple[int, int] = (20, 40)) -> np.ndarray:
    return np.full((*size, 3), color, np.uint8)


def test_figure_and_its_file(tmp_path: Path) -> None:
    gray = [Tile(cell((value,) * 3), title, note=note) for value, title, note in ((10, "a", ""), (120, "b", "PQ 1.0"))]
    page = compose_figure([gray, gray[:1]], (384, 192), row_labels=("night", "fog"))
    save_figure(page, tmp_path / "new/figure.png")
    with Image.open(tmp_path / "new/figure.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels, np.asarray(page))
    assert (pixels == 10).all(axis=2).sum() >= 2 * 384 * 192
    assert 384 * 192 > (pixels == 120).all(axis=2).sum() > 0.9 * 384 * 192, "the note hides a part"


def test_tiles_keep_aspect_ratio_and_label_colors() -> None:
    page = np.asarray(compose_figure([[Tile(cell((9, 9, 9), (100, 10)))]], (200, 100)))
    assert (page == 9).all(axis=2).sum() == 100 * 10
    stripes = np.stack([cell(COLORS[column % 2])[:, 0] for column in range(40)], axis=1)
    labels = compose_figure([[Tile(stripes, smooth=False)]], (97, 53))
    assert {color for _, color in labels.getcolors()} == {*COLORS, (255, 255, 255)}


@pytest.mark.parametrize("text", ["x" * 300, "", "ä"])
def test_long_text_stays_in_its_column(text: str) -> None:
    tile = Tile(cell((0, 0, 0)), text, text)
    narrow = compose_figure([[tile, Tile(cell((0, 0, 0)))]], (60, 30), heading=text)
    gap = np.asarray(narrow)[48:, 24 + 60 : 24 + 60 + 10]  # below the heading
    assert (gap == 255).all()


def test_legend_wraps() -> None:
    entries = [("road", COLORS[ROAD]), ("car", COLORS[CAR]), ("a class with a long name", (0, 0, 50))]
    wide, narrow = (draw_legend(entries, width) for width in (700, 70))
    assert wide.shape[1] == 700 and narrow.shape[1] == 70 and narrow.shape[0] > wide.shape[0]
    for legend in (wide, narrow):
        assert {color for _, color in entries} <= {tuple(color) for color in legend.reshape(-1, 3).tolist()}
    assert draw_legend([], 70).shape[1] == 70
