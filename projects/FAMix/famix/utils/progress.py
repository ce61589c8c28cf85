"""Progress bars on a terminal. Without a terminal, callers log lines instead."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol

from detectron2.utils import comm
from tqdm import tqdm

_SECONDS = 0.2  # minimum interval between updates


class _Loader(Iterable[Any], Sized, Protocol):
    pass


def on_terminal() -> bool:
    """Return whether this is the main process and stderr is a terminal with a known width, so bars can be shown."""
    return comm.is_main_process() and sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


def progress_bar(total: int, description: str, unit: str, done: int = 0, leave: bool = True) -> "tqdm[Any]":
    """Create a progress bar that shows the remaining time. It is hidden unless `on_terminal()`.

    Args:
        total: number of steps.
        description: label of the bar.
        unit: name of one step.
        done: number of steps that are already complete.
        leave: keep the bar on screen after it is closed.
    """
    return tqdm(
        total=total, initial=done, desc=description, unit=unit, leave=leave, mininterval=_SECONDS, dynamic_ncols=True,
        file=sys.stderr, disable=not on_terminal(),
    )  # fmt: skip


class ShownLoader:
    """Data loader with a labeled progress bar or, without a terminal, a line in the log."""

    def __init__(self, loader: _Loader, description: str) -> None:
        self._loader = loader
        self._description = description

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        logging.getLogger(__name__).info("%s: %d batches", self._description, len(self._loader))
        with progress_bar(len(self._loader), self._description, "image", leave=False) as bar:
            for batch in self._loader:
                yield batch
                bar.update()
