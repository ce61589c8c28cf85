"""What is found out about a bank, and how it is told: as text for a terminal and as one HTML page."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from tabulate import tabulate
from torch import Tensor

from famix.io import parse_json
from famix.reports.bank_editing import HISTORY, find_problems
from famix.reports.bank_looks import looks_of
from famix.reports.bank_map import MAP_CSS, MAP_SCRIPT, draw_map
from famix.reports.bank_statistics import GroupStatistics, class_statistics, look_statistics
from famix.reports.html import category_color, facts_list, html_page, paragraph, table
from famix.reports.nearest_prompts import NearestPrompts
from famix.reports.report_text import format_number
from famix.style.bank import StyleBank
from famix.visualization.charts import Series, color_key, histogram

__all__ = ["BankView", "format_bank", "render_bank"]

_LONG = 160  # characters of a fact in a terminal
_NEAREST_NAMED = 3


@dataclass(frozen=True)
class BankView:
    """A bank with what was found out about it.

    Attributes:
        name: of the file.
        bank: at least one style.
        own: measured statistics of the source, if they were given.
        distances: (N,) of the styles to these, see `source_distance`.
        nearest: what CLIP takes the styles for, if it was asked.
    """

    name: str
    bank: StyleBank
    own: StyleBank | None = None
    distances: Tensor | None = None
    nearest: NearestPrompts | None = None


def format_bank(view: BankView) -> str:
    """Lay out what is known about a bank for a terminal."""
    bank = view.bank
    parts = [
        f"{view.name}: {len(bank)} styles of {len(bank.counts())} classes, {bank.num_channels} channels",
        _plain_table("class", _class_rows(view)),
    ]
    looks = look_statistics(bank)
    if looks:
        parts.append(_plain_table("look", _look_rows(view)))
    parts.append("\n".join(f"{name:18} {_shorten(value)}" for name, value in _facts(bank).items()))
    parts += [f"problem: {problem}" for problem in find_problems(bank)]
    return "\n\n".join(parts) + "\n"


def render_bank(view: BankView) -> str:
    """The page of a bank: everything inside, nothing from elsewhere."""
    bank = view.bank
    body = [f"<h1>Style bank {escape(view.name)}</h1>", paragraph(_headline(bank)), "<h2>Map of the styles</h2>"]
    body.append(draw_map(bank, view.own, _notes(view)))
    body += _histograms(view)
    body += ["<h2>Classes</h2>", _html_table("class", _class_rows(view)), paragraph(_COLUMNS)]
    if look_statistics(bank):
        body += ["<h2>Prompts</h2>", _html_table("look", _look_rows(view))]
    if view.nearest is not None:
        body.append(paragraph(_NEAREST))
    if view.distances is not None:
        body.append(paragraph(_DISTANCE))
    problems = find_problems(bank)
    body += [
        f"<h2>Where it comes from</h2>{facts_list(_facts(bank) | ({'problems': '; '.join(problems)} if problems else {}))}"
    ]
    return html_page(f"Style bank {view.name}", "\n".join(body), css=MAP_CSS, script=MAP_SCRIPT)


_COLUMNS = (
    "Loss is 1 - cosine similarity to the prompt, before and after mining. Spread is the root mean square distance of a "
    "style from the mean style of its group, relative to the size of that. Negative counts the styles with a negative "
    "standard deviation in some channel, which the optimiser may leave and which training applies as they are."
)
_NEAREST = (
    "Nearest: of the prompts of a style's class, the one that CLIP finds nearest when the style is put on other content "
    "than it was mined on, both without what all styles and all prompts have in common. Recognised is the share of styles "
    "whose own prompt that is."
)
_DISTANCE = (
    "Distance from the source: root mean square difference to the average patch of the class, in units of how much the "
    "source's patches of that class vary; a patch of the source itself has about 1."
)

Row = dict[str, str]


def _class_rows(view: BankView) -> list[Row]:
    bank = view.bank
    groups = [
        (one, bank.class_ids == class_id) for one, class_id in zip(class_statistics(bank), bank.counts(), strict=True)
    ]
    return [_row(view, one, chosen) for one, chosen in groups]


def _look_rows(view: BankView) -> list[Row]:
    looks = looks_of(view.bank)
    if looks is None:
        return []
    return [_row(view, one, looks.index == place) for place, one in enumerate(look_statistics(view.bank))]


def _row(view: BankView, one: GroupStatistics, chosen: Tensor) -> Row:
    """Heading -> text; columns that say nothing of this bank are left out."""
    row = {"": one.name, "styles": str(one.styles)}
    if view.bank.annotations.get("final_loss") is not None:
        row |= {"loss before": format_number(one.loss_before, 3), "after": format_number(one.loss_after, 3)}
    row |= {"spread": format_number(one.spread, 2), "negative": str(one.negative)}
    if view.distances is not None:
        row["from source"] = format_number(float(view.distances[chosen].median()), 2)
    if view.nearest is not None:
        row |= _recognised(view, chosen)
    return row


def _recognised(view: BankView, chosen: Tensor) -> Row:
    assert view.nearest is not None
    taken = [
        (nearest[0].removesuffix(f" {view.bank.class_name(int(view.bank.class_ids[row]))}"), rank == 1)
        for row, nearest, rank in zip(
            view.nearest.rows.tolist(), view.nearest.prompts, view.nearest.ranks.tolist(), strict=True
        )
        if chosen[row]
    ]
    if not taken:
        return {"recognised": "-", "most often taken for": "-"}
    share = sum(right for _, right in taken) / len(taken)
    ((look, _),) = Counter(look for look, _ in taken).most_common(1)
    return {"recognised": f"{100 * share:.0f} %", "most often taken for": look}


def _plain_table(kind: str, rows: Sequence[Row]) -> str:
    head = [kind, *list(rows[0])[1:]]
    align = ["left", *("left" if name == "most often taken for" else "right" for name in head[1:])]
    return tabulate([list(row.values()) for row in rows], headers=head, disable_numparse=True, colalign=align)


def _html_table(kind: str, rows: Sequence[Row]) -> str:
    return table([kind, *list(rows[0])[1:]], [list(row.values()) for row in rows])


def _notes(view: BankView) -> list[str]:
    """What is said of every style beside its prompt."""
    notes: list[list[str]] = [[] for _ in range(len(view.bank))]
    if view.nearest is not None:
        for row, prompts in zip(view.nearest.rows.tolist(), view.nearest.prompts, strict=True):
            notes[row].append("nearest " + ", ".join(prompts[:_NEAREST_NAMED]))
    if view.distances is not None:
        for row, distance in enumerate(view.distances.tolist()):
            notes[row].append(f"distance from the source {distance:.2f}")
    return ["; ".join(parts) for parts in notes]


def _histograms(view: BankView) -> list[str]:
    charts = []
    losses = [
        Series(name, category_color(place), _numbers(view.bank.annotations[key]))
        for place, (name, key) in enumerate((("before mining", "initial_loss"), ("after", "final_loss")))
        if key in view.bank.annotations
    ]
    if losses:
        key = color_key([(one.name, one.color) for one in losses])
        charts.append(f"<figure>{histogram(losses, 'cosine loss', 'styles')}{key}</figure>")
    if view.distances is not None:
        distance = Series("styles", category_color(2), _numbers(view.distances))
        charts.append(f"<figure>{histogram([distance], 'distance from the source', 'styles')}</figure>")
    return [f'<h2>Losses and distances</h2><div class="side">{"".join(charts)}</div>'] if charts else []


def _numbers(values: Tensor) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return values.double().numpy()


def _headline(bank: StyleBank) -> str:
    parts = [f"{len(bank)} styles of {len(bank.counts())} classes, {bank.num_channels} channels each."]
    losses = [bank.annotations.get(f"{which}_loss") for which in ("initial", "final")]
    if losses[0] is not None and losses[1] is not None and len(bank):
        before, after = (float(one.mean()) for one in losses if one is not None)
        parts.append(f"Mining brought the mean loss from {before:.3f} to {after:.3f}.")
    return " ".join(parts)


def _facts(bank: StyleBank) -> dict[str, str]:
    """The metadata, lists as texts; the history step by step."""
    facts = {"styles by class": ", ".join(f"{bank.class_name(key)} {count}" for key, count in bank.counts().items())}
    for key in sorted(bank.metadata):
        facts[key.replace("_", " ")] = _readable(key, bank.metadata[key])
    return facts


def _readable(key: str, value: str) -> str:
    try:
        plain = parse_json(value)
    except ValueError:
        return value
    if key == HISTORY and isinstance(plain, list):
        return "; ".join(json.dumps(step) for step in plain)
    return ", ".join(map(str, plain)) if isinstance(plain, list) else value


def _shorten(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."
