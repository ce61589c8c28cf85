"""Charts as inline SVG: curves and histograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from famix.visualization.svg import Frame, element

__all__ = ["Series", "color_key", "histogram", "line_chart"]

_BINS = 30
_MOST_POINTS = 400  # of a curve; more cannot be seen


@dataclass(frozen=True)
class Series:
    """Values of one kind.

    Attributes:
        name: for the key.
        color: CSS colour.
        values: (N,); of a curve its heights.
        places: (N,), of a curve, ascending.
    """

    name: str
    color: str
    values: NDArray[np.float64]
    places: NDArray[np.float64] | None = None


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Curves over common axes; values that are not finite are left out.

    Args:
        series: with places; long ones are thinned out evenly.
        x_label, y_label: of the axes.

    Returns:
        SVG; "" where there is nothing to draw.
    """
    curves = [(one, *_finite(one)) for one in series]
    drawn = [(one, x, y) for one, x, y in curves if len(x)]
    if not drawn:
        return ""
    xs, ys = (np.concatenate([curve[index] for curve in drawn]) for index in (1, 2))
    frame = Frame(_ends(xs), _ends(ys, margin=0.05))
    content = [
        element("path", class_="curve", stroke=one.color, d=_path(frame, x, y))
        if len(x) > 1
        else _dot(frame, one, x, y)
        for one, x, y in drawn
    ]
    return frame.draw(
        content, x_label, y_label, f"{y_label} over {x_label}: {', '.join(one.name for one, *_ in drawn)}"
    )


def histogram(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Histograms of several series over common bins, drawn over each other.

    Args:
        series: values that are not finite are left out.
        x_label: what is counted by size.
        y_label: what is counted.

    Returns:
        SVG; "" where there is nothing to draw.
    """
    values = [one.values[np.isfinite(one.values)] for one in series]
    everything = np.concatenate(values) if values else np.empty(0)
    if not everything.size:
        return ""
    low, high = _ends(everything)
    edges = np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(one, edges)[0] for one in values]
    frame = Frame((low, high), (0, float(max(count.max() for count in counts))))
    content = [
        element("path", fill=one.color, fill_opacity=0.55, d=_steps(frame, edges, count))
        for one, count in zip(series, counts, strict=True)
    ]
    return frame.draw(content, x_label, y_label, f"histogram of {x_label}: {', '.join(one.name for one in series)}")


def color_key(entries: Sequence[tuple[str, str]]) -> str:
    """A list of names and their CSS colours, as HTML."""
    items = (f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in entries)
    return f'<ul class="key">{"".join(items)}</ul>'


def _finite(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    assert series.places is not None
    good = np.isfinite(series.values) & np.isfinite(series.places)
    x, y = series.places[good], series.values[good]
    if len(x) > _MOST_POINTS:
        kept = np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int)
        x, y = x[kept], y[kept]
    return x, y


def _ends(values: NDArray[np.float64], margin: float = 0.0) -> tuple[float, float]:
    """Lowest and highest value with some room; never the same."""
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low) if high > low else max(abs(low), 1.0) * 0.05
    return low - room, high + room


def _path(frame: Frame, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    points = (f"{frame.across.place(float(a)):.1f} {frame.up.place(float(b)):.1f}" for a, b in zip(x, y, strict=True))
    return "M" + "L".join(points)


def _dot(frame: Frame, series: Series, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return element("circle", cx=frame.across.place(float(x[0])), cy=frame.up.place(float(y[0])), r=3, fill=series.color)


def _steps(frame: Frame, edges: NDArray[np.float64], counts: NDArray[np.int64]) -> str:
    """Outline of a histogram, closed along its foot."""
    foot = frame.up.place(0)
    parts = [f"M{frame.across.place(float(edges[0])):.1f} {foot:.1f}"]
    for right, count in zip(edges[1:], counts, strict=True):
        parts.append(f"V{frame.up.place(float(count)):.1f}H{frame.across.place(float(right)):.1f}")
    return "".join(parts) + f"V{foot:.1f}Z"
