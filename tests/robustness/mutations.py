"""Seeded damage: to bytes, to trees of JSON and YAML, and to the parts of files that are made of parts."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Format",
    "Mutation",
    "in_json",
    "in_png",
    "in_safetensors",
    "in_text_lines",
    "in_zip",
    "mutate_bytes",
    "mutate_tree",
]

Mutation = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        make: writes a valid file, and the files that belong to it, to an empty folder.
        load: reads it with the package; its results are comparable.
        mutations: changes that keep the structure of the file, so that they pass the first checks.
        has_checksum: random damage must be detected unless it changes nothing in the result.
        refuses: damage is an error; otherwise the intact parts are read, or the file counts as missing.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], Any]
    mutations: tuple[Mutation, ...] = ()
    has_checksum: bool = False
    refuses: bool = True


_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 256, 65535, 65536, 1 << 24, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", " ", "\0", "../../outside.png", "/etc/passwd", "..", "{key}", "{split}", "$HOME", "~", "\ud800",
    "a" * 5000, [], {}, [[]], {"": None}, [None], [[[[1]]]], {"id": 1}, "1", "ignore", "identity", "2001-99-99", "9" * 5000,
)  # fmt: skip


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes, each anywhere: bits, cuts, insertions, swapped or repeated chunks, huge numbers."""
    for _ in range(int(rng.integers(1, 4))):
        content = _BYTE_CHANGES[int(rng.integers(len(_BYTE_CHANGES)))](content, rng)
    return content


def _span(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(content) + 1))
    return start, min(len(content), start + int(rng.integers(1, 65)))


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(max(1, len(changed)), size=int(rng.integers(1, 9))).tolist() if changed else []:
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def _insert(content: bytes, rng: np.random.Generator) -> bytes:
    start, _ = _span(content, rng)
    return content[:start] + rng.bytes(int(rng.integers(1, 33))) + content[start:]


def _delete(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _swap(content: bytes, rng: np.random.Generator) -> bytes:
    first, second, third = sorted(int(place) for place in rng.integers(len(content) + 1, size=3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * int(rng.integers(1, 9)) + content[end:]


def _number(content: bytes, rng: np.random.Generator) -> bytes:
    start, _ = _span(content, rng)
    width, order = ((4, "<"), (4, ">"), (8, "<"), (8, ">"))[int(rng.integers(4))]
    value = _NUMBERS[int(rng.integers(len(_NUMBERS)))] & ((1 << 8 * width) - 1)
    return content[:start] + struct.pack(order + ("I" if width == 4 else "Q"), value) + content[start + width :]


def _blank(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + bytes([int(rng.choice([0, 255]))]) * (end - start) + content[end:]


_BYTE_CHANGES = (_flip, _flip, _truncate, _insert, _delete, _swap, _repeat, _number, _blank)


def mutate_tree(tree: Any, rng: np.random.Generator) -> Any:
    """A copy of nested dictionaries and lists with one or two entries replaced, left out, moved or renamed."""
    for _ in range(int(rng.choice([1, 1, 1, 2]))):
        tree = _mutate_entry(tree, rng)
    return tree


def _mutate_entry(tree: Any, rng: np.random.Generator) -> Any:
    entries: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        entries = list(tree.items())
    elif isinstance(tree, list):
        entries = list(enumerate(tree))
    if not entries or rng.random() < 0.03:
        return _odd_value(rng)
    key, value = entries[int(rng.integers(len(entries)))]
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        changed: Any = _mutate_entry(value, rng)
    else:
        changed = _odd_value(rng)
    return _with_entry(tree, key, changed, rng)


def _with_entry(tree: Any, key: Any, value: Any, rng: np.random.Generator) -> Any:
    kind = rng.random()
    if isinstance(tree, list):
        rest = [entry for place, entry in enumerate(tree) if place != key]
        return rest if kind < 0.1 else [*rest[:key], *([value] * (2 if kind < 0.2 else 1)), *rest[key:]]
    rest = {name: entry for name, entry in tree.items() if name != key}
    if kind < 0.1:
        return rest
    renamed = str(_odd_value(rng))[:50] if kind < 0.2 else key
    return {**rest, renamed: value}


def _odd_value(rng: np.random.Generator) -> Any:
    return _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]


def in_json(content: bytes, rng: np.random.Generator) -> bytes:
    """A change of what a JSON file says."""
    return json.dumps(mutate_tree(json.loads(content), rng)).encode()


def in_text_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """A list of lines with one to three that are odd, gone or there twice."""
    lines = mutate_tree(content.decode().splitlines(), rng)
    texts = [str(line) for line in (lines if isinstance(lines, list) else [lines])]
    return "\n".join(texts).encode("utf-8", "surrogatepass")


def in_safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Another header of a safetensors file, of the length that it says, with the same data."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(mutate_tree(json.loads(content[8 : 8 + length]), rng)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def in_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """Other bytes in one entry of a zip archive, with the right checksum; in pickles, two times of three."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    pickles = [place for place, (entry, _) in enumerate(entries) if entry.filename.endswith(".pkl")]
    chosen = int(rng.choice(pickles)) if rng.random() < 0.67 else int(rng.integers(len(entries)))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for place, (entry, data) in enumerate(entries):
            archive.writestr(entry.filename, mutate_bytes(data, rng) if place == chosen else data, entry.compress_type)
    return written.getvalue()


def in_png(content: bytes, rng: np.random.Generator) -> bytes:
    """Other bytes in one chunk of a PNG, with the right checksum; of the pixels, before they are compressed."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    chosen = int(rng.integers(len(chunks)))
    kind, data = chunks[chosen]
    if kind == b"IDAT" and rng.random() < 0.7:
        data = zlib.compress(mutate_bytes(zlib.decompress(data), rng))
    else:
        data = mutate_bytes(data, rng)
    chunks[chosen] = (kind, data)
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return content[:8] + b"".join(packed)
