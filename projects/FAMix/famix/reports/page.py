"""Renderer of HTML pages: templates with escaping, one look, no files beside the page and no scripts that it needs."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Table", "category_color", "image_uri", "render_page", "run_color"]

_GOLDEN_ANGLE = 137.508  # degrees; multiples of it stay apart
_RUN_HUES = (225, 35, 285, 190, 320, 55)  # no red or green, which mean wrong and right
_WEBP_QUALITY = 80


@dataclass(frozen=True)
class Table:
    """Texts for the macro `table` of the templates.

    Attributes:
        head: headings.
        rows: texts of the cells.
        best: (row, column) of the cells with a star.
        total: last column of sums, which is emphasised; None without one.
        kind: CSS class, e.g. "text" for left-aligned columns.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Collection[tuple[int, int]] = ()
    total: int | None = None
    kind: str = ""


def render_page(template: str, package: str = "famix.reports", **values: Any) -> str:
    """Render a template; it may extend base.html and import macros.html of this package.

    Args:
        template: file name.
        package: package with the folder templates/.
        values: variables of the template; texts are escaped.
    """
    return _environment(package).get_template(template).render(values)


@cache
def _environment(package: str) -> Environment:
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, "famix.reports"))]
    return Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def category_color(index: int) -> str:
    """Return the CSS colour of a category, which differs from its neighbours on light and dark pages."""
    lightness = (50, 64, 38)[index // 5 % 3]  # hues come close to each other after 5 and 8
    return f"hsl({(225 + index * _GOLDEN_ANGLE) % 360:.0f} 62% {lightness}%)"


def run_color(index: int) -> str:
    """Return the CSS colour of a run."""
    return f"hsl({_RUN_HUES[index % 6]} 65% {(52, 68, 40)[index // 6 % 3]}%)"


def image_uri(pixels: NDArray[np.uint8], *, lossless: bool = False) -> str:
    """Encode an image as a data URI.

    Args:
        pixels: (H, W, 3), RGB.
        lossless: True for label maps; photographs are smaller without.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=_WEBP_QUALITY, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
