"""Readers for untrusted torch archives and pickles, which check claimed sizes against the file size."""

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
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # files of torch.save before 1.6 start with a pickled number
_MAX_CODE_BYTES = 16 << 20  # allowance for code, the only entries that torch compresses
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # name components that torch adds
_MAX_SHARING = 4  # how many times tensors may share the bytes of their file
_SMALL = 1 << 20  # number of bytes that is always allowed


def is_torch_file(path: Path) -> bool:
    """Return whether the first bytes of a file match the torch.save format."""
    with path.open("rb") as file:
        return file.read(len(_LEGACY)).startswith((_ZIP, _LEGACY))


def load_tensors(stream: BinaryIO) -> Any:
    """Load a seekable file written by torch.save onto the CPU, without executing anything in it.

    Checksums are verified. NumPy numbers become Python numbers, and NumPy arrays become tensors.

    Raises:
        CorruptFileError: the file is damaged or claims more than it contains.
        pickle.UnpicklingError: the file contains objects other than dense tensors and plain data, or was not written by
            torch.
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
    except Exception as error:  # a damaged file can raise any exception
        raise CorruptFileError(f"it is truncated or damaged: {type(error).__name__}: {first_line(error)}") from error
    check_tensors(loaded, size)
    return loaded


def _refuse_pickle(content: bytes) -> None:
    """Reject a file without a torch header. If it is a pickle that would run code, the error says so."""
    try:
        TensorUnpickler(BytesIO(content)).load()
    except (CorruptFileError, pickle.UnpicklingError):
        raise
    except Exception:
        pass
    raise pickle.UnpicklingError("it was not written by torch.save")


def load_pickled_tensors(stream: BinaryIO) -> Any:
    """Load tensors from a file written by pickle.dump, as safely as `load_tensors`.

    Raises:
        Exception: see `load_tensors`. A damaged file can raise any exception.
    """
    functions = {("torch.storage", "_load_from_bytes"): lambda content: load_tensors(BytesIO(content))}
    return TensorUnpickler(BytesIO(stream.read()), functions=functions).load()


class TensorArchive:
    """A zip archive written by torch.save or torch.jit.save. The checksum of every entry is verified."""

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
        """Return the content of an entry, limited to its claimed size."""
        entry = self._zip.getinfo(f"{self._folder}/{name}")
        is_code = name.startswith("code/")
        if entry.compress_type != zipfile.ZIP_STORED and not (is_code and entry.compress_type == zipfile.ZIP_DEFLATED):
            raise CorruptFileError(f"its entry '{name}' uses a compression that torch does not write")
        with self._zip.open(entry) as file:
            return file.read(entry.file_size)

    def unpickle(self, name: str, unpickler: Callable[..., TensorUnpickler] = TensorUnpickler) -> Any:
        """Unpickle {name}.pkl, whose tensors are in the folder {name}."""
        storages: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in storages:
                storages[key] = _flat(self.read(f"{name}/{key}"), dtype)
            return _checked(storages[key], dtype, count)

        return unpickler(BytesIO(self.read(f"{name}.pkl")), storage).load()


def _load_legacy(content: bytes) -> Any:
    """Load the format that preceded zip archives: three pickled headers, the pickled content and keys, then the storages."""
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
        raise CorruptFileError(
            f"a tensor claims {count} values of {dtype}, but its storage has {len(flat)} of {flat.dtype}"
        )
    return flat


def check_tensors(content: Any, size: int) -> None:
    """Raise CorruptFileError if tensors in containers claim more bytes than a file of `size` bytes can contain.

    A tensor with a stride of zero can have any number of elements in a few bytes; copying it would exhaust memory.
    """
    shown, seen, pending = 0, set(), [content]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):  # counted at every occurrence
            shown += value.numel() * value.element_size()
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, Mapping) else value)
    if shown > _MAX_SHARING * size + _SMALL:
        raise CorruptFileError(f"its tensors claim {shown} bytes in total, but the file has {size}")


def unwrapped_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DataParallel, DistributedDataParallel and torch.compile from the names in a state dict.

    Raises:
        CorruptFileError: two tensors would have the same name.
    """
    names = [[part for part in name.split(".") if part not in _WRAPPERS] for name in state]
    while names and all(len(parts) > 1 and parts[0] == "module" for parts in names):
        names = [parts[1:] for parts in names]
    plain = {".".join(parts): value for parts, value in zip(names, state.values(), strict=True)}
    if len(plain) < len(state):
        raise CorruptFileError("it contains the model weights twice, with and without wrapper prefixes")
    return plain
