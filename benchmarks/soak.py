"""Disturb runs with kills and full disks until they finish, read hundreds of damaged files, and track training memory.

All faults and damage are seeded. Banks and weights of disturbed and undisturbed runs must be bit-identical.
Every damaged file must either load or raise one of the package's errors, within 20 seconds and 512 MiB. In formats with
checksums, random damage must not change the content unnoticed. The exit status is 1 if any outcome differs.

    python benchmarks/soak.py [--quick] [--faults 6] [--files 500] [--iterations 2000] [--seed 0]
"""

# ruff: noqa: E402, the parser precedes slow imports

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

from parts.common import benchmark_parser

QUICK = {"faults": 1, "files": 20, "iterations": 200}
FULL = {"faults": 6, "files": 500, "iterations": 2000}
JUDGED_FROM = 2000  # iterations; Detectron2 keeps a thousand values of every scalar, which fill up in the first half


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="run a small version that takes about a minute")
    parser.add_argument("--faults", type=int, help=f"number of faults of each kind (default: {FULL['faults']})")
    parser.add_argument("--files", type=int, help=f"number of damaged files per format (default: {FULL['files']})")
    parser.add_argument(
        "--iterations",
        type=int,
        help=f"iterations of the memory test, judged only from {JUDGED_FROM} on (default: {FULL['iterations']})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all faults and damage (default: 0)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share few cores; also makes runs repeatable
warnings.simplefilter("ignore")

import numpy as np
import torch
from parts.soak_faults import CallAfterStep, FaultReport, SoakedRun, add_hook, make_workspace, mining, soak, training

from famix_minitown.runs.study import describe_machine, markdown
from robustness.faults import start_command, status_of  # type: ignore[import-not-found]
from robustness.formats import FORMATS  # type: ignore[import-not-found]
from robustness.fuzzing import WRONG, Trials  # type: ignore[import-not-found]

ITERATIONS, PERIOD = 60, 10  # iterations and checkpoint period of the disturbed training runs
HANGS = 60.0  # seconds without an answer after which a process hangs
FLAT = 100.0  # kB per 1,000 iterations: 4 MB over 40,000 iterations
EVERY = 10  # iterations between memory measurements


@dataclass
class FileReport:
    """Outcomes for the damaged files of one format."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds
    wrong: list[tuple[int, str]] = field(default_factory=list)  # number of each file with a wrong outcome

    def add(self, number: int, kind: str, detail: str, seconds: float) -> None:
        """Record the outcome for a file."""
        self.counts[kind] += 1
        self.slowest = max(self.slowest, seconds)
        if kind == WRONG:
            self.wrong.append((number, detail))


def try_files(name: str, count: int, seed: int) -> FileReport:
    """Read damaged files of a format in a process. If it crashes, a new process continues with the next file."""
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
    """Send the kind, detail and time of each trial."""
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries print many messages about damaged files
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(name, Path(folder), seed)
        for number in numbers:
            outcome = trials.run(number)
            answers.send((outcome.kind, outcome.detail, outcome.seconds))


def measure_memory(workspace: Any, iterations: int, bank: Path) -> tuple[list[object], float]:
    """Train, and fit a line to the memory use in the second half.

    Returns:
        A table row, and the slope in kB per 1,000 iterations if the run is long enough and not flat, or else 0.
    """
    file, log, library = workspace.folder / "memory.txt", workspace.folder / "memory.log", ctypes.CDLL(None)
    options = ("SOLVER.MAX_ITER", str(iterations), "MODEL.STYLE.BANK", str(bank), "SOLVER.CHECKPOINT_PERIOD", "500")

    def measure(iteration: int) -> None:
        if (iteration + 1) % EVERY == 0:
            library.malloc_trim(0)  # do not count freed memory that the C library keeps
            with file.open("a") as lines:
                lines.write(Path("/proc/self/statm").read_text().split()[1] + "\n")

    arguments = workspace.arguments("memory", *options, "SOLVER.CHECKPOINTS_KEPT", "2")
    status = status_of(start_command(arguments, log, lambda module: add_hook(module, CallAfterStep(measure))))
    assert status == 0, f"the training failed: {log.read_text()[-2000:]}"
    memory = np.array(list(map(int, file.read_text().split()))) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    half = memory[len(memory) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 1000 / EVERY
    judged = iterations >= JUDGED_FROM
    verdict = ("flat" if slope < FLAT else "growing") if judged else "too short to tell"
    row = [iterations, f"{half[0] / 1024:.1f}", f"{half[-1] / 1024:.1f}", f"{slope:.0f}", verdict]
    return row, slope if judged and slope >= FLAT else 0.0


def fault_rows(run: SoakedRun, reports: dict[str, FaultReport]) -> list[list[object]]:
    """Return the rows for a kind of run in the fault table."""
    return [
        [run.name, kind, report.injected, report.survived, f"{sum(report.lost) / max(len(report.lost), 1):.1f}",
         max(report.lost, default=0), f"of {run.units}"]
        for kind, report in reports.items()
    ]  # fmt: skip


def file_rows(reports: dict[str, FileReport]) -> list[list[object]]:
    """Return the rows of the file table, including the totals."""
    counts = {name: [report.counts.total(), *(report.counts[kind] for kind in ("loaded", "refused", "wrong"))]
              for name, report in reports.items()}  # fmt: skip
    rows: list[list[object]] = [[name, *counts[name], f"{report.slowest:.2f}"] for name, report in reports.items()]
    slowest = max(report.slowest for report in reports.values())
    return [*rows, ["all", *map(sum, zip(*counts.values(), strict=True)), f"{slowest:.2f}"]]


def say(text: str, start: float) -> None:
    """Report progress on standard error."""
    print(f"{text} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)


def main() -> int:
    """Run the soak test, print the tables and return the exit status."""
    args = make_parser().parse_args()
    sizes = {**(QUICK if args.quick else FULL), **{k: v for k in FULL if (v := getattr(args, k)) is not None}}
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    begin = time.perf_counter()
    rows: list[list[object]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        workspace = make_workspace(Path(name))
        bank = workspace.folder / "mining_whole/style_bank.safetensors"
        for run in (mining(), training(bank, ITERATIONS, PERIOD)):
            start = time.perf_counter()
            reports, rounds = soak(run, workspace, sizes["faults"], args.seed)
            rows += fault_rows(run, reports)
            wrong += [f"{run.name}, {kind}: {text}" for kind, report in reports.items() for text in report.wrong]
            say(f"{run.name}: {rounds} runs finished under faults", start)
        start = time.perf_counter()
        memory, growth = measure_memory(workspace, sizes["iterations"], bank)
        wrong += [f"memory grows by {growth:.0f} kB per 1,000 iterations"] * bool(growth)
        say(f"memory: {sizes['iterations']} iterations", start)
    files = {}
    for name in FORMATS:
        start = time.perf_counter()
        files[name] = try_files(name, sizes["files"], args.seed)
        wrong += [f"{name}, file {number}: {text}" for number, text in files[name].wrong]
        say(f"{name}: {sizes['files']} damaged files", start)
    print(f"{describe_machine()}, seed {args.seed}, {(time.perf_counter() - begin) / 60:.0f} minutes\n")
    print(markdown(["run", "fault", "injected", "survived", "lost, mean", "lost, most", "batches or iterations"], rows))
    heads = ["damaged files", "tried", "loaded", "refused", "wrong outcomes", "slowest, s"]
    print("\n" + markdown(heads, file_rows(files)))
    heads = [
        "iterations",
        "MiB halfway",
        "MiB at the end",
        "slope, kB per 1,000 iterations",
        f"flat: below {FLAT:.0f}",
    ]
    print("\n" + markdown(heads, [memory]))
    for text in wrong:
        print(f"wrong: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
