"""Match errors by the config key, the value and the remedy, so that their wording can change."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from famix.utils.errors import FAMixError


@contextmanager
def expect_error(
    error: type[FAMixError] | tuple[type[FAMixError], ...], key: str, value: object = None, remedy: str = ""
) -> Iterator[pytest.ExceptionInfo[FAMixError]]:
    """Check that a block raises an error with a key, a value and a remedy.

    Args:
        error: type or types of the error.
        key: config key, argument, path or name.
        value: invalid value; None for an error without one.
        remedy: token of the remedy, such as an option, a config key or a command; "" for none.
    """
    with pytest.raises(error) as caught:
        yield caught
    explains(str(caught.value), key, value, remedy)


def explains(text: str, key: str, value: object = None, remedy: str = "") -> None:
    """Check that a message names key, value (as `str` or `repr`) and, after the key, the remedy as whole words."""
    place = _find(key, text)
    assert place is not None, f"{key!r} is not named in: {text}"
    if value is not None:
        assert any(_find(form, text) for form in (str(value), repr(value))), f"{value!r} is not quoted in: {text}"
    if remedy:
        assert _find(remedy, text[place.end() :]), f"the remedy {remedy!r} does not follow {key!r} in: {text}"


def line_of_mistake(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], object], *words: object) -> str:
    """Run a program that must exit with status 2 and one line on stderr, and return the line."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("error: "), (status, out, err)
    return err


def error_line(captured: pytest.CaptureFixture[str]) -> str:
    """Return the only line of a command's output that begins with "error: "; fail on a traceback."""
    output = captured.readouterr()
    lines = [line for line in (output.out + output.err).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in output.out + output.err, lines
    return lines[0]


def _find(token: str, text: str) -> "re.Match[str] | None":
    """Find a token that is not part of a longer word, key or number."""
    start = r"(?<![\w.])" if re.match(r"\w", token) else ""
    end = r"(?![\w]|\.\w)" if re.search(r"\w$", token) else ""
    return re.search(f"{start}{re.escape(token)}{end}", text)
