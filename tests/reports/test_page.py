"""Pieces of pages: escaped, closed and complete; charts; label images."""

import base64
import io
import math
import re

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from famix.reports.page import Table, category_color, image_uri, render_page, run_color
from famix.visualization.charts import Series, histogram, line_chart
from famix.visualization.overlay import color_labels, correct_share, downsample, mark_errors
from reports.pages import Page, assert_sound

EVIL = '<script>alert("x & y")</script>'


def page_of(
    *, scores: Table, words: str = "", facts: dict[str, str] | None = None, uri: str = "data:image/png;base64,"
) -> str:
    """The town's page, the shortest of all."""
    return render_page(
        "town.html", "famix_minitown", title=words, words=words, scores=scores, uri=uri, facts=facts or {}
    )


def test_texts_of_a_page_are_escaped() -> None:
    long = EVIL * 20
    scores = Table([EVIL, "b", "c", "d", "gain"], [[EVIL, "1", "2", "3", "+1.0"]], best={(0, 0)})
    html = page_of(scores=scores, words=EVIL, facts={EVIL: EVIL, "long": long})
    page = assert_sound(html)
    assert "<script>" not in html and page.text.count(EVIL) > 20
    assert page.tables[0] == [[EVIL, "b", "c", "d", "gain"], [f"{EVIL} ★", "1", "2", "3", "+1.0"]]
    assert "<summary>" in html and long in page.text


def test_defects_of_a_page_are_noticed() -> None:
    assert Page("<div><p>a</div>").problems and Page("<div>").problems
    with pytest.raises(AssertionError):
        assert_sound(page_of(scores=Table([], []), uri="http://example.org/a.png"))


def test_cells_are_marked_by_meaning() -> None:
    rows = [["x", "3", "5", "baseline"], ["y", "1", "2", "-3.0"], ["z", "2", "6", "+1.0"], ["w", "2", "6", "-"]]
    html = page_of(scores=Table(["a", "b", "mean", "gain"], rows, best={(0, 1)}, total=2))
    assert '<td class="best">3 ★</td><td class="total">5</td><td>baseline</td>' in html
    assert '<td class="worse">-3.0</td>' in html and '<td class="better">+1.0</td>' in html and "<td>-</td>" in html


def test_wide_tables_become_cards_on_a_phone() -> None:
    narrow, wide = (page_of(scores=Table(list("abcde")[:n], [list("12345")[:n]])) for n in (4, 5))
    assert "data-label=" not in narrow and '<td data-label="e">5</td>' in wide


def test_images_come_back_from_the_page() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    head, content = image_uri(pixels, lossless=True).split(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert len(image_uri(pixels)) < len(image_uri(pixels, lossless=True))


def test_many_categories_have_colours_of_their_own() -> None:
    assert len({category_color(index) for index in range(24)}) == 24
    assert len({run_color(index) for index in range(18)}) == 18


def curve(*values: float, name: str = "a") -> Series:
    return Series(name, "var(--strong)", np.array(values), np.arange(len(values), dtype=float))


def path_points(svg: str) -> list[list[float]]:
    """Points of the path in the series' colour."""
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*var\(--strong\)', svg)
    return [
        [float(value) for value in re.findall(r"-?[\d.]+", point)] for point in re.split("[ML]", path) if point.strip()
    ]


def test_charts_are_the_same_every_time_and_sound_in_a_page() -> None:
    svg = line_chart([curve(1.0, 2.0, name=EVIL)], EVIL, "$y$")
    assert svg == line_chart([curve(1.0, 2.0, name=EVIL)], EVIL, "$y$")
    other = histogram([curve(1.0, 2.0)], "x", "styles")
    html = render_page("bank.html", title="a", headline="", facts={}, map={"dots": [], "sources": [], "shares": [1, 1]},
                       styles=0, prompt_key=[], class_key=[], charts=[(Markup(one), []) for one in (svg, svg, other)],
                       classes=Table([], []), prompts=Table([], []), has_nearest=False, has_distances=False, metadata={})  # fmt: skip
    page = assert_sound(html)
    assert page.text.count(EVIL) == 6 and "$y$" in page.text, "labels and descriptions, as text"
    assert "var(--faint)" in svg and "#0" not in svg and "http" not in svg


def test_curves_leave_gaps_out_and_keep_their_ends() -> None:
    points = path_points(line_chart([curve(0.0, math.nan, 10.0)], "x", "y"))
    assert len(points) == 2 and points[0][0] < points[1][0] and points[0][1] > points[1][1]
    assert line_chart([curve(math.nan)], "x", "y") == ""
    (dot, same) = path_points(line_chart([curve(3.0)], "x", "y"))
    assert dot == same
    long = path_points(line_chart([curve(*np.random.default_rng(0).random(5000))], "x", "y"))
    assert 300 < len(long) <= 400


def test_histograms_are_as_high_as_their_counts() -> None:
    svg = histogram([curve(0.0, 0.0, 0.0, 1.0, math.nan)], "x", "y")
    heights = [y for _, y in path_points(svg)]
    foot, first, last = max(heights), min(heights), heights[-2]
    assert (foot - first) / (foot - last) == pytest.approx(3, rel=1e-3)
    assert histogram([curve(math.nan)], "x", "y") == ""


def test_errors_are_red_on_a_dim_image() -> None:
    truth, predicted = np.array([[0, 1, 255, 1]], np.uint8), np.array([[0, 0, 0, 1]], np.uint8)
    picture = mark_errors(np.full((2, 8, 3), 200, np.uint8), truth, predicted, 255)
    assert picture.shape == (1, 4, 3)
    assert picture[0, 1].tolist() == [232, 30, 60]
    assert picture[0, [0, 2, 3]].tolist() == [[110, 110, 110]] * 3
    assert correct_share(truth, predicted, 255) == pytest.approx(2 / 3)
    assert math.isnan(correct_share(np.full((1, 1), 255, np.uint8), predicted[:, :1], 255))


def test_labels_keep_their_colours_when_they_downsample() -> None:
    ids = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (50, 100))
    colored = color_labels(ids, [(10, 20, 30), (1, 2, 3)])
    small = downsample(colored, 40, smooth=False)
    assert small.shape == (20, 40, 3)
    assert {tuple(pixel) for pixel in small.reshape(-1, 3).tolist()} == {(10, 20, 30), (1, 2, 3), (225, 225, 225)}
    assert downsample(colored, 100, smooth=True) is colored
    assert len(np.unique(downsample(colored, 40, smooth=True).reshape(-1, 3), axis=0)) > 3
