"""Runs that are killed, starved of disk and left with torn files until they finish, compared with undisturbed ones."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from safetensors.torch import load_file
from soak_workspace import IMAGES, Progress, assert_equal_state, run_in_child

from famix.io import atomic as files
from famix.mining import StyleMiner, mine
from famix.style import StyleBank

__all__ = ["BATCHES", "FAULTS", "FaultReport", "Mining", "Soaked", "Training", "soak"]

KILL, KILL_WRITING, TERMINATE, FULL_DISK, TORN = (
    "kill -9 at any time", "kill -9 between file operations", "SIGTERM at any time", "full disk", "torn last file",
)  # fmt: skip
FAULTS = {"mining": (KILL, KILL_WRITING, FULL_DISK, TORN), "training": (KILL, KILL_WRITING, TERMINATE, FULL_DISK, TORN)}

BATCHES, GROUP = IMAGES // 2, 3
"""Of a mining pass, and of those what is mined together."""

_SHARDS = "*.mining-*/[0-9]*.safetensors"
_FAULTS_OF_A_ROUND = 6  # after which a run may finish
_PATIENCE = 300.0  # seconds after which an attempt counts as hanging
_OPTIONS = (
    *("STYLE_MINING.IMS_PER_BATCH", "2", "STYLE_MINING.STEPS", "20", "SOLVER.CHECKPOINTS_KEPT", "3"),
    *("MODEL_SELECTION.EMA_DECAY", "0.9", "MODEL_SELECTION.USE", "ema", "TEST.EVAL_PERIOD", "0"),
)


@dataclass
class FaultReport:
    """What became of the faults of one kind.

    Attributes:
        injected: how many there were.
        survived: after how many the run went on and ended with what the undisturbed one ended with.
        lost: finished batches or iterations that are to be done again, of every fault.
        wrong: what went otherwise than it should.
    """

    injected: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Soaked:
    """A kind of run: how it is started, how far it got, what it ends with."""

    name: str
    flags: tuple[str, ...]
    options: tuple[str, ...]

    def prepare(self, module: Any, progress: Progress) -> None:
        """Have a run note its progress; called in its process."""
        raise NotImplementedError

    def kept(self, output: Path) -> set[int]:
        """The units that need not be done again."""
        raise NotImplementedError

    def last_file(self, output: Path) -> Path | None:
        """What was written last and may be torn, in a run that is not done; None where there is nothing yet."""
        raise NotImplementedError

    def differences(self, output: Path, whole: Path) -> str:
        """How a result differs from that of the undisturbed run; "" where it does not."""
        raise NotImplementedError


class Mining(Soaked):
    """Mining alone; its units are batches, of which few are optimised together, or there would be little to go on from."""

    name = "mining"
    flags = ("--mine-styles-only",)
    options = _OPTIONS

    def prepare(self, module: Any, progress: Progress) -> None:
        """See Soaked."""
        mine_batches = StyleMiner.mine_batches

        def noting(miner: StyleMiner, batches: Sequence[Any]) -> Any:
            mined = mine_batches(miner, batches)
            for batch in mined:
                progress.done(batch.index)
            return mined

        StyleMiner.mine_batches = noting  # type: ignore[method-assign,assignment]
        mine.batches_per_group = lambda *sizes: GROUP

    def kept(self, output: Path) -> set[int]:
        """See Soaked; what is mined together is kept together."""
        if (output / "style_bank.safetensors").exists():
            return set(range(BATCHES))
        found = {int(path.stem) for path in output.glob(_SHARDS) if _is_sound(load_file, path)}
        return {
            index for index in found if found.issuperset(range(index // GROUP * GROUP, (index // GROUP + 1) * GROUP))
        }

    def last_file(self, output: Path) -> Path | None:
        """See Soaked."""
        shards = list(output.glob(_SHARDS))
        return max(shards, key=lambda path: path.stat().st_mtime_ns, default=None)

    def differences(self, output: Path, whole: Path) -> str:
        """See Soaked."""
        one, other = (StyleBank.load(folder / "style_bank.safetensors") for folder in (output, whole))
        same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("mean", "std", "class_ids"))
        same &= one.annotations.keys() == other.annotations.keys() and one.metadata == other.metadata
        same &= all(torch.equal(values, other.annotations[name]) for name, values in one.annotations.items())
        return "" if same else "another bank than that of the undisturbed run"


class IterationHook(HookBase):
    """Notes finished iterations; the last hook of all."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def after_step(self) -> None:
        """Note this one."""
        self.progress.done(self.trainer.iter)


