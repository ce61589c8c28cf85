"""The parts that evaluation protocols are composed of: each has a name, or a form with numbers, and sets some fields of
`famix.evaluation.protocols.protocol.Protocol`. docs/PROTOCOLS.md says who scores how.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from famix.evaluation.protocols.sliding import Window
from famix.evaluation.protocols.transforms import (
    NATIVE_FRAME,
    Fit,
    Frame,
    Height,
    ReleasedFrame,
    Scale,
    ShortEdge,
    TruncatedHeight,
)
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

__all__ = ["FIELDS", "LOGITS", "NATIVE", "PART_FORMS", "PART_NAMES", "ROAD_PADDING", "Part", "find_part", "split_parts"]

Part = Mapping[str, Any]
"""Fields of Protocol that a part sets, with their values."""

FIELDS = {
    "image": "the size of the image",
    "truth": "the size of the ground truth",
    "scales": "the scales",
    "released": "how scales are made",
    "window": "the sliding window",
    "flip": "the flip",
    "average": "what is averaged",
    "pad_label": "the label of padding",
}
"""What the fields are, in the order in which a protocol's name has its parts."""

NATIVE, LOGITS, ROAD_PADDING = "native", "logits", "roadpadding"
_ROAD = 0  # train id that the released program pads labels with


def _both(frame: Frame) -> Part:
    return {"image": frame, "truth": frame}


_PARTS: Mapping[str, Part] = {
    # What is shown and what is scored
    NATIVE: _both(NATIVE_FRAME),
    "short1024": _both(Frame(ShortEdge(1024))),
    "robustnet1536": _both(Frame(Height(1536), crop=(1536, 1536))),
    "robustnet1536released": {
        **_both(ReleasedFrame(TruncatedHeight(1536), crop=(1536, 1536))),
        "pad_label": _ROAD,
    },
    "fit1024x512": {"image": Frame(Fit(1024, 512))},
    "fit2048x1024": {"image": Frame(Fit(2048, 1024))},
    "halftruth": {"truth": Frame(Scale(0.5, floors=True))},
    # Scales of what is shown
    "half": {"scales": (0.5,)},
    "ensemble": {"scales": (1.0, 0.5)},
    "famix0.5": {"scales": (0.5,), "released": True},
    "famix1+0.5": {"scales": (1.0, 0.5), "released": True, "average": LOGITS},
    "multiscale": {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)},
    # How the model looks at each
    "slide512": {"window": Window(512, 341)},
    "slide1024": {"window": Window(1024, 683)},
    "flip": {"flip": True},
    # How that is put together and scored
    LOGITS: {"average": LOGITS},
    ROAD_PADDING: {"pad_label": _ROAD},
}

PART_NAMES = tuple(_PARTS)
"""Parts that have a name."""


def split_parts(text: str) -> list[str]:
    """Cut a protocol's text into its parts. No part begins with a number, so "famix1+0.5" stays whole."""
    return re.split(r"\+(?!\d)", re.sub(r"\s*\+\s*", "+", text.strip()))


def find_part(text: str) -> tuple[str, Part]:
    """Look a part up.

    Args:
        text: one of PART_NAMES, or PART_FORMS with numbers.

    Returns:
        Its normalised name, and what it sets.

    Raises:
        ConfigError: there is no such part, or its numbers are impossible.
    """
    if text in _PARTS:
        return text, _PARTS[text]
    for _, pattern, build in _FORMS:
        match = re.fullmatch(pattern, text, flags=re.ASCII)
        if match:
            name, part = build(*_numbers(text, match))
            return next((known for known, other in _PARTS.items() if other == part), name), part
    raise ConfigError(
        f"unknown part '{text}'.{did_you_mean(text, PART_NAMES)} Known: {', '.join((*PART_NAMES, *PART_FORMS))}; join "
        "parts with +"
    )


def _numbers(text: str, match: re.Match[str]) -> list[float]:
    numbers = [float(group) if "." in group else int(group) for group in match.groups() if group is not None]
    if min(numbers) <= 0:
        raise ConfigError(f"'{text}' has a zero, expected numbers above 0")
    return numbers


def _short(length: int) -> tuple[str, Part]:
    return f"short{length}", _both(Frame(ShortEdge(length)))


def _crop(width: int, height: int) -> tuple[str, Part]:
    return f"crop{width}x{height}", _both(Frame(crop=(height, width)))


def _fit(*sides: int) -> tuple[str, Part]:
    long, short = max(sides), min(sides)
    return f"fit{long}x{short}", {"image": Frame(Fit(long, short))}


def _scale(factor: float) -> tuple[str, Part]:
    return f"scale{factor:.10g}", {"scales": (float(factor),)}


def _famix(factor: float) -> tuple[str, Part]:
    return f"famix{factor:.10g}", {"scales": (float(factor),), "released": True}


def _famix_ensemble(factor: float) -> tuple[str, Part]:
    return f"famix1+{factor:.10g}", {"scales": (1.0, float(factor)), "released": True, "average": LOGITS}


def _slide(size: int, stride: int | None = None) -> tuple[str, Part]:
    stride = round(size * 2 / 3) if stride is None else stride
    if stride > size:
        raise ConfigError(f"'slide{size}/{stride}' leaves gaps between its windows; expected a step of {size} or less")
    return f"slide{size}/{stride}", {"window": Window(size, stride)}


# Form as it is shown, its pattern, and what its numbers make: pixels, but for the factor F
_FORMS: Sequence[tuple[str, str, Callable[..., tuple[str, Part]]]] = (
    ("short<N>", r"short(\d+)", _short),
    ("crop<W>x<H>", r"crop(\d+)x(\d+)", _crop),
    ("fit<L>x<S>", r"fit(\d+)x(\d+)", _fit),
    ("scale<F>", r"scale(\d+(?:\.\d+)?)", _scale),
    ("famix<F>", r"famix(\d+(?:\.\d+)?)", _famix),
    ("famix1+<F>", r"famix1\+(\d+(?:\.\d+)?)", _famix_ensemble),
    ("slide<N>/<STEP>", r"slide(\d+)(?:/(\d+))?", _slide),
)

PART_FORMS = tuple(form for form, _, _ in _FORMS)
"""Forms of parts with numbers; slide<N> alone steps by two thirds of N."""
