"""Text files: regular ones of a sensible size, and JSON in them."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from famix.intake.doubt import DoubtfulFileError

__all__ = ["MAX_JSON_BYTES", "parse_json", "read_text", "require_plain_file"]

MAX_JSON_BYTES = 2 << 30
"""Of a file of annotations; COCO's panoptic ones have about a quarter of it."""


def require_plain_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Raise unless a path leads to a regular file: reading a pipe may never end, and a device never does.

    Args:
        path: of the file, or of a link to it.
        max_bytes: that it may have; None sets no limit.

    Raises:
        DoubtfulFileError: it is none, or too large.
        OSError: it is missing or cannot be asked for.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DoubtfulFileError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise DoubtfulFileError(f"it has {status.st_size} bytes, more than the {max_bytes} that such a file may have")


def read_text(path: str | os.PathLike[str], max_bytes: int) -> str:
    """Read a text file in UTF-8.

    Args:
        path: of the file.
        max_bytes: that it may have.

    Raises:
        DoubtfulFileError: it is no regular file, or too large.
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    require_plain_file(path, max_bytes)
    return Path(path).read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        DoubtfulFileError: it is nested too deeply.
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DoubtfulFileError("its JSON is nested too deeply") from error
