"""Read numbers from MATLAB files (versions 5 to 7), such as the GTA5 split lists.

SciPy's reader crashes in compiled code on hostile files. This one checks every claimed size against the file content.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from famix.io.text_files import require_plain_file
from famix.utils.errors import CorruptFileError

_MAX_BYTES = 16 << 20  # limit for a file and for its uncompressed content; GTA5's file takes 0.2 MB
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC_CLASSES = range(6, 16)  # double to uint64; lower numbers are cells, structures, strings and sparse matrices
_IS_COMPLEX = 0x0800
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_ORDERS = {b"IM": "<", b"MI": ">"}


def read_matlab_arrays(path: Path) -> dict[str, NDArray[np.generic] | None]:
    """Read the arrays in a MATLAB file.

    Returns:
        Mapping from array name to (N,) values in file order. Arrays that do not contain real numbers map to None.

    Raises:
        OSError: the file cannot be read.
        CorruptFileError: the file is damaged or is not a MATLAB file.
    """
    require_plain_file(path, _MAX_BYTES)
    content = path.read_bytes()
    order = _ORDERS.get(content[_HEADER - 2 : _HEADER])
    if order is None:
        raise CorruptFileError("it is not a MATLAB file (versions 5 to 7)")
    arrays, room = {}, _MAX_BYTES
    try:
        for kind, data in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                stream = zlib.decompressobj()
                data = stream.decompress(data, max(1, room))
                if not stream.eof:
                    raise ValueError("a compressed element is truncated or expands beyond any plausible size")
                room -= len(data)
                kind, data = next(_elements(data, order))
            if kind == _MATRIX:
                name, values = _read_matrix(data, order)
                arrays[name] = values
    except (struct.error, zlib.error, ValueError, StopIteration, KeyError, IndexError) as error:
        raise CorruptFileError(f"it is a damaged MATLAB file ({error or type(error).__name__})") from error
    return arrays


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and data of consecutive elements."""
    place = 0
    while place < len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        start = place + 8
        if kind >> 16:  # small element: the upper half of the type is the length, and the data replace the length field
            kind, length, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + length > len(content):
            raise ValueError(f"an element claims {length} bytes, but only {len(content) - start} follow")
        yield kind, content[start : start + length]
        place = start + length
        if kind != _COMPRESSED:
            place += -place % 8


def _read_matrix(data: bytes, order: str) -> tuple[str, NDArray[np.generic] | None]:
    (_, flags), (_, _), (_, name), *parts = list(_elements(data, order))
    described = struct.unpack_from(f"{order}I", flags)[0]
    if described & 0xFF not in _NUMERIC_CLASSES or described & _IS_COMPLEX or len(parts) != 1:
        return name.decode("ascii"), None
    kind, values = parts[0]
    return name.decode("ascii"), np.frombuffer(values, dtype=order + _DTYPES[kind])
