"""Elements of SVG drawings and the axes of a chart.

Drawings are about 400 units wide, so that their texts can be read on a phone; a page scales them up where there is room.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

__all__ = ["Axis", "Frame", "element", "number", "text"]


def element(name: str, *children: str, **attributes: object) -> str:
    """An element of SVG.

    Args:
        name: of the element.
        children: SVG.
        attributes: numbers are rounded to hundredths; "_" stands for "-", and class_ for class.
    """
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{pairs}>{''.join(children)}</{name}>" if children else f"<{name}{pairs}/>"


def text(content: str, x: float, y: float, anchor: str = "start", **attributes: object) -> str:
    """A line of text; `anchor` is start, middle or end."""
    return element("text", escape(content), x=x, y=y, text_anchor=anchor, **attributes)


def number(value: float) -> str:
    """A number for a tick or a label, without needless digits."""
    return f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """Maps values to places.

    Attributes:
        low, high: values at the ends.
        start, end: places of these.
    """

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value lies; outside of the ends, too."""
        span = self.high - self.low
        return self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5)

    def ticks(self, count: int = 5) -> list[float]:
        """About so many round values between the ends."""
        values = MaxNLocator(count).tick_values(self.low, self.high)
        tolerance = 1e-9 * (abs(self.high - self.low) or 1)
        return [float(value) for value in values if self.low - tolerance <= value <= self.high + tolerance]


@dataclass(frozen=True)
class Frame:
    """The axes of a chart, `width` x `height` units with the labels.

    Attributes:
        x, y: (lowest, highest) value.
        width, height: of the drawing.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 400
    height: float = 240

    @property
    def across(self) -> Axis:
        """The horizontal axis."""
        return Axis(*self.x, 44, self.width - 10)

    @property
    def up(self) -> Axis:
        """The vertical axis."""
        return Axis(*self.y, self.height - 38, 10)

    def draw(self, content: Sequence[str], x_label: str, y_label: str, description: str) -> str:
        """The whole drawing: lines at round values, labels, and the content above them.

        Args:
            content: SVG, placed by `across` and `up`.
            x_label, y_label: what the axes show.
            description: for readers who do not see it.
        """
        across, up = self.across, self.up
        lines = []
        for value in up.ticks(5):
            y = up.place(value)
            lines.append(element("line", class_="grid", x1=across.start, x2=across.end, y1=y, y2=y))
            lines.append(text(number(value), across.start - 5, y + 4, "end"))
        for value in across.ticks(6):
            lines.append(text(number(value), across.place(value), up.start + 14, "middle"))
        labels = [
            text(x_label, across.end, self.height - 6, "end"),
            text(y_label, 12, up.start, "start", transform=f"rotate(-90 12 {up.start:.0f})"),
        ]
        return element(
            "svg",
            element("title", escape(description)),
            *lines,
            *content,
            *labels,
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            role="img",
        )


def _value(value: object) -> str:
    return f"{round(value, 2):g}" if isinstance(value, float) else escape(str(value))
