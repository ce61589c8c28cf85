"""Runs experiments side by side, each in a process of its own: started, watched, continued, skipped where they are done."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from famix.io.atomic import FileLock
from famix.reports import RESULTS_FILE
from famix.utils.environment import processor_name
from famix.utils.errors import ConfigError, FAMixError
from famix_minitown.experiment import Experiment, is_finished, read_record, same_settings, write_record
from famix_minitown.progress_line import ProgressLine

__all__ = ["ExperimentError", "run_experiments"]

TRAIN_NET = Path(__file__).parents[1] / "train_net.py"  # only a clone has it

_CONSOLE = "console.log"
_LOCK = "experiment.lock"
_LINES_OF_A_FAILURE = 15
_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 15.0
_DURATION = r"\d+ days?, [\d:]+|[\d:]+"
_STATUS = re.compile(
    rf"Mining: batch (?P<mined>\d+)/(?P<batches>\d+),.*?ETA (?P<mining_left>{_DURATION})"
    rf"|(?:eta: (?P<left>{_DURATION})\s+)?\biter: (?P<iteration>\d+)\b"
    r"|(?P<scoring>Start inference on)"
)


class ExperimentError(FAMixError):
    """An experiment that failed, or whose folder cannot be used."""


def run_experiments(
    experiments: Sequence[Experiment],
    *,
    jobs: int = 2,
    threads: int = 1,
    progress: ProgressLine | None = None,
    on_finish: Callable[[Experiment], None] = lambda experiment: None,
) -> None:
    """Run experiments side by side. Those that are finished are skipped, those that were stopped continue.

    An experiment whose settings differ from those of its folder starts anew; the folder of before is kept beside it.
    All folders that are written into are locked from the start to the end, also against other calls.

    Args:
        experiments: each with a folder of its own.
        jobs: how many run at a time.
        threads: of each, as OMP_NUM_THREADS.
        progress: where to show how far they are.
        on_finish: called with every experiment as soon as it is finished, also with those that were before.

    Raises:
        ExperimentError: one failed, after the end of its log was shown, and the others were stopped; or a folder holds something
            else than an experiment, or another process writes into it.
        ConfigError: jobs or threads is below 1, or see `Experiment.settings`.
        WeightsError, BankError: see `Experiment.settings`.
    """
    for key, value in {"jobs": jobs, "threads": threads}.items():
        if value < 1:
            raise ConfigError(f"{key} is {value}, expected at least 1")
    if not TRAIN_NET.is_file():
        raise ConfigError(f"got no {TRAIN_NET}, which runs an experiment; use a clone of the repository")
    progress = progress or ProgressLine()
    with ExitStack() as locks:
        pending = []
        for experiment in experiments:
            settings = experiment.settings()
            if is_finished(experiment.output, settings):  # no lock: nobody writes there
                progress.say(f"{experiment.name}: finished before, kept as it is")
                on_finish(experiment)
            else:
                pending.append(_Run(experiment, threads, _prepare(experiment, settings, progress, locks)))
        _run_all(pending, jobs, progress, on_finish)


def _run_all(pending: list["_Run"], jobs: int, progress: ProgressLine, on_finish: Callable[[Experiment], None]) -> None:
    """Run what is pending, so many at a time; whatever ends this, none of them runs on."""
    running: list[_Run] = []
    try:
        while pending or running:
            while pending and len(running) < jobs:
                running.append(pending.pop(0))
                running[-1].start()
            time.sleep(_POLL_SECONDS)
            ended = [run for run in running if run.has_ended()]
            for run in ended:  # before one that failed ends it all
                run.record_end()
                running.remove(run)
            for run in ended:
                run.require_success(progress)
                progress.say(f"{run.experiment.name}: finished after {run.experiment.seconds():.0f} s")
                on_finish(run.experiment)
            waiting = [f"{len(pending)} more wait"] if pending else []
            progress.show(" | ".join([*(run.status() for run in running), *waiting]))
    finally:
        _stop(running)


def _stop(runs: Sequence["_Run"]) -> None:
    """End all processes and their workers; checkpoints stay. They have a while, unless a signal comes meanwhile."""
    try:
        for run in runs:
            run.send(signal.SIGINT)
        deadline = time.monotonic() + _SECONDS_TO_STOP
        for run in runs:
            run.wait_until(deadline)
    finally:
        for run in runs:
            run.send(signal.SIGKILL)
        for run in runs:
            run.record_end()


class _Run:
    """An experiment, and the process that does it.

    Args:
        experiment: in a folder that is prepared.
        threads: see `run_experiments`.
        lock: of the folder, see `_lock`.
    """

    process: "subprocess.Popen[bytes] | None" = None  # until it is started

    def __init__(self, experiment: Experiment, threads: int, lock: int | None) -> None:
        self.experiment = experiment
        self.threads = threads
        self.lock = lock
        cfg = experiment.load_config()
        self.iterations, self.targets = cfg.SOLVER.MAX_ITER, len(cfg.DATASETS.TEST)
        self.log = experiment.output / _CONSOLE
        self._read = self.log.stat().st_size if self.log.exists() else 0  # what earlier starts wrote
        self._seconds = experiment.seconds()  # of earlier starts
        self._scored = 0
        self._status = "starting"

    def start(self) -> None:
        """Start the process."""
        self._start = time.monotonic()
        command = [sys.executable, str(TRAIN_NET), "--config-file", str(self.experiment.config), "--resume"]
        with self.log.open("a") as console:
            self.process = subprocess.Popen(
                [*command, *self.experiment.overrides],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # an interruption reaches it once, from here, with all its workers
                pass_fds=() if self.lock is None else (self.lock,),  # it keeps the lock if it outlives this process
            )  # fmt: skip

    def status(self) -> str:
        """One phrase on what it does now, from what it has logged meanwhile."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole_lines = text[: text.rfind(b"\n") + 1]
        self._read += len(whole_lines)
        for match in _STATUS.finditer(whole_lines.decode(errors="replace")):
            self._status = self._describe(match)
        return f"{self.experiment.name}: {self._status}"

    def _describe(self, match: "re.Match[str]") -> str:
        if match["mined"]:
            return f"mining {match['mined']}/{match['batches']}, {match['mining_left']} left"
        if match["iteration"]:
            left = f", {match['left']} left" if match["left"] else ""
            return f"training {int(match['iteration']) + 1}/{self.iterations}{left}"
        self._scored += 1
        return f"scoring {min(self._scored, self.targets)}/{self.targets}"

    def has_ended(self) -> bool:
        """Whether the process was started and has ended."""
        return self.process is not None and self.process.poll() is not None

    def wait_until(self, deadline: float) -> None:
        """Wait for the end of the process, if it was started, but not for ever."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, deadline - time.monotonic()))

    def send(self, number: signal.Signals) -> None:
        """Send the process and its workers a signal, unless it has ended."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def record_end(self) -> None:
        """Take note of the end of the process, which is near."""
        if self.process is not None:
            self.process.wait()
            record = read_record(self.experiment.output)
            seconds = self._seconds + time.monotonic() - self._start
            write_record(self.experiment.output, {**record, "seconds": seconds, "finished": self._succeeded()})

    def require_success(self, progress: ProgressLine) -> None:
        """Show the end of the log and raise ExperimentError, if the process has failed."""
        if self._succeeded():
            return
        assert self.process is not None
        lines = self.log.read_text(errors="replace").splitlines()[-_LINES_OF_A_FAILURE:]
        progress.say("\n".join([f"{self.experiment.name}: the end of {self.log}", *(f"    {line}" for line in lines)]))
        raise ExperimentError(
            f"{self.experiment.name} ended with exit status {self.process.returncode}: "
            f"{lines[-1].strip() if lines else 'it wrote nothing'}; see the end of its log above, and all of it in {self.log}"
        )

    def _succeeded(self) -> bool:
        """Whether it has done all of it, even if it was asked to stop meanwhile."""
        return (
            self.process is not None
            and self.process.returncode == 0
            and (self.experiment.output / RESULTS_FILE).exists()
        )


