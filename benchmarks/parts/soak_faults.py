"""Runs disturbed by kills, full disks and truncated files until they finish, compared with undisturbed runs."""

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase

from famix.mining import StyleMiner, mine
from famix.style import StyleBank

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from robustness.faults import kill_at, start_command  # type: ignore[import-not-found]
from robustness.fuzzing import digest  # type: ignore[import-not-found]
from run_factory import Workspace  # type: ignore[import-not-found]

KILL, KILL_WRITING, TERMINATE, FULL_DISK, TORN = (
    "kill -9 at any time", "kill -9 between file operations", "SIGTERM at any time", "full disk", "torn last file",
)  # fmt: skip
SIGNALS = {KILL: signal.SIGKILL, TORN: signal.SIGKILL, TERMINATE: signal.SIGTERM}
STATUSES = {TERMINATE: (128 + signal.SIGTERM, -signal.SIGTERM), FULL_DISK: (2,)}  # -SIGKILL after other faults

IMAGES, GROUP = 48, 3
"""Number of training images, and number of batches mined together."""

FAULTS_OF_A_ROUND = 6  # number of faults before the run may finish
PATIENCE = 300.0  # seconds after which an attempt counts as hanging
OPTIONS = (
    *("STYLE_MINING.IMS_PER_BATCH", "2", "STYLE_MINING.STEPS", "20", "SOLVER.CHECKPOINTS_KEPT", "3"),
    *("MODEL_SELECTION.EMA_DECAY", "0.9", "MODEL_SELECTION.USE", "ema", "TEST.EVAL_PERIOD", "0"),
)


@dataclass(frozen=True)
class SoakedRun:
    """Kind of run, with its command line and number of batches or iterations."""

    name: str
    flags: tuple[str, ...]
    options: tuple[str, ...]
    units: int
    faults: tuple[str, ...]


