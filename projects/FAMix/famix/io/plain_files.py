"""Text files: regular ones of a sensible size, and JSON in them."""

import codecs
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from famix.utils.errors import CorruptFileError

__all__ = ["MAX_JSON_BYTES", "parse_json", "read_json", "read_text", "require_plain_file"]

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

MAX_JSON_BYTES = 2 << 30
"""Of a file of annotations; COCO's panoptic ones have about a quarter of it."""


def require_plain_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Raise unless a path leads to a regular file: reading a pipe may never end, and a device never does.

    Args:
        path: of the file, or of a link to it.
        max_bytes: that it may have; None sets no limit.

    Raises:
        CorruptFileError: it is none, or too large.
        OSError: it is missing or cannot be asked for.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CorruptFileError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise CorruptFileError(f"it has {status.st_size} bytes, more than the {max_bytes} that such a file may have")


def read_text(path: str | os.PathLike[str], max_bytes: int) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        max_bytes: that it may have.

    Raises:
        CorruptFileError: it is no regular file, too large, or in UTF-16.
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    require_plain_file(path, max_bytes)
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise CorruptFileError("it is text in UTF-16, as some editors save it; save it as UTF-8")
    return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: str | os.PathLike[str], max_bytes: int) -> dict[str, Any]:
    """Read a JSON file that holds an object, and finite numbers only.

    Args:
        path: of the file.
        max_bytes: that it may have.

    Raises:
        CorruptFileError: it is no regular file, too large, nested too deeply, holds anything but an object, or NaN,
            infinities or numbers beyond all bounds.
        OSError: it cannot be read.
        ValueError: it is no JSON, or no text.
    """
    content = parse_json(read_text(path, max_bytes), finite=True)
    if not isinstance(content, dict):
        raise CorruptFileError(f"it holds a {type(content).__name__}, expected an object")
    return content


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: of the file.
        finite: refuse NaN and infinities, which Python reads although JSON does not have them.

    Raises:
        CorruptFileError: it is nested too deeply, has a number that is not finite, or half a character.
        ValueError: it is no JSON.
    """
    try:
        content = json.loads(text, parse_float=_finite, parse_constant=_finite) if finite else json.loads(text)
    except RecursionError as error:
        raise CorruptFileError("its JSON is nested too deeply") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # what shows or writes it would fail later
            raise CorruptFileError(f"it holds half a character, \\u{ord(error.object[error.start]):04x}") from error
    return content


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise CorruptFileError(f"it holds the number {number}, expected finite ones")
    return value
