"""Disks that are full, read-only or gone while a run writes: one error that says what to do."""

import errno
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from famix.utils.errors import OutputError

__all__ = ["disk_message", "explain_disk_errors", "is_disk_error", "raise_log_errors"]

_DISK = frozenset(
    getattr(errno, name) for name in ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE"]
)


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an error is of a kind that comes from the disk; of others, such as lost connections, it is no use to say so."""
    return isinstance(error, OSError) and error.errno in _DISK


def disk_message(error: OSError, remedy: str) -> str:
    """Say in one line what the system says of a file.

    Args:
        error: of the system.
        remedy: what else to do than to make room.
    """
    place = f" {error.filename}" if error.filename else ""
    return f"a file{place} cannot be written ({error.strerror or error}); make room, or {remedy}"


def raise_log_errors(handlers: Iterable[logging.Handler]) -> None:
    """Have log files that find no room on the disk end the run with the system's error.

    The logging module would show a traceback for every line, and go on.

    Args:
        handlers: of loggers, changed in place.
    """
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.handleError = partial(_handle_log_error, handler)  # type: ignore[method-assign]


def _handle_log_error(handler: "logging.StreamHandler[Any]", record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if error is None or not is_disk_error(error):
        type(handler).handleError(handler, record)
        return
    _give_up(handler)
    raise error


def _give_up(handler: "logging.StreamHandler[Any]") -> None:
    """Drop the rest of a log: the buffer would be written again with every line, and at exit."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), handler.stream.fileno())


def _give_up_full_logs() -> None:
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler):
            try:
                handler.flush()
            except OSError:
                _give_up(handler)
            except ValueError:  # it is closed
                continue


@contextmanager
def explain_disk_errors() -> Iterator[None]:
    """Turn what the system says of a disk into the package's error.

    Threads that write beside the run, as TensorBoard's, hand theirs on to it. Neither their tracebacks are shown, nor
    those of log files, see `raise_log_errors`.

    Raises:
        OutputError: a file cannot be written.
    """
    show, show_logs = threading.excepthook, logging.raiseExceptions
    logging.raiseExceptions = False
    threading.excepthook = lambda thread: None if is_disk_error(thread.exc_value) else show(thread)
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        _give_up_full_logs()
        place = f" {error.filename}" if error.filename else ""
        raise OutputError(
            f"the run cannot write its files{place} ({error.strerror}); make room, or set OUTPUT_DIR to another folder. What "
            "was saved is kept: --resume goes on from the last checkpoint"
        ) from error
    finally:
        threading.excepthook, logging.raiseExceptions = show, show_logs