def mining() -> SoakedRun:
    """Return a run that mines in small groups of batches, so there are many points to resume from."""
    return SoakedRun("mining", ("--mine-styles-only",), OPTIONS, IMAGES // 2, (KILL, KILL_WRITING, FULL_DISK, TORN))


def training(bank: Path, iterations: int, period: int) -> SoakedRun:
    """Return a run that trains with an existing bank and saves a checkpoint every `period` iterations."""
    length = ("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period))
    faults = (KILL, KILL_WRITING, TERMINATE, FULL_DISK, TORN)
    return SoakedRun("training", ("--resume",), (*OPTIONS, "MODEL.STYLE.BANK", str(bank), *length), iterations, faults)


def make_workspace(folder: Path) -> Any:
    """Create the tests' Workspace with IMAGES training images by repeating its six."""
    workspace = Workspace(folder)
    for kind in ("images", "labels"):
        train = folder / "data" / kind / "train"
        for index in range(6, IMAGES):
            shutil.copyfile(train / f"{index % 6}.png", train / f"{index}.png")
    return workspace


class CallAfterStep(HookBase):
    """Hook that calls a function after each training iteration. It must be the last hook."""

    def __init__(self, call: Callable[[int], object]) -> None:
        self.call = call

    def after_step(self) -> None:
        """Call the function with the iteration number."""
        self.call(self.trainer.iter)


def add_hook(module: Any, hook: HookBase) -> None:
    """Add a hook to the training runs of a process."""
    build_hooks = module.Trainer.build_hooks
    module.Trainer.build_hooks = lambda trainer: [*build_hooks(trainer), hook]


def record_progress(module: Any, file: Path) -> None:
    """Make a process log each finished batch or iteration as a line in a file."""
    mine_batches = StyleMiner.mine_batches

    def write(unit: int) -> None:
        with file.open("a") as lines:
            lines.write(f"{unit}\n")

    def mine_and_record(miner: StyleMiner, batches: Any) -> Any:
        mined = mine_batches(miner, batches)
        for batch in mined:
            write(batch.index)
        return mined

    StyleMiner.mine_batches = mine_and_record  # type: ignore[method-assign,assignment]
    mine.batches_per_group = lambda *sizes: GROUP
    add_hook(module, CallAfterStep(write))


def result_of(output: Path) -> str:
    """Return a digest of a finished run's bank or weights."""
    bank = output / "style_bank.safetensors"
    if bank.exists():
        loaded = StyleBank.load(bank)
        return digest([loaded.mean, loaded.std, loaded.class_ids, loaded.annotations, loaded.metadata])
    return digest([torch.load(output / name, weights_only=True) for name in ("model_final.pth", "model_ema.pth")])


def tear_last_file(output: Path, rng: np.random.Generator) -> bool:
    """Truncate the newest partial result or the newest of several checkpoints. Returns False if there is none."""
    partial = sorted(output.glob("*.mining-*/[0-9]*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    files = partial or sorted(output.glob("model_0*.pth"))[1:]
    if files:
        os.truncate(files[-1], int(rng.integers(files[-1].stat().st_size)))
    return bool(files)


@dataclass
class FaultReport:
    """Outcomes of the faults of one kind."""

    injected: int = 0
    survived: int = 0  # number of faults after which the run ended with the undisturbed result
    lost: list[int] = field(default_factory=list)  # numbers of batches or iterations that the next attempts repeated
    wrong: list[str] = field(default_factory=list)  # descriptions of all other outcomes


class Attempts:
    """Output folder of a run, and the attempts to finish the run."""

    def __init__(
        self, run: SoakedRun, workspace: Any, name: str, rng: np.random.Generator, seconds: float = 0.0
    ) -> None:
        self.run, self.workspace, self.rng, self.seconds = run, workspace, rng, seconds
        self.output = workspace.folder / f"{run.name}_{name}"
        self.log, self.progress = self.output.with_suffix(".log"), self.output.with_suffix(".progress")
        self.done: set[str] = set()
        self.repeated = 0  # number of units that the last attempt repeated

    def attempt(self, kind: str | None = None) -> int:
        """Start or resume the run with a fault, and return its exit status (negative if a signal killed it)."""

        def prepare(module: Any) -> None:
            record_progress(module, self.progress)
            if kind == KILL_WRITING:
                kill_at(operation)
            if kind == FULL_DISK:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        operation, limit = int(self.rng.integers(1, 60)), int(self.rng.integers(20_000, 60_000))
        number, delay = SIGNALS.get(kind or ""), float(self.rng.uniform(0, 1.2 * self.seconds))
        self.log.unlink(missing_ok=True)
        self.progress.write_text("")
        arguments = self.workspace.arguments(self.output.name, *self.run.options, flags=self.run.flags)
        pid, start = start_command(arguments, self.log, prepare), time.monotonic()
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            passed = time.monotonic() - start
            if number is not None and passed > delay:
                os.kill(pid, number)
                number = None
            if passed > PATIENCE:
                os.kill(pid, signal.SIGABRT)
            time.sleep(0.005)
        units = set(self.progress.read_text().split())
        self.repeated, self.done = len(units & self.done), self.done | units
        return os.waitstatus_to_exitcode(ended[1])

    def disturb(self, queue: list[str], expected: str, reports: dict[str, FaultReport]) -> None:
        """Inject faults from a queue into attempts, let one attempt finish, and add the outcomes to the reports."""
        injected: list[str] = []
        wrong, status = "", -1
        while status != 0 and not wrong:
            kind = queue[-1] if queue and len(injected) < FAULTS_OF_A_ROUND else None
            status = self.attempt(kind)
            if injected:
                reports[injected[-1]].lost.append(self.repeated)
            if status == 0:
                break  # if the run was faster than the fault, the next run gets it
            text = self.log.read_text(errors="replace")
            if kind is None or status not in STATUSES.get(kind, (-signal.SIGKILL,)) or "Traceback" in text:
                wrong = f"{kind or 'no fault'}: exit status {status}, {text[-500:]}"
            if kind == TORN and not tear_last_file(self.output, self.rng):
                injected.append(KILL)  # no file to tear yet
            elif kind:
                injected.append(queue.pop())
        if not wrong and result_of(self.output) != expected:
            wrong = "the result differs from that of the undisturbed run"
        for kind in injected:
            reports[kind].injected += 1
            reports[kind].survived += not wrong
        if wrong:
            reports[injected[-1] if injected else queue[-1]].wrong.append(wrong)


def soak(run: SoakedRun, workspace: Any, faults: int, seed: int) -> tuple[dict[str, FaultReport], int]:
    """Disturb runs until all faults are injected and the last run has finished.

    Args:
        run: kind of run.
        workspace: workspace with the data, which receives the outputs.
        faults: number of faults of each kind.
        seed: seed for the order and times of the faults.

    Returns:
        A mapping from kind of fault to outcomes, and the number of finished runs.
    """
    rng = np.random.default_rng(seed)
    queue = [kind for kind in run.faults for _ in range(faults)]
    rng.shuffle(queue)
    reports = {kind: FaultReport() for kind in run.faults}
    whole, start = Attempts(run, workspace, "whole", rng), time.perf_counter()
    assert whole.attempt() == 0, f"the undisturbed run failed: {whole.log.read_text()[-2000:]}"
    seconds, rounds, expected = time.perf_counter() - start, 0, result_of(whole.output)
    while queue:
        rounds += 1
        Attempts(run, workspace, f"round_{rounds}", rng, seconds).disturb(queue, expected, reports)
    return reports, rounds
