"""Summary of a style bank, as text for a terminal or as an HTML page with a map of its styles."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from famix.clip import IGNORE_PROMPT
from famix.io import parse_json
from famix.reports.bank import (
    HISTORY,
    bank_prompts,
    class_groups,
    find_problems,
    group_statistics,
    source_distance,
    style_points,
    word_groups,
)
from famix.reports.nearest_prompts import NearestPrompts, evenly
from famix.reports.page import Table, category_color, render_page
from famix.reports.tables import format_number, text_table
from famix.style.bank import StyleBank
from famix.utils.messages import counted
from famix.visualization.charts import Series, histogram

_LONG = 160  # maximum characters of a metadata entry in a terminal
_SIDE, _MARGIN = 400, 14  # map units
_MOST_DOTS, _MOST_SOURCE_DOTS = 4000, 1500  # more would hide each other and slow the page down
_MEANINGS = {  # of columns and rows of the tables
    "loss before": "mean of 1 - cosine similarity to the prompt before mining",
    "after": "the same after mining",
    "spread": "RMS distance of the styles from their mean, relative to the RMS of the mean",
    "negative": "number of styles with a negative standard deviation in any channel, which mining permits",
    "from source": "median distance from source patches of the class, whose own distance is about 1 (see --own)",
    "recognized": "share of styles whose nearest prompt is their own",
    "most often nearest": "style word of the prompt that is nearest to most styles",
    IGNORE_PROMPT: "prompt of patches without a label",
}
_ON_TOP = ("source", "stage", "grid", "steps", "lr")  # metadata at the top of the page


@dataclass(frozen=True)
class BankView:
    """A bank with its analysis results."""

    name: str  # file name
    bank: StyleBank  # N >= 1 styles
    own: StyleBank | None = None  # measured statistics of the source, if given
    nearest: NearestPrompts | None = None  # if computed

    @cached_property
    def distances(self) -> Tensor | None:
        """(N,) distances from the source, see `source_distance`."""
        return None if self.own is None else source_distance(self.bank, self.own)

    @property
    def size(self) -> str:
        """Numbers of styles, classes and channels in words."""
        return f"{self.bank.size}, {counted(self.bank.num_channels, 'channel')}"

    @cached_property
    def losses(self) -> list[Tensor]:
        """(N,) losses before and after mining, or [] for a bank without losses."""
        keys = ("initial_loss", "final_loss")
        return [self.bank.annotations[key] for key in keys] if {*keys} <= self.bank.annotations.keys() else []

    @cached_property
    def tables(self) -> list[Table]:
        """Table of classes and, for a bank with prompts, table of style words."""
        groups = {"class": class_groups(self.bank), "style word": word_groups(self.bank)}
        tables = []
        for kind, members in groups.items():
            rows = [{kind: name} | _row(self, chosen) for name, chosen in members.items()]
            if rows:
                tables.append(Table(list(rows[0]), [list(row.values()) for row in rows]))
        return tables


def format_bank(view: BankView) -> str:
    """Format the summary of a bank for a terminal."""
    parts = [f"{view.name}: {view.size}", *(text_table(table.head, table.rows) for table in view.tables)]
    shown = {*view.tables[0].head, *word_groups(view.bank)}
    parts.append("\n".join(f"{name}: {text}" for name, text in _MEANINGS.items() if name in shown))
    texts = {name: text if len(text) <= _LONG else f"{text[:_LONG]}..." for name, text in _metadata(view.bank).items()}
    parts.append("\n".join(f"{name:18} {text}" for name, text in texts.items()))
    if "rectified" in texts:
        parts.append(
            "rectified: whether the features of the stage are outputs of a ReLU, and restyled ones are rectified too"
        )
    parts += [f"problem: {problem}" for problem in find_problems(view.bank)]
    return "\n\n".join(parts) + "\n"


def render_bank(view: BankView) -> str:
    """Render a self-contained page about a bank. The page works without scripts."""
    bank, metadata, words = view.bank, _metadata(view.bank), list(word_groups(view.bank))
    headline = f"{view.size} each."
    if view.losses:
        before, after = (float(losses.mean()) for losses in view.losses)
        headline += f" Mining reduced the mean loss from {before:.3f} to {after:.3f}."
    problems = find_problems(bank)
    colors = [category_color(place) for place in range(len(words) + len(bank.counts()))]
    return render_page(
        "bank.html",
        title=f"Style bank {view.name}",
        headline=headline,
        facts={key: metadata[key] for key in _ON_TOP if key in metadata},
        map=_draw_map(view),
        styles=len(bank),
        prompt_key=list(zip(words, colors, strict=False)),
        # Prompts and classes share no color.
        class_key=list(zip(map(bank.class_name, bank.counts()), colors[len(words) :], strict=True)),
        charts=_charts(view),
        classes=view.tables[0],
        prompts=view.tables[1] if words else Table([], []),
        has_nearest=view.nearest is not None,
        has_distances=view.own is not None,
        metadata=metadata | ({"problems": "; ".join(problems)} if problems else {}),
    )


def principal_plane(points: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Project (N, D >= 2) points onto the plane of their largest variance.

    Returns:
        (N, 2) coordinates, and the share of the variance along each axis, 0-1. Each axis has the sign that makes its
        largest weight positive, so equal points give equal coordinates.
    """
    centered = (points - points.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centered.t() @ centered)
    axes = vectors[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0)[None]).sign()
    shares = values[-2:].clamp(min=0).flip(0) / values.clamp(min=0).sum().clamp(min=torch.finfo(torch.float64).tiny)
    return (centered @ axes).float(), (float(shares[0]), float(shares[1]))