class Training(Soaked):
    """Training from a bank that is there; its units are iterations.

    Args:
        iterations: of a run.
        period: iterations from one checkpoint to the next.
        bank: of the styles.
    """

    name = "training"
    flags = ("--resume",)

    def __init__(self, iterations: int, period: int, bank: Path) -> None:
        self.options = (
            *_OPTIONS, "MODEL.STYLE.BANK", str(bank), "SOLVER.MAX_ITER", str(iterations),
            "SOLVER.CHECKPOINT_PERIOD", str(period),
        )  # fmt: skip

    def prepare(self, module: Any, progress: Progress) -> None:
        """See Soaked."""
        build_hooks = module.Trainer.build_hooks
        module.Trainer.build_hooks = lambda trainer: [*build_hooks(trainer), IterationHook(progress)]

    def kept(self, output: Path) -> set[int]:
        """See Soaked."""
        sound = [path for path in output.glob("model_0*.pth") if _is_sound(torch.load, path)]
        return set(range(max((int(path.stem.removeprefix("model_")) + 1 for path in sound), default=0)))

    def last_file(self, output: Path) -> Path | None:
        """See Soaked."""
        if len(list(output.glob("model_0*.pth"))) < 2:
            return None  # with the only one torn, the run would stop and say so
        return output / (output / "last_checkpoint").read_text()

    def differences(self, output: Path, whole: Path) -> str:
        """See Soaked."""
        try:
            for name in ("model_final.pth", "model_ema.pth"):
                one, other = (torch.load(folder / name, weights_only=True) for folder in (output, whole))
                assert_equal_state(one, other)
        except AssertionError as error:
            return f"other weights than those of the undisturbed run: {error}"
        return ""


def soak(soaked: Soaked, workspace: Any, folder: Path, faults: int, seed: int) -> tuple[dict[str, FaultReport], int]:
    """Disturb runs until all faults are injected and the last run has finished.

    Args:
        soaked: the kind of run.
        workspace: with its data.
        folder: of the outputs.
        faults: how many of every kind.
        seed: of their order and moments.

    Returns:
        Kind of fault -> what became of it, and the number of runs that were finished.
    """
    rng = np.random.default_rng(seed)
    queue = [kind for kind in FAULTS[soaked.name] for _ in range(faults)]
    rng.shuffle(queue)
    reports = {kind: FaultReport() for kind in FAULTS[soaked.name]}
    whole = _Run(soaked, workspace, folder / "whole", rng)
    start = time.perf_counter()
    assert whole.attempt(None) == 0, f"the undisturbed run failed: {whole.log.read_text()[-2000:]}"
    seconds = time.perf_counter() - start
    rounds = 0
    while queue:
        rounds += 1
        run = _Run(soaked, workspace, folder / f"round_{rounds}", rng, seconds)
        injected = list(run.disturb(queue))
        difference = soaked.differences(run.output, whole.output) if not run.wrong else run.wrong
        for kind, lost in injected:
            reports[kind].injected += 1
            reports[kind].survived += not difference
            reports[kind].lost.append(lost)
        if difference:
            reports[injected[-1][0] if injected else queue[-1]].wrong.append(difference)
    return reports, rounds


