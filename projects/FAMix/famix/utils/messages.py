"""Pieces of messages and tables that several modules share."""

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["did_you_mean", "first_few", "first_line", "shown", "table_cell"]

_LONGEST = 300  # characters of a value in a message


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Suggest what was probably meant.

    Args:
        word: what was written; anything that is no string gets no suggestion.
        known: what could have been written.

    Returns:
        " Did you mean 'a' or 'b'?" with a leading blank, or "" when nothing is close.
    """
    if not isinstance(word, str):
        return ""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.7)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def shown(value: object) -> str:
    """A value as a message quotes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def first_few(items: Sequence[object], limit: int = 3) -> str:
    """Name the first items of a sequence and how many more there are: "a, b, c and 7 more"."""
    named = ", ".join(str(item) for item in items[:limit])
    return named if len(items) <= limit else f"{named} and {len(items) - limit} more"


def table_cell(text: str) -> str:
    """A text as a cell of a Markdown table: on one line, with the marks escaped that would end the cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
