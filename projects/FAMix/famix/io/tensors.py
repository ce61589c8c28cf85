"""Untrusted files of tensors: archives and pickles of torch, whose claims are compared with the size of the file."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from famix.io.pickles import TensorUnpickler
from famix.utils.errors import CorruptFileError
from famix.utils.messages import first_line

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 starts with the pickle of a number
_MAX_CODE_BYTES = 16 << 20  # allowance for code, which torch compresses, unlike tensors and pickles
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # parts of names that torch adds
_MAX_SHARING = 4  # how often tensors may show the bytes of their file
_SMALL = 1 << 20  # bytes that are always allowed


def is_torch_file(path: Path) -> bool:
    """Return whether torch.save has written a file, according to its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_LEGACY)).startswith((_ZIP, _LEGACY))


def load_tensors(stream: BinaryIO) -> Any:
    """Load a seekable file of torch.save on the CPU without executing anything in it.

    Checksums are compared. NumPy numbers become Python's, and NumPy arrays tensors.

    Raises:
        CorruptFileError: the file is damaged or claims more than it contains.
        pickle.UnpicklingError: the file contains objects other than dense tensors and plain data, or is not torch's.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    start = stream.read(len(_LEGACY))
    stream.seek(0)
    try:
        if start.startswith(_ZIP):
            loaded = TensorArchive(stream).unpickle("data")
        elif start == _LEGACY:
            loaded = _load_legacy(stream.read())
        elif not start:
            raise CorruptFileError("it is empty")
        else:
            _refuse_pickle(stream.read(_SMALL))
    except (CorruptFileError, pickle.UnpicklingError):
        raise
    except Exception as error:  # a damaged file raises errors of any type
        raise CorruptFileError(f"it is truncated or damaged: {type(error).__name__}: {first_line(error)}") from error
    check_tensors(loaded, size)
    return loaded


def _refuse_pickle(content: bytes) -> None:
    """Raise the error of a pickle that would run code, or else that the file is not one of torch."""
    try:
        TensorUnpickler(BytesIO(content)).load()
    except (CorruptFileError, pickle.UnpicklingError):
        raise
    except Exception:
        pass
    raise pickle.UnpicklingError("it is not a file of torch.save")


def load_pickled_tensors(stream: BinaryIO) -> Any:
    """Load a file of pickle.dump with tensors in it, as `load_tensors` does.

    Raises:
        Exception: see `load_tensors`; a damaged file raises errors of any type.
    """
    functions = {("torch.storage", "_load_from_bytes"): lambda content: load_tensors(BytesIO(content))}
    return TensorUnpickler(BytesIO(stream.read()), functions=functions).load()


class TensorArchive:
    """A zip archive of torch.save or torch.jit.save; every entry is read with its checksum compared."""

    def __init__(self, stream: BinaryIO) -> None:
        size = stream.seek(0, 2)
        self._zip = zipfile.ZipFile(stream)
        claimed = sum(entry.file_size for entry in self._zip.infolist())
        if claimed > size + _MAX_CODE_BYTES:
            raise CorruptFileError(f"its entries claim {claimed} bytes, but the file has {size}")
        self._folder = self._zip.namelist()[0].split("/")[0]
        if "byteorder" in self and self.read("byteorder") != b"little":
            raise CorruptFileError("its numbers are not little-endian")

    def __contains__(self, name: str) -> bool:
        return f"{self._folder}/{name}" in self._zip.namelist()

    def read(self, name: str) -> bytes:
        """Return the content of an entry, of at most the size that it claims."""
        entry = self._zip.getinfo(f"{self._folder}/{name}")
        is_code = name.startswith("code/")
        if entry.compress_type != zipfile.ZIP_STORED and not (is_code and entry.compress_type == zipfile.ZIP_DEFLATED):
            raise CorruptFileError(f"its entry {name} has a compression that torch does not write")
        with self._zip.open(entry) as file:
            return file.read(entry.file_size)

    def unpickle(self, name: str, unpickler: Callable[..., TensorUnpickler] = TensorUnpickler) -> Any:
        """Unpickle {name}.pkl, with the tensors in the folder {name}."""
        storages: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in storages:
                storages[key] = _flat(self.read(f"{name}/{key}"), dtype)
            return _checked(storages[key], dtype, count)

        return unpickler(BytesIO(self.read(f"{name}.pkl")), storage).load()


def _load_legacy(content: bytes) -> Any:
    """Load the format before zip archives: pickles of three headers, the content and the keys, then the storages."""
    stream, storages, claimed = BytesIO(content), dict[str, Tensor](), 0

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal claimed
        if key not in storages:
            claimed += count * dtype.itemsize
            if count < 0 or claimed > len(content):
                raise CorruptFileError(f"its tensors claim {claimed} bytes, but the file has {len(content)}")
            storages[key] = torch.empty(count, dtype=dtype)
        return _checked(storages[key], dtype, count)

    _, _, system, loaded, keys = (TensorUnpickler(stream, storage).load() for _ in range(5))
    if not system["little_endian"]:
        raise CorruptFileError("its numbers are not little-endian")
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise CorruptFileError("its tensors are incomplete")
    for key in keys:
        count, flat = int.from_bytes(stream.read(8), "little"), storages[key]
        flat.copy_(_checked(_flat(stream.read(flat.nbytes), flat.dtype), flat.dtype, count))
    return loaded


def _flat(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _checked(flat: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    if flat.dtype != dtype or len(flat) != count:
        raise CorruptFileError(f"a tensor has a different size than it claims, {len(flat)} values instead of {count}")
    return flat


def check_tensors(content: Any, size: int) -> None:
    """Raise CorruptFileError if tensors in containers show more bytes than a file of `size` bytes can contain.

    A tensor with a stride of zero has any number of elements in a few bytes; its first copy would fill the memory.
    """
    shown, seen, pending = 0, set(), [content]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):  # counts each time it is shown
            shown += value.numel() * value.element_size()
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, Mapping) else value)
    if shown > _MAX_SHARING * size + _SMALL:
        raise CorruptFileError(f"its tensors show {shown} bytes, but the file has {size}")


def unwrapped_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the names of DataParallel, DistributedDataParallel and torch.compile from a state dict.

    Raises:
        CorruptFileError: two tensors would share a name.
    """
    names = [[part for part in name.split(".") if part not in _WRAPPERS] for name in state]
    while names and all(len(parts) > 1 and parts[0] == "module" for parts in names):
        names = [parts[1:] for parts in names]
    plain = {".".join(parts): value for parts, value in zip(names, state.values(), strict=True)}
    if len(plain) < len(state):
        raise CorruptFileError("it contains the weights of a model twice, with and without the names of wrappers")
    return plain