def _prepare(
    experiment: Experiment, settings: Mapping[str, Any], progress: ProgressLine, locks: ExitStack
) -> int | None:
    """Make the folder fit for a start, and lock it; returns the lock."""
    folder = experiment.output
    if not _is_ours(folder):
        raise ExperimentError(f"{folder} holds no experiment but something else; name another folder")
    lock = _lock(folder, locks)
    record = read_record(folder)
    if record and not same_settings(record.get("settings"), settings):
        progress.say(f"{experiment.name}: made with other settings, now in {_set_aside(folder)}; made anew")
        lock, record = _lock(folder, locks), {}
    seconds = experiment.seconds()
    machine = processor_name()  # which goes on with it now
    write_record(folder, {"settings": settings, "machine": machine, "seconds": seconds, "finished": False})
    return lock


def _is_ours(folder: Path) -> bool:
    """Whether there is an experiment or nothing; whatever else it is, it is not ours to remove."""
    if not folder.exists() or read_record(folder):
        return True
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {_LOCK}  # a start may have come no further


def _lock(folder: Path, locks: ExitStack) -> int | None:
    """Lock a folder, which is made if there is none, against all other processes that would write into it.

    Args:
        folder: of an experiment.
        locks: gives the lock back at its end.

    Returns:
        The file descriptor that holds the lock, as every process that inherits it does; None where there are no locks.

    Raises:
        ExperimentError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / _LOCK)
    except (BlockingIOError, FileNotFoundError):  # or the folder was just set aside
        raise ExperimentError(
            f"{folder} is being written by another process; wait for it to end, or name another folder"
        ) from None
    locks.callback(lock.close)  # the file stays: so does the lock, with a process that inherited it
    return lock.descriptor


def _set_aside(folder: Path) -> Path:
    """Rename a folder to one that does not exist yet, beside it."""
    names = (folder.with_name(f"{folder.name}.before{number}") for number in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))
