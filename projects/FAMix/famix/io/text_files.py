"""Untrusted text files: bounded size, JSON with finite numbers, and YAML without code or endless aliases."""

import codecs
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from famix.utils.errors import CorruptFileError

try:
    from yaml import CSafeLoader as SafeLoader  # several times faster
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

MAX_JSON_BYTES = 2 << 30
"""Size limit for an annotation file. COCO's panoptic annotations are about a quarter of this size."""

MAX_YAML_BYTES = 1 << 20
"""Size limit for a dataset definition or config. The largest one shipped with FAMix has a few thousand bytes."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_EXPANDED = 4 << 20  # characters and entries after expanding all YAML aliases
_MAX_DEPTH = 100  # libyaml's composer overflows the stack at about ten thousand


def require_plain_file(path: str | os.PathLike[str], max_bytes: float = math.inf) -> None:
    """Raise unless a path points to a regular file, possibly through links. Reading a pipe or a device may never end.

    Raises:
        CorruptFileError: the file is not a regular file or is larger than `max_bytes`.
        OSError: the file is inaccessible.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CorruptFileError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
    if status.st_size > max_bytes:
        raise CorruptFileError(f"it has {status.st_size} bytes, more than the limit of {max_bytes}")


def read_text(path: str | os.PathLike[str], max_bytes: int) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        CorruptFileError: the file is not a regular file, is larger than `max_bytes`, or is encoded as UTF-16.
        OSError: the file cannot be read.
        UnicodeDecodeError: the file is not text.
    """
    require_plain_file(path, max_bytes)
    content = Path(path).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorruptFileError("it is encoded as UTF-16, which some editors use by default; save it as UTF-8")
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], max_bytes: int) -> dict[str, Any]:
    """Read a JSON file that contains an object with finite numbers.

    Raises:
        ValueError: the file does not contain such an object. See also `read_text` and `parse_json`.
        OSError: the file cannot be read.
    """
    content = parse_json(read_text(path, max_bytes), finite=True)
    if not isinstance(content, dict):
        raise CorruptFileError(f"it contains a JSON value of type {type(content).__name__}, expected an object")
    return content


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Parse JSON. With `finite`, reject NaN and infinities, which Python accepts although JSON excludes them.

    Raises:
        CorruptFileError: the text is nested too deeply or contains a non-finite number or an unpaired surrogate.
        ValueError: the text is not JSON.
    """
    try:
        content = json.loads(text, parse_float=_finite, parse_constant=_finite) if finite else json.loads(text)
    except RecursionError as error:
        raise CorruptFileError("its JSON is nested too deeply") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # printing or writing it would fail later
            raise CorruptFileError(
                f"it contains the unpaired surrogate \\u{ord(error.object[error.start]):04x}"
            ) from error
    return content


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise CorruptFileError(f"it contains the non-finite number {number}")
    return value


def read_yaml(path: str | os.PathLike[str], max_bytes: int = MAX_YAML_BYTES) -> Any:
    """Read a YAML file. Raises the errors of `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(path, max_bytes))


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain data.

    Raises:
        CorruptFileError: the text is not valid YAML. See also `check_yaml`.
    """
    try:
        check_yaml(text)
        return yaml.load(text, Loader=SafeLoader)
    except CorruptFileError:
        raise
    except Exception as error:  # YAMLError, or one of PyYAML's errors for malformed dates and numbers
        raise CorruptFileError(f"it is not valid YAML: {yaml_problem(error)}") from error


def yaml_problem(error: Exception) -> str:
    """Return the place of an error in a YAML file, and what was expected or found there, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    problem = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    start = error.context_mark
    return f"{problem} ({error.context} that begins in line {start.line + 1})" if error.context and start else problem


def check_yaml(text: str) -> None:
    """Check the depth of YAML, and its size with all aliases expanded, without building any objects.

    Ten lines of aliases to aliases can represent a billion entries; printing or merging them would exhaust memory.

    Raises:
        CorruptFileError: the text is too deep or too large.
        yaml.YAMLError: the text is not YAML.
    """
    open_nodes: list[tuple[str | None, float]] = []  # (anchor, size so far)
    sizes: dict[str | None, float] = {}  # by anchor
    for event in yaml.parse(text, Loader=SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            sizes[event.anchor] = math.inf  # until it is closed, since an alias to its own parent never ends
            if len(open_nodes) > _MAX_DEPTH:
                raise CorruptFileError("its YAML is nested too deeply")
            continue
        if isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1 + len(event.value)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        else:
            continue
        if size > _MAX_EXPANDED:
            raise CorruptFileError("its YAML aliases expand to an implausible size")
        sizes[anchor] = size
        if open_nodes:
            open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
