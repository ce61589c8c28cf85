"""Pieces of HTML pages that hold everything themselves: no file beside them, no network, and readable without scripts.

Colours follow the reader's light or dark scheme through the variables of the style sheet; the layout fits a phone.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["bars_cell", "category_color", "facts_list", "folded", "html_page", "image_uri", "paragraph", "table"]

_GOLDEN_ANGLE = 137.508  # degrees; steps of it never come close to an earlier one
_WEBP_QUALITY = 80
_LONG, _SHOWN = 240, 100  # characters of a fact

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #1c1e22; --faint: #666a71; --paper: #ffffff; --line: #dcdee2; --best: #0b7a3b; --bar: #f3f4f6;
  --strong: #3b5bdb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa0a8; --paper: #15171a; --line: #33373d; --best: #5fd08c; --bar: #202429;
    --strong: #7c9bff; }
}
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
img { display: block; width: 100%; height: auto; border-radius: 6px; background: #fff; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font: 11px system-ui, -apple-system, "Segoe UI", sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
figure { margin: 1rem 0; min-width: 0; }
figcaption { color: var(--faint); font-size: .88rem; line-height: 1.4; margin-top: .35rem; }
.wide { overflow-x: auto; }
.side > figure { max-width: 34rem; }
.side { display: grid; gap: 1rem 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.text th, .text td { text-align: left; }
thead th { color: var(--faint); font-weight: 600; }
tbody th { font-weight: 400; }
tr.total td { border-top: 2px solid var(--line); font-weight: 700; }
.scores { width: auto; min-width: min(100%, 24rem); }
.scores th, .scores td:first-child { white-space: normal; }
td.best { color: var(--best); font-weight: 700; }
td.bar { width: 75%; min-width: 9rem; }
td.bar div { display: flex; align-items: center; gap: .5rem; line-height: 1.15; }
td.bar i { height: .6rem; border-radius: 2px; min-width: 1px; }
td.bar span { font-size: .85rem; }
.key { display: flex; flex-wrap: wrap; gap: .15rem .9rem; margin: .4rem 0; font-size: .88rem; list-style: none; padding: 0; }
.key i { display: inline-block; width: .7rem; height: .7rem; border-radius: 3px; margin-right: .35rem; }
details { border-top: 1px solid var(--line); padding: .45rem 0; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .3rem 1rem; margin: 1rem 0 0; font-size: .92rem; }
dt { color: var(--faint); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
dd details { border: 0; padding: 0; }
dd summary { font-weight: 400; }
@media (max-width: 30rem) { th, td { padding-left: .35rem; padding-right: .35rem; font-size: .92rem; } }
code { background: var(--bar); padding: .1rem .35rem; border-radius: 4px; font-size: .9em; }
$css</style>
</head>
<body>
$body
$script</body>
</html>
""")


def html_page(title: str, body: str, *, css: str = "", script: str = "") -> str:
    """A whole document.

    Args:
        title: text.
        body: HTML.
        css: rules beside those of all pages.
        script: JavaScript, without which the page must make sense.
    """
    return _PAGE.substitute(
        title=escape(title), body=body, css=css, script=f"<script>\n{script}</script>\n" if script else ""
    )


def paragraph(text: str) -> str:
    """Text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    best: Mapping[int, Sequence[int]] | None = None,
    totals: Sequence[int] = (),
    kind: str = "",
) -> str:
    """A table of texts that scrolls sideways where the screen is narrow.

    Args:
        head: headings of the columns.
        rows: texts; `bars_cell` makes other cells.
        best: number of a row -> columns whose cells are marked as winners.
        totals: numbers of rows that sum up the others.
        kind: class of the table, e.g. "text" for columns that are no numbers.
    """
    marked = best or {}
    total = ' class="total"'
    lines = [
        f"<tr{total if number in totals else ''}>"
        + "".join(_cell(text, column in marked.get(number, ())) for column, text in enumerate(row))
        + "</tr>"
        for number, row in enumerate(rows)
    ]
    headings = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    name = f' class="{kind}"' if kind else ""
    return (
        f'<div class="wide"><table{name}>\n<thead><tr>{headings}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


class Markup(str):
    """HTML that `table` takes as it is."""


def bars_cell(bars: Sequence[tuple[float, str, str]]) -> Markup:
    """A cell with bars below each other, each with its number.

    Args:
        bars: share of the width that a bar fills, 0-1; the number; a CSS colour.
    """
    lines = []
    for share, text, color in bars:
        width = 100 * min(max(share, 0.0), 1.0) * 0.8  # the rest is the number's
        lines.append(f'<div><i style="width:{width:.1f}%;background:{color}"></i><span>{escape(text)}</span></div>')
    return Markup(f'<td class="bar">{"".join(lines)}</td>')


def facts_list(facts: Mapping[str, str]) -> str:
    """Names and what they are; long texts are folded."""
    lines = (f"<dt>{escape(name)}</dt><dd>{_foldable(text)}</dd>" for name, text in facts.items())
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def folded(summary: str, content: str, is_open: bool = False) -> str:
    """HTML that the reader can open and close."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>\n{content}\n</details>"


def category_color(index: int) -> str:
    """A CSS colour for the index-th of some categories, that can be told from its neighbours on light and on dark."""
    lightness = (50, 64, 38)[index // 5 % 3]  # hues come close to each other again after 5 and after 8
    return f"hsl({(225 + index * _GOLDEN_ANGLE) % 360:.0f} 62% {lightness}%)"


def image_uri(pixels: NDArray[np.uint8], *, lossless: bool = False) -> str:
    """An image as text for the attribute src.

    Args:
        pixels: (H, W, 3), RGB.
        lossless: for drawings with few colours; photographs are smaller without.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=_WEBP_QUALITY, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _foldable(text: str) -> str:
    if len(text) <= _LONG:
        return escape(text)
    return f"<details><summary>{escape(text[:_SHOWN])}…</summary>{escape(text)}</details>"


def _cell(text: str, is_best: bool) -> str:
    if isinstance(text, Markup):
        return text
    return f'<td class="best">{escape(text)} ★</td>' if is_best else f"<td>{escape(text)}</td>"