class _Run:
    """One output folder, and the attempts to finish its run."""

    def __init__(
        self, soaked: Soaked, workspace: Any, output: Path, rng: np.random.Generator, seconds: float = 0.0
    ) -> None:
        self.soaked = soaked
        self.workspace = workspace
        self.output = output
        self.log = output.with_suffix(".log")
        self.progress = Progress(output.with_suffix(".progress"))
        self.wrong = ""
        self._rng = rng
        self._seconds = seconds

    def disturb(self, queue: list[str]) -> Iterator[tuple[str, int]]:
        """Inject faults out of a queue into attempts, then let one finish; yields those that happened, and what they lost."""
        kept: set[int] = set()
        for _ in range(_FAULTS_OF_A_ROUND):
            if not queue or self.wrong:
                break
            kind = queue[-1]
            status = self.attempt(kind)
            if status == 0:
                return  # done before the fault came, which waits for the next run
            self._check_end(kind, status)
            if kind == TORN and not self._tear():
                kind = KILL  # is all that came of it: there was no file yet, or none before it
            else:
                queue.pop()
            done = kept.union(self.progress.last_attempt())
            kept = self.soaked.kept(self.output)
            yield kind, len(done - kept)
        if not self.wrong and self.attempt(None) != 0:
            self.wrong = f"the run could not be finished: {self.log.read_text()[-500:]}"

    def attempt(self, kind: str | None) -> int:
        """Start the run, or go on with it, and return its exit status: minus the signal that killed it, if any."""
        arguments = self.workspace.parse(self.output.name, *self.soaked.options, flags=self.soaked.flags)
        arguments.opts = [
            str(self.output) if str(word).endswith(f"/{self.output.name}") else word for word in arguments.opts
        ]
        operation = int(self._rng.integers(1, 60)) if kind == KILL_WRITING else None
        limit = int(self._rng.integers(20_000, 60_000)) if kind == FULL_DISK else None
        self.progress.begin()
        pid = run_in_child(self.workspace, arguments, self.log, lambda module: self._prepare(module, operation), limit)
        signals = {KILL: signal.SIGKILL, TORN: signal.SIGKILL, TERMINATE: signal.SIGTERM}
        return _wait(pid, signals.get(kind or ""), float(self._rng.uniform(0, 1.2 * self._seconds)))

    def _prepare(self, module: Any, operation: int | None) -> None:
        self.soaked.prepare(module, self.progress)
        if operation is not None:
            _kill_at(operation)

    def _check_end(self, kind: str, status: int) -> None:
        """Those that are not killed must end with one line and a status of their own."""
        text = self.log.read_text(errors="replace")
        expected = {TERMINATE: (128 + signal.SIGTERM, -signal.SIGTERM), FULL_DISK: (2,)}.get(kind, (-signal.SIGKILL,))
        if status not in expected or "Traceback" in text:
            self.wrong = f"{kind}: exit status {status}, {text[-500:]}"

    def _tear(self) -> bool:
        last = self.soaked.last_file(self.output)
        if last is None:
            return False
        content = last.read_bytes()
        last.write_bytes(content[: int(self._rng.integers(len(content)))])
        return True


def _is_sound(load: Callable[[Path], Any], path: Path) -> bool:
    try:
        load(path)
    except Exception:  # torch raises another type for every kind of damage
        return False
    return True


def _kill_at(operation: int) -> None:
    """Have this process kill itself at one of its file operations."""
    passed = iter(range(10**6))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(passed) == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    files.os.fsync, files.os.replace = counted(os.fsync), counted(os.replace)


def _wait(pid: int, number: signal.Signals | None, delay: float) -> int:
    """Wait for a process; send it a signal after a while, and kill it where it hangs."""
    start, sent = time.monotonic(), False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - start
        if number is not None and not sent and passed > delay:
            os.kill(pid, number)
            sent = True
        if passed > _PATIENCE:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.005)
