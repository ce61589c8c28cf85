"""Helpers for messages and tables."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

_LONGEST = 300  # maximum length of a value in a message


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" with the known words similar to a string, or "" if there are none."""
    if not isinstance(word, str):
        return ""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.7)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def shown(value: object) -> str:
    """Return the repr of a value for a message, truncated if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers with thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def first_few(items: Sequence[object], limit: int = 3) -> str:
    """Return the first items of a sequence and the number of the rest, e.g. "a, b, c and 7 more"."""
    named = ", ".join(str(item) for item in items[:limit])
    return named if len(items) <= limit else f"{named} and {len(items) - limit} more"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, e.g. "1 class" or "3 classes"."""
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def table_cell(text: str) -> str:
    """Format text for a Markdown table cell, on one line and with vertical bars escaped."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def file_size(path: Path) -> str:
    """Return the size of a file in MiB or, below 1 MiB, in KiB, e.g. "12.3 MiB"."""
    size = path.stat().st_size
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
