"""YAML that would unfold to far more than the file holds, or that is nested too deeply, found before it is built."""

import os
from collections.abc import Iterator
from typing import Any

import yaml

from famix.io.plain_files import read_text
from famix.utils.errors import CorruptFileError

try:
    from yaml import CSafeLoader as SafeLoader  # several times as fast
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

__all__ = ["MAX_YAML_BYTES", "check_yaml", "parse_yaml", "read_yaml"]

MAX_YAML_BYTES = 1 << 20
"""Of a definition or a config; the largest one that comes with the package has a few thousand."""

_MAX_UNFOLDED = 4 << 20  # characters and entries with all aliases written out
_MAX_DEPTH = 100  # libyaml's composer overflows the stack at some ten thousand


def check_yaml(text: str) -> None:
    """Raise unless YAML has a sensible depth, and a sensible size also when all its aliases are written out.

    Nothing is built: ten lines of aliases to aliases stand for a billion entries, and whatever shows or merges them
    fills the memory.

    Raises:
        CorruptFileError: it has not, or an alias stands for what it is part of.
        yaml.YAMLError: it is no YAML.
    """
    if any(size > _MAX_UNFOLDED for size in _sizes(text)):
        raise CorruptFileError("its YAML aliases unfold to more than any such file needs")


def read_yaml(path: str | os.PathLike[str], max_bytes: int = MAX_YAML_BYTES) -> Any:
    """Read a YAML file: mappings, lists, texts, numbers, booleans, dates or None.

    Raises:
        CorruptFileError: it is no regular file, too large, no YAML, see `check_yaml`, or has values that are none.
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
    """
    return parse_yaml(read_text(path, max_bytes))


def parse_yaml(text: str) -> Any:
    """Parse YAML, see `read_yaml`."""
    try:
        check_yaml(text)
        return yaml.load(text, Loader=SafeLoader)
    except CorruptFileError:
        raise
    except Exception as error:  # YAMLError, and what PyYAML raises of dates and numbers that are none
        raise CorruptFileError(f"it is no valid YAML: {' '.join(str(error).split())}") from error


def _sizes(text: str) -> Iterator[int]:
    """Sizes of all nodes, from the inside out."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and size so far
    anchors: dict[str | None, int | None] = {}  # None while a node is open
    for event in yaml.parse(text, Loader=SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > _MAX_DEPTH:
                raise CorruptFileError("its YAML is nested too deeply")
            if event.anchor is not None:
                anchors[event.anchor] = None
            continue
        if isinstance(event, yaml.AliasEvent):
            known = anchors.get(event.anchor, 1)
            if known is None:
                raise CorruptFileError("a YAML alias stands for what it is part of")
            anchor, size = None, known
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1 + len(event.value)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        else:
            continue
        if anchor is not None:
            anchors[anchor] = size
        if open_nodes:
            open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
        yield size
