"""The memory of a training over its iterations."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.engine import HookBase
from soak_workspace import run_in_child

__all__ = ["FLAT", "MemoryCurve", "measure_memory"]

FLAT = 100.0
"""kB per 1,000 iterations up to which a curve counts as flat: 4 MB over 40,000 iterations."""

LONG = 2000
"""Iterations from which on a curve is judged."""

EVERY = 10
"""Iterations from one measurement to the next."""


@dataclass(frozen=True)
class MemoryCurve:
    """Resident memory of a training.

    Attributes:
        iterations: that were done.
        first, last: kB after the warm-up, which is the first half, and at the end.
        slope: kB per 1,000 iterations over the second half, by least squares.
    """

    iterations: int
    first: int
    last: int
    slope: float

    @property
    def verdict(self) -> str:
        """In a word: a thousand values of every scalar are kept, which must be there before the second half begins."""
        if self.iterations < LONG:
            return "too short to tell"
        return "flat" if self.slope < FLAT else "growing"


class MemoryHook(HookBase):
    """Writes the resident memory after every tenth iteration."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pages: list[int] = []
        self._library = ctypes.CDLL(None)

    def after_step(self) -> None:
        """Note it, without what the C library has kept of memory that was given back: it comes and goes by chance."""
        if (self.trainer.iter + 1) % EVERY == 0:
            self._library.malloc_trim(0)
            self._pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    def after_train(self) -> None:
        """Write all."""
        self._path.write_text("\n".join(map(str, self._pages)))


def measure_memory(workspace: Any, folder: Path, iterations: int, bank: Path) -> MemoryCurve:
    """Train, and fit a line to the memory of the second half.

    Args:
        workspace: with its data.
        folder: of the output.
        iterations: to train.
        bank: of the styles.
    """
    pages_file, log = folder / "memory.txt", folder / "memory.log"
    options = ("SOLVER.MAX_ITER", str(iterations), "MODEL.STYLE.BANK", str(bank), "SOLVER.CHECKPOINT_PERIOD", "500")
    arguments = workspace.parse("memory", *options, "SOLVER.CHECKPOINTS_KEPT", "2")

    def note_memory(module: Any) -> None:
        build_hooks = module.Trainer.build_hooks
        module.Trainer.build_hooks = lambda trainer: [*build_hooks(trainer), MemoryHook(pages_file)]

    pid = run_in_child(workspace, arguments, log, note_memory, None)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the training failed: {log.read_text()[-2000:]}"
    memory = np.array(list(map(int, pages_file.read_text().split()))) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    half = memory[len(memory) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 1000 / EVERY
    return MemoryCurve(iterations, int(half[0]), int(half[-1]), slope)
