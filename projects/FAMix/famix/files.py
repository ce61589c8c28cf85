"""Files that appear whole or not at all, whenever the program or the machine stops."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["save_tensors", "whole_file"]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file beside its place, and move it there once it is complete and on the disk.

    Args:
        path: of the file, which is replaced; its folder is made where it is missing.

    Yields:
        Path to write to, in the same folder. If the block raises, it is removed and `path` stays as it was.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its name keeps the suffix, by which libraries choose formats, and tells writers on other machines apart.
    part = path.with_name(f".{path.stem}.{platform.node()}.{os.getpid()}.part{path.suffix}")
    try:
        part.touch()
        permissions = part.stat().st_mode  # those of the user's files; safetensors would make it private
        yield part
        part.chmod(permissions)
        _flush(part)
        os.replace(part, path)
        _flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def save_tensors(content: Any, path: str | os.PathLike[str]) -> None:
    """What torch.save does, to a file that appears whole or not at all.

    Args:
        content: tensors, numbers and texts in dictionaries and lists.
        path: of the file, see `whole_file`.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as part, open(part, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise _disk_error(error) or error from None


def _disk_error(error: BaseException | None) -> OSError | None:
    """What the system said of the disk; torch closes its archive after that, and fails once more with another error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
