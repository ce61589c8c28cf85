"""Untrusted files of tensors: read with torch's safe loader, after their claims have been checked.

Programs save an np.float64 such as the best score beside the weights, which torch's safe loader refuses. Substitutes read
NumPy's numbers and arrays without NumPy's unpickling, which would allocate any size that a pickle claims.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from famix.io.pickles import check_pickle
from famix.utils.errors import CorruptFileError

__all__ = ["check_tensors", "check_zip", "load_tensors", "unwrapped_names"]

_ZIP_MAGIC = b"PK\x03\x04"
_MAX_CODE_BYTES = 64 << 20  # allowance for compressed entries: torch compresses code, never tensors
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # parts of names that torch adds
_PICKLES = 5  # at the start of torch's format before it was a zip archive
_MAX_SHARING = 4  # how often tensors may show the bytes of their file
_SMALL = 1 << 20  # bytes that are always allowed
_MAX_DEPTH = 100  # of nested containers
_NUMPY_KINDS = re.compile(r"[<>=|]?(b1|\?|[iu][1248]|f[248]|c8|c16|U\d{1,6})")


def load_tensors(stream: BinaryIO) -> Any:
    """Load a file of torch.save on the CPU, with checksums compared; NumPy numbers become Python's, arrays tensors.

    Args:
        stream: the file, seekable and at its start.

    Raises:
        CorruptFileError: the file is damaged, claims more than it holds, or holds tensors that are not dense.
        pickle.UnpicklingError: the file holds objects other than tensors, numbers, texts and containers, or is not
            torch's.
        Exception: torch's errors of other types for a damaged file.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    start = stream.read(len(_ZIP_MAGIC))
    stream.seek(0)
    if start == _ZIP_MAGIC:  # torch tells its two formats apart in the same way
        check_zip(stream)
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.filename.lower().endswith(".pkl"):
                    with archive.open(entry) as content:
                        check_pickle(content)  # type: ignore[arg-type]  # IO[bytes] has all that is needed
    else:
        for _ in range(_PICKLES):
            if not check_pickle(stream):
                break
    stream.seek(0)
    try:
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            loaded = _without_numpy(torch.load(stream, map_location="cpu", weights_only=True), {}, 0)
    except Exception as error:
        raise _without_advice(error) from error
    check_tensors(loaded, size)
    return loaded


def _without_advice(error: Exception) -> Exception:
    """Replace an error of torch that advises to read the file unsafely."""
    text = str(error)
    called = re.search(r"GLOBAL:? ([\w.]+)|Unsupported class ([\w.]+)", text)
    if called:
        return pickle.UnpicklingError(f"it calls for GLOBAL {called[1] or called[2]} (nothing was executed)")
    if "TorchScript" in text:
        return pickle.UnpicklingError("it is a TorchScript archive, not a checkpoint")
    if isinstance(error, pickle.UnpicklingError):
        return pickle.UnpicklingError("it is not a file of torch")
    if isinstance(error, KeyError | EOFError) or "weights_only" in text:
        return CorruptFileError("it is empty, truncated or not a file of torch")
    return error


def check_zip(stream: BinaryIO) -> None:
    """Raise unless a zip archive holds what it claims and every checksum is right; rewinds the file.

    torch compares no checksums, so that a flipped bit would become a weight.

    Args:
        stream: the archive.

    Raises:
        CorruptFileError: entries claim more than the file holds, share a name, or have another compression or checksum.
    """
    size = stream.seek(0, 2)
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries)
            if claimed > size + _MAX_CODE_BYTES:
                raise CorruptFileError(f"its entries claim {claimed} bytes, but the file has {size}")
            if len({entry.filename.lower() for entry in entries}) < len(entries):  # readers differ in their choice
                raise CorruptFileError("two of its entries share a name")
            if any(entry.compress_type not in _METHODS for entry in entries):
                raise CorruptFileError("it has a compression that torch does not write")
            damaged = archive.testzip()
    except CorruptFileError:
        raise
    except Exception as error:  # zipfile raises another type for every kind of damage
        raise CorruptFileError(f"it is a damaged archive: {str(error) or type(error).__name__}") from error
    if damaged is not None:
        raise CorruptFileError(f"its entry {damaged} has a wrong checksum")
    stream.seek(0)


