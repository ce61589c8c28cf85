"""The map of a style bank: every style a dot, coloured by class or by look as the reader chooses, without a script."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from famix.reports.bank_looks import bank_prompts, looks_of
from famix.reports.bank_statistics import style_points
from famix.reports.html import category_color
from famix.reports.projection import principal_plane
from famix.style.bank import StyleBank
from famix.visualization.charts import color_key
from famix.visualization.svg import Axis, element, text

__all__ = ["MAP_CSS", "MAP_SCRIPT", "draw_map"]

_SIDE, _MARGIN = 400.0, 14.0
_MOST_DOTS = 4000  # more make a page slow and hide each other
_MOST_SOURCE_DOTS = 1500

MAP_CSS = """
.map { max-width: 40rem; }
.map text { font-size: 8px; }
.map circle { stroke: var(--paper); stroke-width: .4; }
.map .source { fill: var(--faint); stroke: none; opacity: .35; }
.map .chosen { stroke: var(--ink); stroke-width: 1.5; }
.switch { position: absolute; opacity: 0; }
.switches label { display: inline-block; padding: .2rem .7rem; margin: .3rem .3rem .3rem 0; border: 1px solid var(--line);
  border-radius: 99px; cursor: pointer; font-size: .9rem; }
.by-look { display: none; }
#by-look:checked ~ .map .by-look { display: block; }
#by-look:checked ~ .map ul.by-look { display: flex; }
#by-look:checked ~ .map .by-class { display: none; }
#by-class:checked ~ .switches label[for=by-class], #by-look:checked ~ .switches label[for=by-look] {
  background: var(--strong); border-color: var(--strong); color: var(--paper); }
.switch:focus-visible ~ .switches { outline: 2px solid var(--strong); }
"""

MAP_SCRIPT = """\
for (const map of document.querySelectorAll(".map")) {
  const line = map.querySelector("output");
  map.addEventListener("click", (event) => {
    const dot = event.target.closest("circle");
    for (const other of map.querySelectorAll(".chosen")) other.classList.remove("chosen");
    if (!dot || !dot.firstElementChild) return;
    dot.classList.add("chosen");
    line.textContent = dot.firstElementChild.textContent;
  });
}
"""


@dataclass(frozen=True)
class _Colors:
    """One way to colour the dots: a name of it, names of the groups, and the group of every style."""

    name: str
    groups: tuple[str, ...]
    index: Tensor


def draw_map(bank: StyleBank, own: StyleBank | None = None, notes: Sequence[str] = ()) -> str:
    """Draw the styles in the plane in which they vary most.

    Args:
        bank: N styles, at least one.
        own: measured statistics of the source, drawn below the styles in grey; they take part in the choice of the plane.
        notes: of every style, what a reader who points at it is told beside its class, prompt and losses.

    Returns:
        HTML, which needs `MAP_CSS`; with `MAP_SCRIPT` a tap on a dot tells about it, too.
    """
    points = style_points(bank)
    sources = style_points(own) if own is not None else points[:0]
    plane = principal_plane(torch.cat([points, sources]))
    axes = [_axis(plane.places[:, 0], _MARGIN, _SIDE - _MARGIN), _axis(plane.places[:, 1], _SIDE - _MARGIN, _MARGIN)]
    places = torch.tensor(
        [[axis.place(float(value)) for axis, value in zip(axes, row, strict=True)] for row in plane.places]
    )
    below = [
        element("circle", class_="source", cx=float(x), cy=float(y), r=1.5)
        for x, y in places[len(bank) :][_evenly(len(sources), _MOST_SOURCE_DOTS)]
    ]
    shown = _evenly(len(bank), _MOST_DOTS)
    titles = _titles(bank, notes)
    layers = [_layer(colors, places, shown, titles) for colors in _colorings(bank)]
    drawing = element(
        "svg", element("title", "map of the styles"), *below, *layers, *_labels(plane.shares),
        viewBox=f"0 0 {_SIDE:g} {_SIDE:g}", role="img",
    )  # fmt: skip
    return _figure(bank, drawing, len(shown), own)


def _figure(bank: StyleBank, drawing: str, shown: int, own: StyleBank | None) -> str:
    colorings = _colorings(bank)
    keys = "".join(
        color_key([(name, category_color(place)) for place, name in enumerate(colors.groups)]).replace(
            'class="key"', f'class="key {colors.name}"'
        )
        for colors in colorings
    )
    caption = "Every dot is a style; dots that lie close to each other have similar means and standard deviations."
    if shown < len(bank):
        caption += f" Of {len(bank)} styles {shown} are drawn, evenly chosen."
    if own is not None:
        caption += " Grey: patches of the source itself, unchanged."
    switches = ""
    if len(colorings) > 1:
        switches = (
            '<input class="switch" type="radio" name="color" id="by-class" checked>'
            '<input class="switch" type="radio" name="color" id="by-look">'
            '<div class="switches">colour by <label for="by-class">class</label><label for="by-look">prompt</label></div>'
        )
    return (
        f'{switches}\n<figure class="map">\n{drawing}\n{keys}\n<output></output>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _colorings(bank: StyleBank) -> list[_Colors]:
    ids = list(bank.counts())
    index = torch.searchsorted(torch.tensor(ids), bank.class_ids)
    colorings = [_Colors("by-class", tuple(bank.class_name(class_id) for class_id in ids), index)]
    looks = looks_of(bank)
    return colorings if looks is None else [*colorings, _Colors("by-look", looks.names, looks.index)]


def _layer(colors: _Colors, places: Tensor, shown: Tensor, titles: Sequence[str]) -> str:
    """All dots in one way of colouring, a group of SVG per colour, so that none has to say its own."""
    groups = []
    for place in range(len(colors.groups)):
        rows = shown[colors.index[shown] == place].tolist()
        dots = [
            element("circle", element("title", titles[row]), cx=float(places[row, 0]), cy=float(places[row, 1]), r=3)
            for row in rows
        ]
        groups.append(element("g", *dots, fill=category_color(place)))
    return element("g", *groups, class_=colors.name)


def _titles(bank: StyleBank, notes: Sequence[str]) -> list[str]:
    """What is said of every style, escaped."""
    prompts = bank_prompts(bank) or [bank.class_name(class_id) for class_id in bank.class_ids.tolist()]
    before, after = (bank.annotations.get(f"{which}_loss") for which in ("initial", "final"))
    titles = []
    for row, prompt in enumerate(prompts):
        losses = f"; loss {before[row]:.2f} → {after[row]:.2f}" if before is not None and after is not None else ""
        note = f"; {notes[row]}" if notes and notes[row] else ""
        titles.append(escape(f"style {row}: {prompt}{losses}{note}"))
    return titles


def _labels(shares: tuple[float, float]) -> list[str]:
    first, second = (f"{100 * share:.0f} % of the variance" for share in shares)
    return [
        text(f"first component, {first}", _SIDE - 4, _SIDE - 4, "end"),
        text(f"second component, {second}", 10, _SIDE - 4, transform=f"rotate(-90 10 {_SIDE - 4:g})"),
    ]


def _axis(values: Tensor, start: float, end: float) -> Axis:
    return Axis(float(values.min()), float(values.max()), start, end)


def _evenly(count: int, most: int) -> Tensor:
    """Numbers of at most so many of `count` things, evenly chosen."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).round().long()
