"""Elements of pages: escaped and closed; charts."""

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
from reports.pages import Page, assert_sound

EVIL = '<script>alert("x & y")</script>'


def page_of(
    scores: Table, words: str = "", facts: dict[str, str] | None = None, uri: str = "data:image/png;base64,"
) -> str:
    """The town's page, the shortest of all."""
    return render_page(
        "town.html", "famix_minitown", title=words, words=words, scores=scores, uri=uri, facts=facts or {}
    )


def test_page_escapes_text() -> None:
    long = EVIL * 20
    scores = Table([EVIL, "b", "c", "d", "gain"], [[EVIL, "1", "2", "3", "+1.0"]], best={(0, 0)})
    html = page_of(scores, EVIL, {EVIL: EVIL, "long": long})
    page = assert_sound(html)
    assert "<script>" not in html and page.text.count(EVIL) > 20
    assert page.tables[0] == [[EVIL, "b", "c", "d", "gain"], [f"{EVIL} ★", "1", "2", "3", "+1.0"]]
    assert "<summary>" in html and long in page.text


def test_checks_of_pages_notice_defects() -> None:
    assert Page("<div><p>a</div>").problems and Page("<div>").problems
    with pytest.raises(AssertionError):
        assert_sound(page_of(Table([], []), uri="http://example.org/a.png"))


def test_table_cells() -> None:
    rows = [["x", "3", "5", "baseline"], ["y", "1", "2", "-3.0"], ["z", "2", "6", "+1.0"], ["w", "2", "6", "-"]]
    html = page_of(Table(["a", "b", "mean", "gain"], rows, best={(0, 1)}, total=2))
    assert '<td class="best">3 ★</td><td class="total">5</td><td>baseline</td>' in html
    assert '<td class="worse">-3.0</td>' in html and '<td class="better">+1.0</td>' in html and "<td>-</td>" in html
    assert "data-label=" not in html
    assert '<td data-label="e">5</td>' in page_of(Table(list("abcde"), [list("12345")])), "cards on a phone"


def test_image_uri_and_colors() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    head, content = image_uri(pixels, lossless=True).split(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert len(image_uri(pixels)) < len(image_uri(pixels, lossless=True))
    assert len({category_color(index) for index in range(24)}) == 24
    assert len({run_color(index) for index in range(18)}) == 18


def curve(*values: float, name: str = "a") -> Series:
    return Series(name, "var(--strong)", np.array(values), np.arange(len(values), dtype=float))


def path_points(svg: str) -> list[list[float]]:
    """Points of the path in the series' color."""
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*var\(--strong\)', svg)
    return [
        [float(value) for value in re.findall(r"-?[\d.]+", point)] for point in re.split("[ML]", path) if point.strip()
    ]


def test_charts_are_deterministic_and_sound() -> None:
    svg = line_chart([curve(1.0, 2.0, name=EVIL)], EVIL, "$y$")
    assert svg == line_chart([curve(1.0, 2.0, name=EVIL)], EVIL, "$y$")
    other = histogram([curve(1.0, 2.0)], "x", "styles")
    html = render_page("bank.html", title="a", headline="", facts={}, map={"dots": [], "sources": [], "shares": [1, 1]},
                       styles=0, prompt_key=[], class_key=[], charts=[(Markup(one), []) for one in (svg, svg, other)],
                       classes=Table([], []), prompts=Table([], []), has_nearest=False, has_distances=False, metadata={})  # fmt: skip
    page = assert_sound(html)
    assert page.text.count(EVIL) == 6 and "$y$" in page.text, "labels and descriptions, as text"
    assert "var(--faint)" in svg and "#0" not in svg and "http" not in svg


def test_line_chart_skips_nan_and_keeps_ends() -> None:
    points = path_points(line_chart([curve(0.0, math.nan, 10.0)], "x", "y"))
    assert len(points) == 2 and points[0][0] < points[1][0] and points[0][1] > points[1][1]
    assert line_chart([curve(math.nan)], "x", "y") == ""
    (dot, same) = path_points(line_chart([curve(3.0)], "x", "y"))
    assert dot == same
    long = path_points(line_chart([curve(*np.random.default_rng(0).random(5000))], "x", "y"))
    assert 300 < len(long) <= 400


def test_histogram_shows_counts() -> None:
    svg = histogram([curve(0.0, 0.0, 0.0, 1.0, math.nan)], "x", "y")
    heights = [y for _, y in path_points(svg)]
    foot, first, last = max(heights), min(heights), heights[-2]
    assert (foot - first) / (foot - last) == pytest.approx(3, rel=1e-3)
    assert histogram([curve(math.nan)], "x", "y") == ""
