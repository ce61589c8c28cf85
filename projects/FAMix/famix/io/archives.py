"""Zip archives, the form of torch's files: what the entries claim, and whether they are what was written."""

import zipfile
from typing import BinaryIO

from famix.utils.errors import CorruptFileError

__all__ = ["check_zip", "is_zip"]

_MAGIC = b"PK\x03\x04"
_CODE_BYTES = 64 << 20  # that compressed entries may unfold to: torch compresses code, never tensors
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unfold without a bound on the way


def is_zip(stream: BinaryIO) -> bool:
    """Whether a file starts like a zip archive, by which torch tells its two formats apart; rewinds the file."""
    start = stream.read(len(_MAGIC))
    stream.seek(0)
    return start == _MAGIC


def check_zip(stream: BinaryIO) -> None:
    """Raise unless an archive holds what it claims and every entry is as it was written; rewinds the file.

    torch compares no checksums when it loads, so that a flipped bit would become a weight.

    Args:
        stream: the archive.

    Raises:
        CorruptFileError: entries claim more than the file holds, have one name, another compression or another
            checksum.
    """
    size = stream.seek(0, 2)
    try:
        with zipfile.ZipFile(stream) as archive:
            _check_entries(archive.infolist(), size)
            damaged = archive.testzip()
    except CorruptFileError:
        raise
    except Exception as error:  # of a kind for every kind of damage
        raise CorruptFileError(f"it is a damaged archive: {str(error) or type(error).__name__}") from error
    if damaged is not None:
        raise CorruptFileError(f"its entry {damaged} is not what was written")
    stream.seek(0)


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size + _CODE_BYTES:
        raise CorruptFileError(f"its entries claim {claimed} bytes, but the file has {size}")
    if len({entry.filename.lower() for entry in entries}) < len(entries):  # readers differ in which one they take
        raise CorruptFileError("it has two entries of one name")
    if any(entry.compress_type not in _METHODS for entry in entries):
        raise CorruptFileError("it is compressed in a way that torch does not write")
