"""Parts of evaluation protocols: names, and forms with numbers. docs/PROTOCOLS.md describes their effects and uses.

A part sets some fields of `famix.evaluation.Protocol`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from famix.evaluation.protocols.transforms import UNCHANGED, ReleasedResizeCrop, ResizeCrop, SlidingWindow
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

Fields = Mapping[str, Any]  # field of Protocol -> value

FIELDS = ("image", "truth", "scales", "released", "window", "flip", "average", "pad_label")
"""Fields of Protocol that a part can set, in the order in which a protocol's name lists the parts."""

NATIVE, LOGITS, ROAD_PADDING = "native", "logits", "roadpadding"
_ROAD = 0  # train id that the reference implementation pads labels with


def _both(transform: ResizeCrop) -> Fields:
    return {"image": transform, "truth": transform}


def _fit(*sides: int) -> Fields:
    long, short = max(sides), min(sides)
    return {"name": f"fit{long}x{short}", "image": ResizeCrop(long=long, short=short)}


def _slide(size: int, stride: int | None = None) -> Fields:
    stride = round(size * 2 / 3) if stride is None else stride
    if stride > size:
        raise ConfigError(
            f"the stride of slide{size}/{stride} must be at most {size}, got {stride}. Use slide{size}/{size}."
        )
    return {"name": f"slide{size}/{stride}", "window": SlidingWindow(size, stride)}


_PARTS: dict[str, Fields | Callable[..., Fields]] = {
    # Sizes of the image and the ground truth
    NATIVE: _both(UNCHANGED),
    "short1024": _both(ResizeCrop(short=1024)),
    "robustnet1536": _both(ResizeCrop(height=1536, crop=(1536, 1536))),
    "robustnet1536released": {**_both(ReleasedResizeCrop(height=1536, crop=(1536, 1536))), "pad_label": _ROAD},
    "fit1024x512": {"image": ResizeCrop(long=1024, short=512)},
    "fit2048x1024": {"image": ResizeCrop(long=2048, short=1024)},
    "halftruth": {"truth": ResizeCrop(0.5, floor=True)},
    # Scales of the image
    "half": {"scales": (0.5,)},
    "ensemble": {"scales": (1.0, 0.5)},
    "famix0.5": {"scales": (0.5,), "released": True},
    "famix1+0.5": {"scales": (1.0, 0.5), "released": True, "average": LOGITS},
    "multiscale": {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)},
    # Views of each scale
    "slide512": {"window": SlidingWindow(512, 341)},
    "slide1024": {"window": SlidingWindow(1024, 683)},
    "flip": {"flip": True},
    # Averages and padding
    LOGITS: {"average": LOGITS},
    ROAD_PADDING: {"pad_label": _ROAD},
    # Forms with numbers: <F> is a factor, and all others are in pixels
    "short<N>": lambda length: _both(ResizeCrop(short=length)),
    "crop<W>x<H>": lambda width, height: _both(ResizeCrop(crop=(height, width))),
    "fit<L>x<S>": _fit,
    "scale<F>": lambda factor: {"scales": (float(factor),)},
    "famix<F>": lambda factor: {"scales": (float(factor),), "released": True},
    "famix1+<F>": lambda factor: {"scales": (1.0, float(factor)), "released": True, "average": LOGITS},
    "slide<N>": _slide,
    "slide<N>/<STEP>": _slide,
}


def register_part(form: str, fields: Fields | Callable[..., Fields]) -> None:
    """Register a part for TEST.PROTOCOL.

    Args:
        form: name of the part, or a form with placeholders for numbers, such as "slide<N>/<STEP>". <F> accepts decimal
            numbers, and any other placeholder accepts only integers. All must be above 0.
        fields: values for some of FIELDS or, for a form, a function that maps its numbers to such values. The function may
            add "name", the normalized name of the part.

    Raises:
        ValueError: the form is already registered or cannot be part of a protocol's name, or a field is unknown.
    """
    if form in _PARTS:
        raise ValueError(f"form {form!r} is already registered. Choose another name.")
    if not re.fullmatch(r"[^\W\d]([^\s+]|\+(?=[\d<]))*", form):
        raise ValueError(f"form must start with a letter and contain no whitespace or '+', got {form!r}. Rename it.")
    if not callable(fields) and not fields.keys() <= set(FIELDS):
        raise ValueError(f"fields of {form!r} must be among {', '.join(FIELDS)}, got {', '.join(fields)}.")
    _PARTS[form] = fields


def registered_parts() -> tuple[str, ...]:
    """Return the registered names and forms, in the order of registration."""
    return tuple(_PARTS)


def find_part(text: str) -> tuple[str, Fields]:
    """Look up a registered name, or a registered form with numbers.

    Returns:
        The normalized name of the part, and the fields that it sets.

    Raises:
        ConfigError: the part is unknown or has invalid numbers.
    """
    for form, fields in _PARTS.items():
        if not callable(fields):
            if form == text:
                return text, fields
            continue
        placeholder = r"<(\w+)>"
        pattern = re.sub(placeholder, lambda m: r"(\d+(?:\.\d+)?)" if m[1] == "F" else r"(\d+)", re.escape(form))
        match = re.fullmatch(pattern, text, flags=re.ASCII)
        if match:
            numbers = [float(group) if "." in group else int(group) for group in match.groups()]
            if min(numbers) <= 0:
                raise ConfigError(f"numbers in a part must be above 0, got '{text}'. Use positive numbers.")
            values = dict(fields(*numbers))
            name = values.pop("name", re.sub(placeholder, "{:.10g}", form).format(*numbers))
            return next((known for known, other in _PARTS.items() if other == values), name), values
    names = registered_parts()
    raise ConfigError(
        f"unknown part '{text}'.{did_you_mean(text, names)} Known parts: {', '.join(names)}. Join parts with '+'."
    )
