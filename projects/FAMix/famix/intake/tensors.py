"""torch's files of tensors: loaded without code, after a look at what they claim."""

from collections.abc import Mapping
from typing import Any, BinaryIO
from zipfile import ZipFile

import torch
from torch import Tensor

from famix.intake.archives import check_zip, is_zip
from famix.intake.doubt import DoubtfulFileError
from famix.intake.pickles import check_pickle

__all__ = ["check_tensors", "load_tensors"]

_PICKLES = 5  # at the start of torch's format before it was a zip archive
_SHARING = 4  # times that the tensors of a file may show the bytes of it
_SMALL = 1 << 20  # bytes that are not worth a refusal


def load_tensors(stream: BinaryIO) -> Any:
    """What torch.save wrote, on the CPU, with checksums compared.

    Args:
        stream: of the file, at its start; it can be rewound.

    Raises:
        DoubtfulFileError: the file is damaged, claims more than it holds, or has tensors other than plain ones.
        Exception: torch's own, of any type, for anything but tensors, numbers, texts and containers of them.
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
    content = torch.load(stream, map_location="cpu", weights_only=True)
    check_tensors(content, size)
    return content


def check_tensors(content: Any, size: int) -> None:
    """Raise unless tensors are plain ones and show no more than a file holds.

    A tensor with a stride of zero, or a sparse one, has any number of elements in a few bytes; the first thing that
    copies it would fill the memory.

    Args:
        content: tensors in dictionaries, lists and tuples.
        size: of their file, in bytes.

    Raises:
        DoubtfulFileError: see above.
    """
    shown, seen, pending = 0, set(), [content]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):  # which counts as often as it is shown
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise DoubtfulFileError("it has sparse, quantised or empty tensors, expected plain ones")
            shown += value.numel() * value.element_size()
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, Mapping) else value)
    if shown > _SHARING * size + _SMALL:
        raise DoubtfulFileError(f"its tensors show {shown} bytes, but the file has {size}")
