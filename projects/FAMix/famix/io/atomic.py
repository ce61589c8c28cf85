"""Atomic writes that survive a kill or a power failure, file locks, and disk and folder errors."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from famix.utils.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows lacks these locks; users must not write to one folder from two programs
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

_PART = re.compile(r"\..*\.[0-9a-f]{16}\.part(\.[^.]*)?")
_MAX_STEM = 40  # characters in a temporary name; file systems limit the length
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_DISK_ERRORS = frozenset(
    getattr(errno, name) for name in ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE"]
)


def is_disk_error(error: BaseException | None) -> bool:
    """Return whether an error comes from the disk and not, for example, from a lost connection."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def disk_message(error: OSError, remedy: str) -> str:
    """Describe a disk error in one line. `remedy` is an alternative to freeing disk space."""
    place = f" '{error.filename}'" if error.filename else ""
    return f"File{place} cannot be written ({error.strerror or error}). Free disk space, or {remedy}."


def require_writable(folder: Path) -> None:
    """Create a folder, and raise ConfigError if files cannot be created in it."""
    trial = folder / f".trial.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        message = f"Output folder '{folder}' is not writable ({error.strerror}). Choose another folder."
        raise ConfigError(message) from error


def require_writable_file(file: Path) -> None:
    """Raise ConfigError if a file cannot be created or replaced. To be called before work that takes long."""
    if file.is_dir():
        raise ConfigError(f"Output must be a file, got the folder '{file}'. Add a file name.")
    require_writable(file.parent)


@contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Write a file under a temporary name, and rename it once it is complete and on disk.

    The first call for a folder removes the unfinished files of killed processes (see `remove_stale_parts`).

    Args:
        path: file to create or replace. A missing folder is created.
        durable: wait for the disk, so the file survives a power failure. This is slow for many small files.

    Yields:
        Path to an empty temporary file in the same folder. If the block raises, it is removed and `path` stays unchanged.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_parts_once(path.parent)
    part, lock = _create_part(path)
    try:
        permissions = part.stat().st_mode & 0o7777  # the user's defaults; some libraries create private files
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
    """Create a file with an unpredictable name next to `path`, and lock it to mark it as being written."""
    while True:
        # The name keeps the suffix because libraries infer the format from it.
        part = path.with_name(f".{path.stem[:_MAX_STEM]}.{secrets.token_hex(8)}.part{path.suffix}")
        with suppress(FileExistsError):  # another process may have planted a file there
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK, 0o666))
            with suppress(BlockingIOError, FileNotFoundError):  # or remove this one as stale before it is locked
                return part, FileLock(part, create=False)


def _flush(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_parts(folder: str | os.PathLike[str]) -> None:
    """Remove the unfinished files that killed processes left in a folder, but not those in its subfolders.

    Files that a process is still writing are kept. On systems without locks, all files are kept.
    """
    if not _HAS_LOCKS:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for part in [Path(entry.path) for entry in entries if _PART.fullmatch(entry.name)]:
            with suppress(OSError):
                lock = FileLock(part, create=False)
                lock.close(remove=lock.is_held)


_remove_stale_parts_once = cache(remove_stale_parts)  # a folder with 10,000 images is scanned only once


class FileLock:
    """Operating-system lock on a file, held until it is closed or the process ends for any reason.

    A process that inherits `descriptor` also holds the lock; forked processes do not. Without lock support in the
    operating system and file system, nothing is locked.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened, or `create` is False and it is missing.
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
        """Return whether the path still refers to the open file, which another process may have removed or replaced."""
        with suppress(FileNotFoundError):
            return self.descriptor is not None and os.path.samestat(os.fstat(self.descriptor), self.path.stat())
        return False

    def close(self, *, remove: bool = False) -> None:
        """Release the lock and optionally remove the file. A process that inherited the lock keeps it."""
        if self.descriptor is not None:
            if remove:
                with suppress(OSError):
                    self.path.unlink()
            os.close(self.descriptor)
            self.descriptor, self.is_held = None, False
            self._open.discard(self)

    @classmethod
    def close_all(cls) -> None:
        """Release all locks that this process holds."""
        for lock in list(cls._open):
            lock.close()


if _HAS_LOCKS:
    # Otherwise a data loader worker would keep the lock of a killed training run.
    os.register_at_fork(after_in_child=FileLock.close_all)


def save_tensors(content: Any, path: str | os.PathLike[str]) -> None:
    """Atomically write tensors, numbers and strings in dictionaries and lists with torch.save."""
    with whole_file(path) as part, open(part, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            cause: BaseException | None = error  # torch wraps the system error in its own
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None
