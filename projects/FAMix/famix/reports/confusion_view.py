"""Confusion matrices as heat maps, and their largest entries in words."""

from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from famix.evaluation.counting.confusion import ConfusionMatrix
from famix.visualization.svg import element, text

__all__ = ["Confusion", "draw_confusion", "largest_confusions"]

_LABELS, _WIDTH = 96.0, 400.0
_FAINTEST = 0.005  # share that is drawn
_LEAST = 0.0005  # share of all labelled pixels that a class must have to be named in words


@dataclass(frozen=True)
class Confusion:
    """Pixels of a class that were taken for another: names, and their share of the class, 0-1."""

    true: str
    predicted: str
    share: float


def draw_confusion(matrix: ConfusionMatrix) -> str:
    """Draw a matrix as SVG: rows are true classes, columns what they were taken for, darkness the share of the row.

    Classes that are neither labelled nor predicted are left out.
    """
    shown = [
        index for index in range(len(matrix.class_names)) if matrix.counts[index].any() or matrix.counts[:, index].any()
    ]
    if not shown:
        return ""
    names = [matrix.class_names[index] for index in shown]
    shares = _shares(matrix)[np.ix_(shown, shown)]
    cell = (_WIDTH - _LABELS - 4) / len(shown)
    end = _LABELS + cell * len(shown)
    parts = [text("true", _LABELS - 5, _LABELS - 5, "end", font_weight="bold")]
    for place, name in enumerate(names):
        middle = _LABELS + (place + 0.5) * cell
        parts.append(text(name, _LABELS - 5, middle + 3.5, "end"))
        parts.append(text(name, middle + 3.5, _LABELS - 5, transform=f"rotate(-90 {middle + 3.5:.1f} {_LABELS - 5:g})"))
    parts += [
        _cell(shares[row, column], names[row], names[column], (_LABELS + column * cell, _LABELS + row * cell), cell)
        for row, column in zip(*np.nonzero(shares >= _FAINTEST), strict=True)
    ]
    outline = element(
        "rect", x=_LABELS, y=_LABELS, width=end - _LABELS, height=end - _LABELS, fill="none", class_="grid"
    )
    title = element("title", "confusion matrix")
    return element("svg", title, *parts, outline, viewBox=f"0 0 {_WIDTH:g} {end + 4:.0f}", role="img", class_="matrix")


def largest_confusions(matrix: ConfusionMatrix, most: int = 6) -> list[Confusion]:
    """The most frequent mistakes as shares of their true class, the largest first.

    Classes with hardly any labelled pixel are left out.
    """
    totals = matrix.counts.sum(axis=1)
    shares = _shares(matrix)
    np.fill_diagonal(shares, 0)
    shares[totals < _LEAST * totals.sum()] = 0
    order = np.argsort(-shares, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, shares.shape)
    return [
        Confusion(matrix.class_names[row], matrix.class_names[column], float(shares[row, column]))
        for row, column in zip(rows, columns, strict=True)
        if shares[row, column] > 0
    ]


def _shares(matrix: ConfusionMatrix) -> NDArray[np.float64]:
    """Counts over the labelled pixels of their row; 0 where a class has none."""
    totals = matrix.counts.sum(axis=1, keepdims=True)
    return matrix.counts / np.maximum(totals, 1)


def _cell(share: float, true: str, predicted: str, corner: tuple[float, float], side: float) -> str:
    words = f"{100 * share:.1f} % of {true} " + ("is found" if true == predicted else f"is taken for {predicted}")
    kind = "right" if true == predicted else "wrong"
    return element(
        "rect", element("title", escape(words)), class_=kind, x=corner[0], y=corner[1], width=side, height=side,
        fill_opacity=float(share) ** 0.5,
    )  # fmt: skip
