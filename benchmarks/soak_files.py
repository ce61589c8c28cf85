"""Damaged files of every kind, read in processes of their own: a crash ends one of these, not the soak."""

import logging
import os
import signal
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import soak_workspace  # noqa: F401, finds the tests' modules

from robustness.formats import FORMATS  # type: ignore[import-not-found]
from robustness.fuzzing import LOADED, REFUSED, WRONG, Trials  # type: ignore[import-not-found]

__all__ = ["FORMATS", "FileReport", "try_files"]

_PATIENCE = 60.0  # seconds without an answer, after which a process counts as hanging


@dataclass
class FileReport:
    """What became of the damaged files of one format.

    Attributes:
        counts: outcome -> number.
        slowest: seconds of the slowest file.
        wrong: number of a file and what went wrong with it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    wrong: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, kind: str, detail: str, seconds: float) -> None:
        """Count a file."""
        self.counts[kind] += 1
        self.slowest = max(self.slowest, seconds)
        if kind == WRONG:
            self.wrong.append((number, detail))


def try_files(name: str, count: int, seed: int) -> FileReport:
    """Have damaged files of a format read.

    Args:
        name: of the format.
        count: of the files.
        seed: of the damage.
    """
    report, number = FileReport(), 0
    while number < count:
        number = _try_until_crash(name, number, count, seed, report)
    return report


def _try_until_crash(name: str, first: int, count: int, seed: int, report: FileReport) -> int:
    """Try files from `first` on; returns the first one that is left, behind one that ended the process."""
    ours, theirs = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            _try_all(name, first, count, seed, theirs)
        finally:
            os._exit(0)
    theirs.close()
    number, since = first, time.monotonic()
    while number < count and ours.poll(_PATIENCE):
        try:
            kind, detail, seconds = ours.recv()
        except EOFError:
            break
        report.add(number, kind, detail, seconds)
        number, since = number + 1, time.monotonic()
    if number < count:
        hung = time.monotonic() - since >= _PATIENCE
        os.kill(pid, signal.SIGKILL)
        report.add(number, WRONG, "hangs" if hung else "ends the process", time.monotonic() - since)
        number += 1
    os.waitpid(pid, 0)
    return number


def _try_all(name: str, first: int, count: int, seed: int, answers: Connection) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C say much of damaged files
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(name, Path(folder), seed)
        for number in range(first, count):
            outcome = trials.run(number)
            answers.send((outcome.kind, outcome.detail, outcome.seconds))
    assert {LOADED, REFUSED, WRONG}
