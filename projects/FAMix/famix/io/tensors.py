"""torch's files of tensors: loaded without code, after a look at what they claim."""

import pickle
import re
from collections.abc import Mapping
from typing import Any, BinaryIO
from zipfile import ZipFile

import torch
from torch import Tensor

from famix.io.archives import check_zip, is_zip
from famix.io.numpy_values import NUMPY_GLOBALS, without_numpy
from famix.io.pickles import check_pickle
from famix.utils.errors import CorruptFileError

__all__ = ["check_tensors", "load_tensors", "unwrapped_names"]

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # parts of names that torch adds
_PICKLES = 5  # at the start of torch's format before it was a zip archive
_SHARING = 4  # times that the tensors of a file may show the bytes of it
_SMALL = 1 << 20  # bytes that are not worth a refusal


def load_tensors(stream: BinaryIO) -> Any:
    """What torch.save wrote, on the CPU, with checksums compared; NumPy's numbers become Python's, its arrays tensors.

    Args:
        stream: of the file, at its start; it can be rewound.

    Raises:
        CorruptFileError: the file is damaged, claims more than it holds, or has tensors other than plain ones.
        pickle.UnpicklingError: it holds anything but tensors, numbers, texts and containers of them, or is none of
            torch's files.
        Exception: torch's own, of any type, of a damaged file.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    if is_zip(stream):
        check_zip(stream)
        with ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.filename.lower().endswith(".pkl"):
                    with archive.open(entry) as pickle:
                        check_pickle(pickle)  # type: ignore[arg-type]  # IO[bytes], which has all that is needed
    else:
        for _ in range(_PICKLES):
            if not check_pickle(stream):
                break
    stream.seek(0)
    try:
        with torch.serialization.safe_globals(NUMPY_GLOBALS):
            content = without_numpy(torch.load(stream, map_location="cpu", weights_only=True))
    except Exception as error:
        raise _without_advice(error) from error
    check_tensors(content, size)
    return content


def _without_advice(error: Exception) -> Exception:
    """An error of torch without its advice on how to read a file unsafely, which must not reach a user."""
    text = str(error)
    called = re.search(r"GLOBAL:? ([\w.]+)|Unsupported class ([\w.]+)", text)
    if called:
        return pickle.UnpicklingError(f"it calls for GLOBAL {called[1] or called[2]} (nothing was executed)")
    if "TorchScript" in text:
        return pickle.UnpicklingError("it is a TorchScript archive, not a checkpoint")
    if isinstance(error, pickle.UnpicklingError):
        return pickle.UnpicklingError("it is no file that torch wrote")
    if isinstance(error, KeyError | EOFError) or "weights_only" in text:
        return CorruptFileError("it is empty, cut off or no file that torch wrote")
    return error


def check_tensors(content: Any, size: int) -> None:
    """Raise unless tensors are plain ones and show no more than a file holds.

    A tensor with a stride of zero, or a sparse one, has any number of elements in a few bytes; the first thing that
    copies it would fill the memory.

    Args:
        content: tensors in dictionaries, lists and tuples.
        size: of their file, in bytes.

    Raises:
        CorruptFileError: see above.
    """
    shown, seen, pending = 0, set(), [content]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):  # which counts as often as it is shown
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise CorruptFileError("it has sparse, quantised or empty tensors, expected plain ones")
            shown += value.numel() * value.element_size()
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, Mapping) else value)
    if shown > _SHARING * size + _SMALL:
        raise CorruptFileError(f"its tensors show {shown} bytes, but the file has {size}")


def unwrapped_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict under the names of the model itself, without those of what it was wrapped in when it was saved.

    Args:
        state: of a model, perhaps in DataParallel, DistributedDataParallel or torch.compile, or with such parts.

    Raises:
        CorruptFileError: two tensors would have one name.
    """
    names = [[part for part in name.split(".") if part not in _WRAPPERS] for name in state]
    while names and all(len(parts) > 1 and parts[0] == "module" for parts in names):
        names = [parts[1:] for parts in names]
    plain = {".".join(parts): value for parts, value in zip(names, state.values(), strict=True)}
    if len(plain) < len(state):
        raise CorruptFileError("it holds weights of a model twice, with and without the names of wrappers")
    return plain
