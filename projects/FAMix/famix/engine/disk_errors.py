"""Disks that are full, read-only or gone while a run writes: one error that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from famix.errors import OutputError

__all__ = ["explain_disk_errors", "is_disk_error"]

_DISK = frozenset(
    getattr(errno, name) for name in ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE"]
)


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an error is of a kind that comes from the disk; of others, such as lost connections, it is no use to say so."""
    return isinstance(error, OSError) and error.errno in _DISK


@contextmanager
def explain_disk_errors() -> Iterator[None]:
    """Turn what the system says of a disk into the package's error.

    Raises:
        OutputError: a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        place = f" {error.filename}" if error.filename else ""
        raise OutputError(
            f"the run cannot write its files{place} ({error.strerror}); make room, or set OUTPUT_DIR to another folder. What "
            "was saved is kept: --resume goes on from the last checkpoint"
        ) from error
