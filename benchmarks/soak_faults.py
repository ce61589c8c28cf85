"""Runs that are killed, starved of disk and left with torn files until they finish, compared with undisturbed ones."""

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from safetensors.torch import load_file

from famix.mining import StyleMiner, mine
from famix.style import StyleBank

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from robustness.faults import kill_at  # type: ignore[import-not-found]
from run_factory import Workspace, assert_equal_state, train_net  # type: ignore[import-not-found]

__all__ = ["BATCHES", "FaultReport", "Mining", "SoakedRun", "Training", "make_workspace", "run_in_child", "soak"]

KILL, KILL_WRITING, TERMINATE, FULL_DISK, TORN = (
    "kill -9 at any time", "kill -9 between file operations", "SIGTERM at any time", "full disk", "torn last file",
)  # fmt: skip
SIGNALS = {KILL: signal.SIGKILL, TORN: signal.SIGKILL, TERMINATE: signal.SIGTERM}
STATUSES = {TERMINATE: (128 + signal.SIGTERM, -signal.SIGTERM), FULL_DISK: (2,)}  # the others: -SIGKILL

IMAGES = 48
BATCHES, GROUP = IMAGES // 2, 3
"""Batches of a mining pass, and of a group that is mined together."""

FAULTS_OF_A_ROUND = 6  # then the run may finish
PATIENCE = 300.0  # seconds until an attempt counts as hanging
PARTIAL_RESULTS = "*.mining-*/[0-9]*.safetensors"
OPTIONS = (
    *("STYLE_MINING.IMS_PER_BATCH", "2", "STYLE_MINING.STEPS", "20", "SOLVER.CHECKPOINTS_KEPT", "3"),
    *("MODEL_SELECTION.EMA_DECAY", "0.9", "MODEL_SELECTION.USE", "ema", "TEST.EVAL_PERIOD", "0"),
)


def make_workspace(folder: Path) -> Any:
    """Make the tests' Workspace with IMAGES training images: its own six, repeated."""
    workspace = Workspace(folder)
    for kind in ("images", "labels"):
        train = folder / "data" / kind / "train"
        for index in range(6, IMAGES):
            shutil.copyfile(train / f"{index % 6}.png", train / f"{index}.png")
    return workspace


def run_in_child(
    workspace: Any, arguments: Any, log: Path, prepare: Callable[[Any], None], file_limit: int | None = None
) -> int:
    """Start train_net in a forked process, which need not import anything again.

    Args:
        workspace: has the datasets.
        arguments: parsed command line.
        log: gets all output of the process.
        prepare: called in the process with the module train_net.
        file_limit: largest file in bytes, as on a full disk; None for no limit.

    Returns:
        The process id.
    """
    module = train_net()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        prepare(module)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        with workspace.registered():
            module.main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Progress:
    """Finished batches or iterations, in a file that outlives the process: a line for each, and for each attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: object) -> None:
        """Append a line at once."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    def last_attempt(self) -> list[int]:
        """Return the units that the last attempt has finished."""
        return [int(line) for line in self.path.read_text().rpartition("attempt")[2].split()]


class SoakedRun:
    """A kind of run: its command line, its progress and its result."""

    name: str
    faults: tuple[str, ...]
    flags: tuple[str, ...]
    options: tuple[str, ...] = OPTIONS

    def prepare(self, module: Any, progress: Progress) -> None:
        """Have a run note its progress; called in its process."""
        raise NotImplementedError

    def kept(self, output: Path) -> set[int]:
        """Return the batches or iterations that need not be repeated."""
        raise NotImplementedError

    def last_file(self, output: Path) -> Path | None:
        """Return the newest file of an unfinished run that may be torn, if there is one."""
        raise NotImplementedError

    def differences(self, output: Path, whole: Path) -> str:
        """Return how a result differs from the undisturbed one; "" if it does not."""
        raise NotImplementedError


