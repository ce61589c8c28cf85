"""Runs that are killed and starved until they finish, damaged files by the hundred, and a memory curve.

Everything is seeded. Every fault must be survived: the bank and the weights of the disturbed runs are compared bit for
bit with those of undisturbed ones. Every damaged file must load or be refused by the package's own error, within 20
seconds, 512 MiB and one readable message; where the format has checksums, random damage must not change the content
unnoticed. The exit status is 1 if any outcome differs.

    python benchmarks/soak.py [--quick] [--faults 6] [--files 500] [--iterations 2000] [--seed 0]
"""

# ruff: noqa: E402, the parser comes before imports that take seconds

import argparse
import ctypes
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from arguments import benchmark_parser

QUICK = {"faults": 1, "files": 20, "iterations": 200}
FULL = {"faults": 6, "files": 500, "iterations": 2000}
JUDGED_FROM = 2000  # iterations: detectron2 keeps a thousand values of every scalar, which the first half fills


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few of everything, about a minute")
    parser.add_argument("--faults", type=int, help=f"of every kind (default: {FULL['faults']})")
    parser.add_argument("--files", type=int, help=f"damaged files of every format (default: {FULL['files']})")
    parser.add_argument(
        "--iterations", type=int, help=f"of the memory curve, judged from {JUDGED_FROM} (default: {FULL['iterations']})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all faults and damage (default: 0)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share few cores; also needed for repeatable runs
warnings.simplefilter("ignore")

import numpy as np
import torch
from detectron2.engine import HookBase
from soak_faults import BATCHES, FaultReport, Mining, SoakedRun, Training, make_workspace, run_in_child, soak

from famix_minitown.study import describe_machine, markdown
from robustness.formats import FORMATS  # type: ignore[import-not-found]
from robustness.fuzzing import WRONG, Trials  # type: ignore[import-not-found]

ITERATIONS, PERIOD = 60, 10  # of the disturbed trainings
HANGS = 60.0  # seconds without an answer
FLAT = 100.0  # kB per 1,000 iterations: 4 MB over 40,000 iterations
EVERY = 10  # iterations between two measurements of memory


@dataclass
class FileReport:
    """Outcomes of the damaged files of one format.

    Attributes:
        counts: outcome -> number.
        slowest: seconds of the slowest file.
        wrong: number of each file with a wrong outcome, and a description.
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
    """Read damaged files of a format in processes that may crash; a new one continues behind the file."""
    report, number = FileReport(), 0
    while number < count:
        ours, theirs = Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            ours.close()
            try:
                answer_trials(name, range(number, count), seed, theirs)
            finally:
                os._exit(0)
        theirs.close()
        since = time.monotonic()
        while number < count and ours.poll(HANGS):
            try:
                report.add(number, *ours.recv())
            except EOFError:
                break
            number, since = number + 1, time.monotonic()
        if number < count:
            passed = time.monotonic() - since
            os.kill(pid, signal.SIGKILL)
            report.add(number, WRONG, "hangs" if passed >= HANGS else "ends the process", passed)
            number += 1
        os.waitpid(pid, 0)
    return report


def answer_trials(name: str, numbers: range, seed: int, answers: Connection) -> None:
    """Send kind, detail and seconds of each trial."""
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries write much about damaged files
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(name, Path(folder), seed)
        for number in numbers:
            outcome = trials.run(number)
            answers.send((outcome.kind, outcome.detail, outcome.seconds))


class MemoryHook(HookBase):
    """Measures the resident memory every EVERY iterations, without freed memory that the C library keeps."""

    def __init__(self, path: Path) -> None:
        self._path, self._pages, self._library = path, list[int](), ctypes.CDLL(None)

    def after_step(self) -> None:
        """Measure."""
        if (self.trainer.iter + 1) % EVERY == 0:
            self._library.malloc_trim(0)
            self._pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    def after_train(self) -> None:
        """Write all measurements."""
        self._path.write_text("\n".join(map(str, self._pages)))


def measure_memory(workspace: Any, folder: Path, iterations: int, bank: Path) -> tuple[list[object], float]:
    """Train, and fit a line to the memory of the second half.

    Returns:
        A row of the table, and the slope in kB per 1,000 iterations if it is judged and not flat, else 0.
    """
    file, log = folder / "memory.txt", folder / "memory.log"
    options = ("SOLVER.MAX_ITER", str(iterations), "MODEL.STYLE.BANK", str(bank), "SOLVER.CHECKPOINT_PERIOD", "500")

    def prepare(module: Any) -> None:
        build_hooks = module.Trainer.build_hooks
        module.Trainer.build_hooks = lambda trainer: [*build_hooks(trainer), MemoryHook(file)]

    arguments = workspace.parse("memory", *options, "SOLVER.CHECKPOINTS_KEPT", "2")
    pid = run_in_child(workspace, arguments, log, prepare)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the training failed: {log.read_text()[-2000:]}"
    memory = np.array(list(map(int, file.read_text().split()))) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    half = memory[len(memory) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 1000 / EVERY
    judged = iterations >= JUDGED_FROM
    verdict = ("flat" if slope < FLAT else "growing") if judged else "too short to tell"
    row = [iterations, f"{half[0] / 1024:.1f}", f"{half[-1] / 1024:.1f}", f"{slope:.0f}", verdict]
    return row, slope if judged and slope >= FLAT else 0.0


def fault_rows(reports: dict[str, dict[str, FaultReport]]) -> list[list[object]]:
    """Return the rows of the table of faults."""
    units = {"mining": f"of {BATCHES} batches", "training": f"of {ITERATIONS} iterations"}
    return [
        [run, kind, report.injected, report.survived, f"{sum(report.lost) / max(len(report.lost), 1):.1f}",
         max(report.lost, default=0), units[run]]
        for run, by_kind in reports.items()
        for kind, report in by_kind.items()
    ]  # fmt: skip


def file_rows(reports: dict[str, FileReport]) -> list[list[object]]:
    """Return the rows of the table of files, with a sum."""
    counts = {name: [report.counts.total(), *(report.counts[kind] for kind in ("loaded", "refused", "wrong"))]
              for name, report in reports.items()}  # fmt: skip
    rows: list[list[object]] = [[name, *counts[name], f"{report.slowest:.2f}"] for name, report in reports.items()]
    slowest = max(report.slowest for report in reports.values())
    return [*rows, ["all", *map(sum, zip(*counts.values(), strict=True)), f"{slowest:.2f}"]]


def say(text: str, start: float) -> None:
    """Report progress on standard error."""
    print(f"{text} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)


def main() -> int:
    """Soak, print the tables and return the exit status."""
    args = make_parser().parse_args()
    sizes = {**(QUICK if args.quick else FULL), **{k: v for k in FULL if (v := getattr(args, k)) is not None}}
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    begin = time.perf_counter()
    faults: dict[str, dict[str, FaultReport]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace, bank = make_workspace(folder / "workspace"), folder / "mining/whole/style_bank.safetensors"
        runs: list[SoakedRun] = [Mining(), Training(ITERATIONS, PERIOD, bank)]
        for run in runs:
            (folder / run.name).mkdir()
            start = time.perf_counter()
            faults[run.name], rounds = soak(run, workspace, folder / run.name, sizes["faults"], args.seed)
            say(f"{run.name}: {rounds} runs finished under faults", start)
        start = time.perf_counter()
        memory, growth = measure_memory(workspace, folder, sizes["iterations"], bank)
        say(f"memory: {sizes['iterations']} iterations", start)
    files = {}
    for name in FORMATS:
        start = time.perf_counter()
        files[name] = try_files(name, sizes["files"], args.seed)
        say(f"{name}: {sizes['files']} damaged files", start)
    print(f"{describe_machine()}, seed {args.seed}, {(time.perf_counter() - begin) / 60:.0f} minutes\n")
    print(markdown(["run", "fault", "injected", "survived", "lost, mean", "lost, most", ""], fault_rows(faults)))
    print(
        "\n"
        + markdown(["damaged files", "tried", "loaded", "refused", "wrong outcomes", "slowest, s"], file_rows(files))
    )
    heads = ["MiB half-way", "MiB at the end", "slope, kB per 1,000 iterations", f"flat: below {FLAT:.0f}"]
    print("\n" + markdown(["iterations", *heads], [memory]))
    wrong = [
        f"{run}, {kind}: {text}" for run, by in faults.items() for kind, report in by.items() for text in report.wrong
    ]
    wrong += [f"{name}, file {number}: {text}" for name, report in files.items() for number, text in report.wrong]
    wrong += [f"memory grows by {growth:.0f} kB per 1,000 iterations"] * bool(growth)
    for text in wrong:
        print(f"wrong: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
