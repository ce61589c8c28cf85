"""Pieces of pages: escaped, closed, and with what they were given inside."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from famix.reports.html import bars_cell, category_color, facts_list, folded, html_page, image_uri, paragraph, table
from famix.visualization.charts import Series, color_key, histogram, line_chart
from famix.visualization.svg import Axis, Frame
from reports.pages import Page, assert_sound


def test_a_page_of_all_pieces_is_sound_and_escaped() -> None:
    evil = '<script>alert("x & y")</script>'
    curve = Series(evil, "red", np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    body = [
        paragraph(evil),
        table([evil, "b"], [[evil, bars_cell([(0.5, evil, "red")])]], best={0: [0]}),
        facts_list({evil: evil, "long": evil * 20}),
        folded(evil, paragraph("inside")),
        color_key([(evil, "red")]),
        line_chart([curve], evil, evil),
    ]
    html = html_page(evil, "\n".join(body))
    page = assert_sound(html)
    assert "<script>" not in html
    assert page.text.count(evil) > 20
    assert page.tables[0] == [[evil, "b"], [f"{evil} ★", evil]]


def test_what_is_wrong_with_a_page_is_noticed() -> None:
    assert Page("<div><p>a</div>").problems
    assert Page("<div>").problems
    with pytest.raises(AssertionError):
        assert_sound(html_page("a", '<img src="http://example.org/a.png" alt="">'))


def test_winners_and_totals_are_marked() -> None:
    html = table(["a", "b"], [["x", "1"], ["mean", "2"]], best={1: [1]}, totals=[1])
    assert "<td>1</td>" in html
    assert '<tr class="total"><td>mean</td><td class="best">2 ★</td></tr>' in html


def test_bars_are_as_long_as_their_shares() -> None:
    html = bars_cell([(0.25, "25", "red"), (7.0, "?", "blue"), (-1.0, "?", "green")])
    assert "width:20.0%;background:red" in html  # a fifth of the width is kept for the number
    assert "width:80.0%;background:blue" in html and "width:0.0%;background:green" in html


def test_images_come_back_from_the_page() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    head, content = image_uri(pixels, lossless=True).split(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert len(image_uri(pixels)) < len(image_uri(pixels, lossless=True))


def test_many_categories_have_colours_of_their_own() -> None:
    assert len({category_color(index) for index in range(24)}) == 24


def test_axes_place_values_and_choose_round_ticks() -> None:
    axis = Axis(0.0, 10.0, 100.0, 0.0)
    assert [axis.place(value) for value in (0, 5, 10)] == [100, 50, 0]
    assert axis.ticks(5) == [0, 2, 4, 6, 8, 10]
    assert Axis(3.0, 3.0, 0.0, 10.0).place(3) == 5
    assert all(0.13 <= tick <= 0.87 for tick in Axis(0.13, 0.87, 0, 1).ticks())


def test_curves_go_through_their_points_and_leave_gaps_out() -> None:
    curve = Series("a", "red", np.array([0.0, np.nan, 10.0]), np.array([0.0, 1.0, 2.0]))
    svg = line_chart([curve], "x", "y")
    frame = Frame((0.0, 2.0), (-0.5, 10.5))  # with a margin of 5 %
    x, y = frame.across, frame.up
    assert f'd="M{x.place(0):.1f} {y.place(0):.1f}L{x.place(2):.1f} {y.place(10):.1f}"' in svg
    assert line_chart([Series("a", "red", np.array([np.nan]), np.array([0.0]))], "x", "y") == ""
    assert "<circle" in line_chart([Series("a", "red", np.array([1.0]), np.array([0.0]))], "x", "y")


def test_long_curves_are_thinned_out_to_their_ends() -> None:
    count = 5000
    svg = line_chart([Series("a", "red", np.arange(count, dtype=float), np.arange(count, dtype=float))], "x", "y")
    path = svg.split('d="')[1].split('"')[0]
    assert path.count("L") == 399
    frame = Frame((0.0, count - 1.0), (0 - 0.05 * (count - 1), 1.05 * (count - 1)))
    assert path.endswith(f"{frame.across.place(count - 1):.1f} {frame.up.place(count - 1):.1f}")


def test_histograms_are_as_high_as_their_counts() -> None:
    values = np.array([0.0, 0.0, 0.0, 1.0, np.nan])
    svg = histogram([Series("a", "red", values)], "x", "y")
    frame = Frame((0.0, 1.0), (0.0, 3.0))
    path = svg.split('d="')[1].split('"')[0]
    assert path.startswith(f"M44.0 {frame.up.place(0):.1f}V{frame.up.place(3):.1f}")
    assert path.count("H") == 30 and f"V{frame.up.place(1):.1f}H390.0" in path
    assert histogram([Series("a", "red", np.array([np.nan]))], "x", "y") == ""
