"""NumPy's numbers and arrays in files of torch, read without NumPy's own unpickling.

Programs save an np.float64 such as the best score beside the weights, which torch's safe loader refuses. NumPy's
functions would build what a pickle claims; those here take bytes that are there, as numbers, and nothing else.
"""

import re
from typing import Any

import numpy as np
import torch

from famix.utils.errors import CorruptFileError

__all__ = ["NUMPY_GLOBALS", "without_numpy"]

_KINDS = re.compile(r"[<>=|]?(b1|\?|[iu][1248]|f[248]|c8|c16|U\d{1,6})")
_MAX_DEPTH = 100  # of containers in each other


class _Type:
    """In the place of np.dtype."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not _KINDS.fullmatch(name):
            raise CorruptFileError(f"it holds a NumPy value of type {name!r}, expected numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order, all that pickles add to the name."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In the place of an array, until it is complete."""

    tensor: torch.Tensor | list[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take shape, type, order and bytes."""
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise CorruptFileError("it holds a NumPy array of objects, expected numbers")
        array = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if is_fortran else "C")
        native = array.astype(kind.dtype.newbyteorder("="))
        self.tensor = native.tolist() if native.dtype.kind == "U" else torch.from_numpy(native.copy(order="C"))


def _new_array(*_: object) -> _Array:
    """In the place of the function by which pickles of arrays begin."""
    return _Array()


def _number(kind: _Type, content: bytes) -> Any:
    """In the place of the function that pickles of numbers call."""
    if not isinstance(content, bytes) or len(content) != kind.dtype.itemsize:
        raise CorruptFileError("it holds a NumPy number whose bytes are not there")
    return np.frombuffer(content, kind.dtype)[0].item()


def _no_bytes(*arguments: object) -> bytes:
    """In the place of bytes, by which pickles write those of an empty array, and could ask for any number."""
    if arguments:
        raise CorruptFileError("it asks for bytes that it does not hold")
    return b""


NUMPY_GLOBALS: list[Any] = [
    (_no_bytes, "builtins.bytes"),
    (_Type, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before and since NumPy 2
    *((_new_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""For torch.serialization.safe_globals: what stands in for NumPy. Numbers become Python's."""


def without_numpy(value: Any) -> Any:
    """Turn arrays in dictionaries, lists and tuples into tensors, those of texts into lists.

    Args:
        value: what torch loaded with `NUMPY_GLOBALS`; its dictionaries and lists are changed in place.

    Raises:
        CorruptFileError: an array is not complete, or containers are nested too deeply.
    """
    return _convert(value, {}, 0)


def _convert(value: Any, done: dict[int, Any], depth: int) -> Any:
    if isinstance(value, _Array):
        if value.tensor is None:
            raise CorruptFileError("it holds a NumPy array whose bytes are not there")
        return value.tensor
    if isinstance(value, _Type) or not isinstance(value, dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)]
    if depth > _MAX_DEPTH:
        raise CorruptFileError("its containers are nested too deeply")
    done[id(value)] = value
    if isinstance(value, tuple):
        entries = [_convert(entry, done, depth + 1) for entry in value]
        if any(new is not old for new, old in zip(entries, value, strict=True)):
            done[id(value)] = tuple(entries)
        return done[id(value)]
    for key, entry in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = _convert(entry, done, depth + 1)
    return value