class Mining(SoakedRun):
    """Mining alone, in small groups of batches, so that there are many places to continue from."""

    name, flags = "mining", ("--mine-styles-only",)
    faults = (KILL, KILL_WRITING, FULL_DISK, TORN)

    def prepare(self, module: Any, progress: Progress) -> None:
        """See SoakedRun."""
        mine_batches = StyleMiner.mine_batches

        def noting(miner: StyleMiner, batches: Sequence[Any]) -> Any:
            mined = mine_batches(miner, batches)
            for batch in mined:
                progress.write(batch.index)
            return mined

        StyleMiner.mine_batches = noting  # type: ignore[method-assign,assignment]
        mine.batches_per_group = lambda *sizes: GROUP

    def kept(self, output: Path) -> set[int]:
        """See SoakedRun; a group is kept as a whole."""
        if (output / "style_bank.safetensors").exists():
            return set(range(BATCHES))
        found = {int(path.stem) for path in output.glob(PARTIAL_RESULTS) if is_sound(load_file, path)}
        groups = [set(range(first, first + GROUP)) for first in range(0, BATCHES, GROUP)]
        return set().union(*(group for group in groups if group <= found))

    def last_file(self, output: Path) -> Path | None:
        """See SoakedRun."""
        return max(output.glob(PARTIAL_RESULTS), key=lambda path: path.stat().st_mtime_ns, default=None)

    def differences(self, output: Path, whole: Path) -> str:
        """See SoakedRun."""
        one, other = (StyleBank.load(folder / "style_bank.safetensors") for folder in (output, whole))
        same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("mean", "std", "class_ids"))
        same &= one.annotations.keys() == other.annotations.keys() and one.metadata == other.metadata
        same &= all(torch.equal(values, other.annotations[name]) for name, values in one.annotations.items())
        return "" if same else "the bank differs from that of the undisturbed run"


