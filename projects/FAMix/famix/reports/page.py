"""Renderer for self-contained HTML pages, with escaping templates and images as data URIs."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from famix.visualization.figure import Pixels

_GOLDEN_ANGLE = 137.508  # degrees; multiples of it stay far apart
_RUN_HUES = (225, 35, 285, 190, 320, 55)  # no red or green, which mean wrong and correct
_WEBP_QUALITY = 80


@dataclass(frozen=True)
class Table:
    """Table texts for the template macro `table`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Collection[tuple[int, int]] = ()  # (row, column) of cells marked with a star
    total: int | None = None  # index of the emphasized column
    kind: str = ""  # CSS class, e.g. "text" for left-aligned columns


def render_page(template: str, package: str = "famix.reports", **values: Any) -> str:
    """Render a file in the templates/ folder of a package, with escaped values.

    The template may extend base.html and import macros.html from famix.reports.
    """
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("famix.reports")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)


def category_color(index: int) -> str:
    """Return the CSS color of a category, distinct from neighboring categories on light and dark pages."""
    lightness = (50, 64, 38)[index // 5 % 3]  # hues nearly repeat after 5 and 8 categories
    return f"hsl({(225 + index * _GOLDEN_ANGLE) % 360:.0f} 62% {lightness}%)"


def run_color(index: int) -> str:
    """Return the CSS color of a run."""
    return f"hsl({_RUN_HUES[index % 6]} 65% {(52, 68, 40)[index // 6 % 3]}%)"


def image_uri(pixels: Pixels, *, lossless: bool = False) -> str:
    """Encode an image as a data URI. Label maps need lossless compression, which keeps exact pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=_WEBP_QUALITY, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
