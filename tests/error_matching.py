"""Matches errors by what a user needs from them: the config key, the value, and the remedy. Sentences are free to change."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from famix.utils.errors import FAMixError

__all__ = ["error_line", "expect_error", "explains", "line_of_mistake"]


@contextmanager
def expect_error(
    error: type[FAMixError] | tuple[type[FAMixError], ...], key: str, value: object = None, remedy: str = ""
) -> Iterator[pytest.ExceptionInfo[FAMixError]]:
    """Check that a block raises an error that explains itself.

    Args:
        error: type or types of the error.
        key: config key, argument, path or name that the error is about.
        value: what was got; None for an error without one.
        remedy: a token of the remedy, such as an option, a config key or a command; "" for none.
    """
    with pytest.raises(error) as caught:
        yield caught
    explains(str(caught.value), key, value, remedy)


def explains(text: str, key: str, value: object = None, remedy: str = "") -> None:
    """Check that a message, or a line of a command's output, names key, value and remedy as whole words.

    Args:
        text: the message.
        key: see `expect_error`.
        value: matches as `str` or `repr` writes it.
        remedy: must stand behind the key.
    """
    place = _find(key, text)
    assert place is not None, f"{key!r} is not named in: {text}"
    if value is not None:
        assert any(_find(form, text) for form in (str(value), repr(value))), f"{value!r} is not quoted in: {text}"
    if remedy:
        assert _find(remedy, text[place.end() :]), f"the remedy {remedy!r} does not follow {key!r} in: {text}"


def line_of_mistake(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], object], *words: object) -> str:
    """Run a program that must end with exit status 2 and one line on stderr, which is returned."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("error: "), (status, out, err)
    return err


def error_line(captured: pytest.CaptureFixture[str]) -> str:
    """The only line of a command's output that begins with "error: "; fails on a traceback."""
    output = captured.readouterr()
    lines = [line for line in (output.out + output.err).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in output.out + output.err, lines
    return lines[0]


def _find(token: str, text: str) -> "re.Match[str] | None":
    """A token that is not a part of a longer word, key or number."""
    start = r"(?<![\w.])" if re.match(r"\w", token) else ""
    end = r"(?![\w]|\.\w)" if re.search(r"\w$", token) else ""
    return re.search(f"{start}{re.escape(token)}{end}", text)