def check_tensors(content: Any, size: int) -> None:
    """Raise unless tensors are dense and show no more bytes than their file holds.

    A tensor with a stride of zero, or a sparse one, has any number of elements in a few bytes; its first copy would fill
    the memory.

    Args:
        content: tensors in dictionaries, lists and tuples.
        size: size of the file in bytes.

    Raises:
        CorruptFileError: see above.
    """
    shown, seen, pending = 0, set(), [content]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):  # counts each time it is shown
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise CorruptFileError("it has sparse, quantized or empty tensors, expected dense ones")
            shown += value.numel() * value.element_size()
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, Mapping) else value)
    if shown > _MAX_SHARING * size + _SMALL:
        raise CorruptFileError(f"its tensors show {shown} bytes, but the file has {size}")


def unwrapped_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict that was saved from a wrapped model.

    Args:
        state: state dict of a model that was perhaps wrapped, in whole or in part, by DataParallel,
            DistributedDataParallel or torch.compile.

    Raises:
        CorruptFileError: two tensors would share a name.
    """
    names = [[part for part in name.split(".") if part not in _WRAPPERS] for name in state]
    while names and all(len(parts) > 1 and parts[0] == "module" for parts in names):
        names = [parts[1:] for parts in names]
    plain = {".".join(parts): value for parts, value in zip(names, state.values(), strict=True)}
    if len(plain) < len(state):
        raise CorruptFileError("it holds the weights of a model twice, with and without the names of wrappers")
    return plain


class _NumpyType:
    """Substitute for np.dtype."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not _NUMPY_KINDS.fullmatch(name):
            raise CorruptFileError(f"it holds a NumPy value of type {name!r}, expected numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Restore the byte order."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _NumpyArray:
    """Substitute for an array; `tensor` is None until the pickle has set its content."""

    tensor: Tensor | list[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Restore shape, type, order and bytes."""
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _NumpyType) or not isinstance(content, bytes):
            raise CorruptFileError("it holds a NumPy array of objects, expected numbers")
        array = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if is_fortran else "C")
        native = array.astype(kind.dtype.newbyteorder("="))
        self.tensor = native.tolist() if native.dtype.kind == "U" else torch.from_numpy(native.copy(order="C"))


def _new_array(*_: object) -> _NumpyArray:
    """Substitute for NumPy's function that begins an array."""
    return _NumpyArray()


def _number(kind: _NumpyType, content: bytes) -> Any:
    """Substitute for NumPy's constructor of numbers."""
    if not isinstance(content, bytes) or len(content) != kind.dtype.itemsize:
        raise CorruptFileError("it holds a NumPy number without its bytes")
    return np.frombuffer(content, kind.dtype)[0].item()


def _no_bytes(*arguments: object) -> bytes:
    """Substitute for bytes(), which writes empty arrays but would allocate any size."""
    if arguments:
        raise CorruptFileError("it asks for bytes that it does not hold")
    return b""


_NUMPY_GLOBALS: list[Any] = [
    (_no_bytes, "builtins.bytes"),
    (_NumpyType, "numpy.dtype"),
    (_NumpyArray, "numpy.ndarray"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before and since NumPy 2
    *((_new_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def _without_numpy(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Replace substitutes of arrays in dictionaries, lists and tuples, the first two in place."""
    if isinstance(value, _NumpyArray):
        if value.tensor is None:
            raise CorruptFileError("it holds a NumPy array without its bytes")
        return value.tensor
    if isinstance(value, _NumpyType) or not isinstance(value, dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)]
    if depth > _MAX_DEPTH:
        raise CorruptFileError("its containers are nested too deeply")
    done[id(value)] = value
    if isinstance(value, tuple):
        entries = [_without_numpy(entry, done, depth + 1) for entry in value]
        if any(new is not old for new, old in zip(entries, value, strict=True)):
            done[id(value)] = tuple(entries)
        return done[id(value)]
    for key, entry in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = _without_numpy(entry, done, depth + 1)
    return value
