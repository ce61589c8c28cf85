"""Files that appear whole or not at all, whenever the program or the machine stops, and locks on files and folders."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, it is up to the user that no two write into one folder
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

__all__ = ["FileLock", "remove_stale_parts", "save_tensors", "whole_file"]

_PART = re.compile(r"\..*\.[0-9a-f]{16}\.part(\.[^.]*)?")
_LONGEST_STEM = 40  # characters of a part's name; file systems limit it
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Write a file beside its place, and move it there once it is complete and on the disk.

    The first call for a folder removes what killed processes left there, see `remove_stale_parts`.

    Args:
        path: of the file, which is replaced; its folder is made where it is missing.
        durable: wait for the disk, so that the file outlives a power failure; of many small files that takes long.

    Yields:
        Path of an empty file to write to, in the same folder. If the block raises, it is removed and `path` stays as it
        was.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_parts_once(path.parent)
    part, lock = _create_part(path)
    try:
        permissions = part.stat().st_mode & 0o7777  # those of the user's files; some libraries make theirs private
        yield part
        part.chmod(permissions)
        if durable:
            _flush(part)
        os.replace(part, path)
        if durable:
            _flush(path.parent)
    finally:
        part.unlink(missing_ok=True)
        lock.close()


def _create_part(path: Path) -> "tuple[Path, FileLock]":
    """Create a file beside `path` that nobody could foresee, with a lock that says that it is being written."""
    while True:
        # Its name keeps the suffix, by which libraries choose formats.
        part = path.with_name(f".{path.stem[:_LONGEST_STEM]}.{secrets.token_hex(8)}.part{path.suffix}")
        # Another process may have planted a file there, or take this one for left behind until it is locked.
        with suppress(FileExistsError, BlockingIOError, FileNotFoundError):
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK, 0o666))
            return part, FileLock(part, create=False)


def remove_stale_parts(folder: str | os.PathLike[str]) -> None:
    """Remove the unfinished files of `whole_file` whose writer has ended without removing them.

    Files that are being written, by whatever process, stay; so does everything where there are no locks.

    Args:
        folder: whose files are looked at; those of folders in it are not.
    """
    if not _HAS_LOCKS:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for part in [Path(entry.path) for entry in entries if _PART.fullmatch(entry.name)]:
            with suppress(OSError):
                lock = FileLock(part, create=False)
                if lock.is_held:
                    part.unlink()
                lock.close()


_remove_stale_parts_once = cache(remove_stale_parts)  # a folder of 10,000 pictures is looked through once


class FileLock:
    """The operating system's lock on a file, held until it is closed or the process ends, however that happens.

    Where the system or the file system has no locks, nothing is locked.

    Args:
        path: of the file.
        create: make the file where it is missing.

    Attributes:
        descriptor: of the open file. A process that inherits it holds the lock as well; forked processes do not.

    Raises:
        BlockingIOError: another process has the lock.
        OSError: the file cannot be opened.
    """

    _open: ClassVar["set[FileLock]"] = set()

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(path)
        self.is_held = False
        self.descriptor: int | None = None
        if not _HAS_LOCKS:
            return
        while not self._is_current():
            self.close()
            self.descriptor = os.open(self.path, os.O_RDWR | _NO_LINK | (os.O_CREAT if create else 0), 0o666)
            self._open.add(self)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.is_held = True
            except BlockingIOError:
                self.close()
                raise
            except OSError:  # a file system without locks
                return

    def _is_current(self) -> bool:
        """Whether the file that is open is still the one at the path; another may have removed or replaced it."""
        if self.descriptor is None:
            return False
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.descriptor), self.path.stat())
        return False

    def close(self, *, remove: bool = False) -> None:
        """Give the lock back, unless a process that inherited it still has it; further calls do nothing.

        Args:
            remove: remove the file, too.
        """
        if self.descriptor is not None:
            if remove:
                with suppress(OSError):
                    self.path.unlink()
            os.close(self.descriptor)
            self.descriptor, self.is_held = None, False
            self._open.discard(self)

    @classmethod
    def close_all(cls) -> None:
        """Give all locks of this process back."""
        for lock in list(cls._open):
            lock.close()


if _HAS_LOCKS:
    # A worker of a data loader would keep the lock of a training that was killed.
    os.register_at_fork(after_in_child=FileLock.close_all)


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
