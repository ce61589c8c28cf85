"""Seeded damage to bytes, to trees of JSON and YAML, and to the parts of structured files."""

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
import yaml

Mutation = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    make: Callable[[Path], Path]  # writes a valid file, and the files that belong to it, to an empty folder
    load: Callable[[Path], Any]  # reads it with the package; results are comparable
    mutations: tuple[Mutation, ...] = ()  # keep the structure of the file, so that they pass the first checks
    has_checksum: bool = False  # random damage must be detected unless it changes nothing in the result
    refuses: bool = True  # damage is an error; otherwise intact parts are read, or the file counts as missing


_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 256, 65535, 65536, 1 << 24, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", " ", "\0", "../../outside.png", "/etc/passwd", "..", "{key}", "{split}", "$HOME", "~", "\ud800",
    "a" * 5000, [], {}, [[]], {"": None}, [None], [[[[1]]]], {"id": 1}, "1", "ignore", "identity", "2001-99-99", "9" * 5000,
)  # fmt: skip


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Make one to three changes: bits, cuts, insertions, swapped or repeated chunks, huge numbers."""
    for _ in range(int(rng.integers(1, 4))):
        start, middle, end = sorted(rng.integers(len(content) + 1, size=3).tolist())
        place = int(rng.integers(len(content) + 1))
        before, chunk, after = np.split(np.frombuffer(content, np.uint8), [place, place + int(rng.integers(1, 65))])
        before, chunk, after = before.tobytes(), chunk.tobytes(), after.tobytes()
        match int(rng.integers(9)):
            case 0 | 1:
                bits = np.unpackbits(np.frombuffer(content, np.uint8))
                bits[rng.integers(max(1, len(bits)), size=int(rng.integers(1, 9)) if content else 0)] ^= 1
                content = np.packbits(bits).tobytes()
            case 2:
                content = before
            case 3:
                content = before + rng.bytes(int(rng.integers(1, 33))) + chunk + after
            case 4:
                content = before + after
            case 5:
                content = content[:start] + content[middle:end] + content[start:middle] + content[end:]
            case 6:
                content = before + chunk * int(rng.integers(2, 10)) + after
            case 7:
                width = int(rng.choice([4, 8]))
                number = int(rng.choice(_NUMBERS)) & ((1 << 8 * width) - 1)
                written = number.to_bytes(width, "little" if rng.random() < 0.5 else "big")
                content = before + written + (chunk + after)[len(written) :]
            case 8:
                content = before + bytes([int(rng.choice([0, 255]))]) * len(chunk) + after
    return content


def mutate_tree(tree: Any, rng: np.random.Generator) -> Any:
    """Copy nested dictionaries and lists with one or two entries replaced, left out, repeated or renamed."""
    for _ in range(int(rng.choice([1, 1, 1, 2]))):
        tree = _mutate_entry(tree, rng)
    return tree


def _mutate_entry(tree: Any, rng: np.random.Generator) -> Any:
    odd = _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.03:
        return odd
    entries = list(tree.items()) if isinstance(tree, dict) else [(None, value) for value in tree]
    place = int(rng.integers(len(entries)))
    key, value = entries[place]
    changed = _mutate_entry(value, rng) if isinstance(value, dict | list) and rng.random() < 0.8 else odd
    kind = rng.random()
    if kind < 0.1:
        entries[place : place + 1] = []
    elif kind < 0.2:
        entries[place : place + 1] = [(str(odd)[:50], changed)] * 2
    else:
        entries[place] = key, changed
    return dict(entries) if isinstance(tree, dict) else [value for _, value in entries]


def in_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the content of a JSON file."""
    return json.dumps(mutate_tree(json.loads(content), rng)).encode()


def in_yaml(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the content of a YAML file."""
    return yaml.safe_dump(mutate_tree(yaml.safe_load(content), rng)).encode("utf-8", "surrogatepass")


def in_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the lines of a text file."""
    lines = mutate_tree(content.decode().splitlines(), rng)
    texts = [str(line) for line in (lines if isinstance(lines, list) else [lines])]
    return "\n".join(texts).encode("utf-8", "surrogatepass")


def in_last_line(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the last of several lines of JSON."""
    *before, last = content.splitlines(keepends=True)
    return b"".join(before) + in_json(last, rng)


def in_safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the header of a safetensors file, with its right length and the same data."""
    length = struct.unpack("<Q", content[:8])[0]
    header = in_json(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def in_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """Change one entry of a zip archive, with the right checksum; two times of three a pickle."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    pickles = [place for place, (entry, _) in enumerate(entries) if entry.filename.endswith(".pkl")]
    chosen = int(rng.choice(pickles)) if rng.random() < 0.67 else int(rng.integers(len(entries)))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for place, (entry, data) in enumerate(entries):
            archive.writestr(entry.filename, mutate_bytes(data, rng) if place == chosen else data, entry.compress_type)
    return written.getvalue()


def make_png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of the given chunks with right checksums."""
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def in_png(content: bytes, rng: np.random.Generator) -> bytes:
    """Change one chunk of a PNG, with the right checksum; pixels usually before they are compressed."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    chosen = int(rng.integers(len(chunks)))
    kind, data = chunks[chosen]
    is_pixels = kind == b"IDAT" and rng.random() < 0.7
    data = mutate_bytes(zlib.decompress(data) if is_pixels else data, rng)
    chunks[chosen] = (kind, zlib.compress(data) if is_pixels else data)
    return make_png(*chunks)