class IterationHook(HookBase):
    """Notes finished iterations; must be the last hook."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def after_step(self) -> None:
        """Note this one."""
        self.progress.write(self.trainer.iter)


class Training(SoakedRun):
    """Training with an existing bank."""

    name, flags = "training", ("--resume",)
    faults = (KILL, KILL_WRITING, TERMINATE, FULL_DISK, TORN)

    def __init__(self, iterations: int, period: int, bank: Path) -> None:
        length = ("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period))
        self.options = (*OPTIONS, "MODEL.STYLE.BANK", str(bank), *length)

    def prepare(self, module: Any, progress: Progress) -> None:
        """See SoakedRun."""
        build_hooks = module.Trainer.build_hooks
        module.Trainer.build_hooks = lambda trainer: [*build_hooks(trainer), IterationHook(progress)]

    def kept(self, output: Path) -> set[int]:
        """See SoakedRun."""
        sound = [path for path in output.glob("model_0*.pth") if is_sound(torch.load, path)]
        return set(range(max((int(path.stem.removeprefix("model_")) + 1 for path in sound), default=0)))

    def last_file(self, output: Path) -> Path | None:
        """See SoakedRun."""
        if len(list(output.glob("model_0*.pth"))) < 2:
            return None  # if the only one were torn, the run would have to stop
        return output / (output / "last_checkpoint").read_text()

    def differences(self, output: Path, whole: Path) -> str:
        """See SoakedRun."""
        try:
            for name in ("model_final.pth", "model_ema.pth"):
                one, other = (torch.load(folder / name, weights_only=True) for folder in (output, whole))
                assert_equal_state(one, other)
        except AssertionError as error:
            return f"the weights differ from those of the undisturbed run: {error}"
        return ""


def is_sound(load: Callable[[Path], Any], path: Path) -> bool:
    """Return whether a file loads."""
    try:
        load(path)
    except Exception:  # torch raises another type for every kind of damage
        return False
    return True


@dataclass
class FaultReport:
    """Outcomes of the faults of one kind.

    Attributes:
        injected: number of faults.
        survived: faults after which the run ended with the result of the undisturbed one.
        lost: finished batches or iterations that must be repeated, for each fault.
        wrong: descriptions of all other outcomes.
    """

    injected: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def soak(run: SoakedRun, workspace: Any, folder: Path, faults: int, seed: int) -> tuple[dict[str, FaultReport], int]:
    """Disturb runs until all faults are injected and the last run has finished.

    Args:
        run: kind of run.
        workspace: has its data.
        folder: of the outputs.
        faults: number of each kind.
        seed: of their order and moments.

    Returns:
        Kind of fault -> outcomes, and the number of finished runs.
    """
    rng = np.random.default_rng(seed)
    queue = [kind for kind in run.faults for _ in range(faults)]
    rng.shuffle(queue)
    reports = {kind: FaultReport() for kind in run.faults}
    whole = Attempts(run, workspace, folder / "whole", rng)
    start = time.perf_counter()
    assert whole.attempt(None) == 0, f"the undisturbed run failed: {whole.log.read_text()[-2000:]}"
    seconds, rounds = time.perf_counter() - start, 0
    while queue:
        rounds += 1
        disturbed = Attempts(run, workspace, folder / f"round_{rounds}", rng, seconds)
        injected = list(disturbed.disturb(queue))
        difference = disturbed.wrong or run.differences(disturbed.output, whole.output)
        for kind, lost in injected:
            reports[kind].injected += 1
            reports[kind].survived += not difference
            reports[kind].lost.append(lost)
        if difference:
            reports[injected[-1][0] if injected else queue[-1]].wrong.append(difference)
    return reports, rounds


class Attempts:
    """An output folder, and the attempts to finish its run."""

    def __init__(
        self, run: SoakedRun, workspace: Any, output: Path, rng: np.random.Generator, seconds: float = 0.0
    ) -> None:
        self.run, self.workspace, self.output, self.rng, self.seconds = run, workspace, output, rng, seconds
        self.log, self.progress = output.with_suffix(".log"), Progress(output.with_suffix(".progress"))
        self.wrong = ""

    def disturb(self, queue: list[str]) -> Iterator[tuple[str, int]]:
        """Inject faults of a queue into attempts, then let one finish; yields each fault and the units it lost."""
        kept: set[int] = set()
        for _ in range(FAULTS_OF_A_ROUND):
            if not queue or self.wrong:
                break
            kind = queue[-1]
            status = self.attempt(kind)
            if status == 0:
                return  # the run was faster than the fault, which the next run gets
            text = self.log.read_text(errors="replace")
            if status not in STATUSES.get(kind, (-signal.SIGKILL,)) or "Traceback" in text:
                self.wrong = f"{kind}: exit status {status}, {text[-500:]}"
            torn = self.run.last_file(self.output) if kind == TORN else None
            if torn is not None:
                content = torn.read_bytes()
                torn.write_bytes(content[: int(self.rng.integers(len(content)))])
            if kind == TORN and torn is None:
                kind = KILL  # no file to tear yet
            else:
                queue.pop()
            done = kept.union(self.progress.last_attempt())
            kept = self.run.kept(self.output)
            yield kind, len(done - kept)
        if not self.wrong and self.attempt(None) != 0:
            self.wrong = f"the run could not be finished: {self.log.read_text()[-500:]}"

    def attempt(self, kind: str | None) -> int:
        """Start or continue the run; returns its exit status, or minus the signal that killed it."""
        arguments = self.workspace.parse(self.output.name, *self.run.options, flags=self.run.flags)
        place = f"/{self.output.name}"
        arguments.opts = [str(self.output) if str(word).endswith(place) else word for word in arguments.opts]
        operation = int(self.rng.integers(1, 60)) if kind == KILL_WRITING else None
        limit = int(self.rng.integers(20_000, 60_000)) if kind == FULL_DISK else None

        def prepare(module: Any) -> None:
            self.run.prepare(module, self.progress)
            if operation is not None:
                kill_at(operation)

        self.progress.write("attempt")
        pid = run_in_child(self.workspace, arguments, self.log, prepare, limit)
        number, delay = SIGNALS.get(kind or ""), float(self.rng.uniform(0, 1.2 * self.seconds))
        start = time.monotonic()
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            passed = time.monotonic() - start
            if number is not None and passed > delay:
                os.kill(pid, number)
                number = None
            if passed > PATIENCE:
                os.kill(pid, signal.SIGABRT)
            time.sleep(0.005)
