"""How far long work is, in one line."""

import shutil
import sys
import time
from typing import TextIO

__all__ = ["ProgressLine"]


class ProgressLine:
    """Shows how far work is: one line that is rewritten on a terminal, else a line now and then.

    Args:
        stream: None takes standard error.
        interval: seconds between lines where the stream is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 20.0) -> None:
        self.stream = stream or sys.stderr
        self.interval = interval
        self._shown, self._time = "", time.monotonic()
        self._terminal = self.stream.isatty()

    def show(self, line: str) -> None:
        """Show the state of now, if it is worth a line."""
        now = time.monotonic()
        if line == self._shown or not line or (not self._terminal and now - self._time < self.interval):
            return
        self._shown, self._time = line, now
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1  # a longer line would wrap, and could not be rewritten
            self._write(f"\r\033[K{line[:width]}")
        else:
            self._write(f"{line}\n")

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._shown = ""
        self._write(f"\r\033[K{line}\n" if self._terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
