"""What the colours of a picture mean."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from famix.data.class_table import ClassTable
from famix.inference.images import RGBImage

__all__ = ["draw_legend"]

_INK, _PAPER = (28, 30, 34), (255, 255, 255)
_FONT_SIZE, _LINE, _MARGIN, _SWATCH, _GAP = 13, 20, 6, 12, 12  # pixels


def draw_legend(classes: ClassTable, class_ids: Sequence[int], width: int) -> RGBImage:
    """Draw a strip of coloured squares with names, in as many lines as they need.

    Args:
        classes: names and colours.
        class_ids: train ids to show, in this order.
        width: of the strip, in pixels.

    Returns:
        (h, width, 3) uint8, RGB.
    """
    font = _font()
    places, line, left = [], 0, _MARGIN
    for class_id in class_ids:
        needed = _SWATCH + 5 + round(font.getlength(classes.names[class_id])) + _GAP
        if left > _MARGIN and left + needed > width:
            line, left = line + 1, _MARGIN
        places.append((left, _MARGIN + line * _LINE))
        left += needed
    strip = Image.new("RGB", (width, 2 * _MARGIN + (line + 1) * _LINE - (_LINE - _SWATCH)), _PAPER)
    pen = ImageDraw.Draw(strip)
    for class_id, (x, y) in zip(class_ids, places, strict=True):
        pen.rectangle((x, y, x + _SWATCH - 1, y + _SWATCH - 1), fill=classes.colors[class_id], outline=_INK)
        pen.text((x + _SWATCH + 5, y + _SWATCH // 2), classes.names[class_id], _INK, font, anchor="lm")
    return np.asarray(strip)


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Comes with matplotlib, and is the same on every machine.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), _FONT_SIZE)
