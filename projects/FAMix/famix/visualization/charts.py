"""Curves and histograms as inline SVG with CSS colors and selectable text."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

_SIZE = (5.0, 3.0)  # inches; 360 x 216 CSS points, legible on a phone
_BINS = 30
_MOST_POINTS = 400  # points per curve; more would not be visible
_INK, _GRID = "#010101", "#020202"  # replaced with CSS variables of the page
_VARIABLES = {_INK: "var(--faint)", _GRID: "var(--line)"}


@dataclass(frozen=True)
class Series:
    """A curve, or the values of a histogram."""

    name: str
    color: str  # any CSS color or variable
    values: NDArray[np.float64]  # (N,)
    places: NDArray[np.float64] | None = None  # (N,) ascending x positions of a curve


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Draw the finite values of curves as SVG, or return "" if there are none. Long curves are subsampled."""
    axes = _make_axes(x_label, y_label)
    for one, color in zip(series, _placeholders(series), strict=True):
        assert one.places is not None
        finite = (np.isfinite(one.values) & np.isfinite(one.places)).nonzero()[0]
        if len(finite) > _MOST_POINTS:
            finite = finite[np.linspace(0, len(finite) - 1, _MOST_POINTS).round().astype(int)]
        if len(finite):
            rows, width = (
                (finite, 1.6) if len(finite) > 1 else (finite.repeat(2), 6.0)
            )  # a single value is drawn as a dot
            axes.plot(
                one.places[rows], one.values[rows], color=color, linewidth=width, solid_capstyle="round", zorder=3
            )
    if not axes.lines:
        return ""
    return _to_svg(axes, series, f"{y_label} over {x_label}: {', '.join(one.name for one in series)}")


def histogram(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Draw histograms of the finite values over common bins as SVG, or return "" if there are none.

    `x_label` names the values, and `y_label` names the counted items.
    """
    values = [one.values[np.isfinite(one.values)] for one in series]
    if not any(one.size for one in values):
        return ""
    axes = _make_axes(x_label, y_label)
    edges = np.histogram_bin_edges(np.concatenate(values), _BINS)
    for one, color in zip(values, _placeholders(series), strict=True):
        axes.stairs(np.histogram(one, edges)[0], edges, color=color, fill=True, alpha=0.6, linewidth=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _to_svg(axes, series, f"histogram of {x_label}: {', '.join(one.name for one in series)}")


def _make_axes(x_label: str, y_label: str) -> Axes:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.tick_params(length=0, colors=_INK, labelsize=9)
    axes.set_xlabel(x_label, color=_INK, fontsize=9, parse_math=False)
    axes.set_ylabel(y_label, color=_INK, fontsize=9, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return axes


def _placeholders(series: Sequence[Series]) -> list[str]:
    """Return one Matplotlib color per series, which `_to_svg` replaces with the CSS color."""
    return [f"#00{number + 1:02x}00" for number in range(len(series))]


def _to_svg(axes: Axes, series: Sequence[Series], description: str) -> str:
    stream, figure = io.StringIO(), axes.get_figure(root=True)
    assert figure is not None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "famix", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>.*?</defs>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:id|clip-path|xmlns[:a-z]*)="[^"]*"', "", svg)  # ids would repeat on a page with several charts
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg, count=2)  # the page sets the size
    svg = re.sub(r"\s*\n\s*", " ", svg)
    colors = _VARIABLES | dict(zip(_placeholders(series), (one.color for one in series), strict=True))
    for placeholder, color in colors.items():
        svg = svg.replace(placeholder, escape(color))
    return svg.replace(">", f' role="img"><title>{escape(description)}</title>', 1)