def _draw_map(view: BankView) -> dict[str, Any]:
    """Collect the dots (x, y, CSS classes, description), the source dots, and the shares of the variance."""
    bank = view.bank
    points = style_points(bank)
    sources = style_points(view.own) if view.own is not None else points[:0]
    plane, shares = principal_plane(torch.cat([points, sources]))
    low, high = plane.amin(dim=0), plane.amax(dim=0)
    places = torch.where(high > low, (plane - low) / (high - low), 0.5) * (_SIDE - 2 * _MARGIN) + _MARGIN
    places[:, 1] = _SIDE - places[:, 1]  # SVG's y axis points down
    corners = [tuple(round(value, 1) for value in row) for row in places.tolist()]
    kinds = [""] * len(bank)
    for letter, groups in (("c", class_groups(bank)), ("p", word_groups(bank))):
        for place, chosen in enumerate(groups.values()):
            for row in chosen.nonzero().flatten().tolist():
                kinds[row] += f" {letter}{place}"
    described = _describe_styles(view)
    return {
        "dots": [(*corners[row], kinds[row].strip(), described[row]) for row in evenly(len(bank), _MOST_DOTS)],
        "sources": [corners[len(bank) + row] for row in evenly(len(sources), _MOST_SOURCE_DOTS)],
        "shares": [f"{100 * share:.0f}" for share in shares],
    }


def _describe_styles(view: BankView) -> list[str]:
    """Describe each style by its prompt or class, losses, nearest prompts and distance."""
    bank = view.bank
    prompts = bank_prompts(bank) or [bank.class_name(class_id) for class_id in bank.class_ids.tolist()]
    words = [f"style {row}: {prompt}" for row, prompt in enumerate(prompts)]
    if view.losses:
        for row, (before, after) in enumerate(torch.stack(view.losses, dim=1).tolist()):
            words[row] += f"; loss {before:.2f} → {after:.2f}"
    if view.nearest is not None:
        for row, names in zip(view.nearest.rows.tolist(), view.nearest.prompts, strict=True):
            words[row] += f"; nearest {', '.join(names[:3])}"
    if view.distances is not None:
        for row, distance in enumerate(view.distances.tolist()):
            words[row] += f"; distance from the source {distance:.2f}"
    return words


def _row(view: BankView, chosen: Tensor) -> dict[str, str]:
    """Make the row for a group, without columns that are unknown for the whole bank."""
    digits = {"loss before": 3, "after": 3, "spread": 2}
    statistics = group_statistics(view.bank, chosen)
    row = {name: format_number(value, digits.get(name, 0)) for name, value in statistics.items()}
    if view.distances is not None:
        row["from source"] = format_number(float(view.distances[chosen].median()), 2)
    if view.nearest is not None:
        places = chosen[view.nearest.rows].nonzero().flatten().tolist()
        words: Counter[str] = Counter()
        for place in places:
            name = view.bank.class_name(int(view.bank.class_ids[view.nearest.rows[place]]))
            words[view.nearest.prompts[place][0].removesuffix(f" {name}")] += 1
        share = f"{100 * float((view.nearest.ranks[places] == 1).float().mean()):.0f} %" if places else "-"
        row |= {"recognized": share, "most often nearest": words.most_common(1)[0][0] if words else "-"}
    return row


def _charts(view: BankView) -> list[tuple[Markup, list[tuple[str, str]]]]:
    """Draw histograms of losses and distances, each with its key. Mined styles have the same color in both."""
    colors = ("var(--faint)", "var(--strong)")
    groups = {"cosine loss": list(zip(("before mining", "after"), colors, view.losses, strict=False))}
    if view.distances is not None:
        groups["distance from the source"] = [("styles", colors[1], view.distances)]
    charts = []
    for label, members in groups.items():
        series = [Series(name, color, values.double().numpy()) for name, color, values in members]
        if series:
            charts.append((Markup(histogram(series, label, "styles")), [(one.name, one.color) for one in series]))
    return charts


def _metadata(bank: StyleBank) -> dict[str, str]:
    """Return a mapping from metadata name to text. Lists are joined, and the history has one entry per step."""
    entries = {"styles by class": ", ".join(f"{bank.class_name(key)} {count}" for key, count in bank.counts().items())}
    for key in sorted(bank.metadata):
        text = bank.metadata[key]
        try:
            plain = parse_json(text)
        except ValueError:
            plain = None
        if isinstance(plain, list):
            text = "; ".join(map(json.dumps, plain)) if key == HISTORY else ", ".join(map(str, plain))
        entries[key.replace("_", " ")] = text
    return entries
