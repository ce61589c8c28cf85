"""Runner for parallel experiments in separate processes, which skips finished runs and resumes stopped ones."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, TextIO

from famix.io.atomic import FileLock
from famix.reports import RESULTS_FILE
from famix.utils.environment import processor_name
from famix.utils.errors import FAMixError
from famix_minitown.runs.experiment import Experiment, read_record, same_settings, write_record

TRAIN = ("-P", "-m", "famix_cli.train")
"""Arguments of Python for a training; -P keeps modules of the current folder out."""

_CONSOLE, _LOCK = "console.log", "experiment.lock"
_LINES_OF_A_FAILURE = 15
_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 15.0
_DURATION = r"\d+ days?, [\d:]+|[\d:]+"
_STATUS = re.compile(
    rf"Mining: batch (?P<mined>\d+)/(?P<batches>\d+),.*?ETA (?P<mining_left>{_DURATION})"
    rf"|(?:eta: (?P<left>{_DURATION})\s+)?\biter: (?P<iteration>\d+)\b"
    r"|(?P<scoring>scoring \S+: \d+ batches)"
)


class ExperimentError(FAMixError):
    """Raised when an experiment fails or its folder is unusable."""


class ProgressLine:
    """Progress of several processes: one rewritten line on a terminal, or a line every `interval` seconds elsewhere.

    It writes to standard error by default.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 20.0) -> None:
        self.stream = stream or sys.stderr
        self.interval = interval
        self._shown, self._time = "", time.monotonic()
        self._terminal = self.stream.isatty()

    def show(self, line: str) -> None:
        """Show the current state unless it is empty or unchanged, or the next line is not due yet."""
        now = time.monotonic()
        if line == self._shown or not line or (not self._terminal and now - self._time < self.interval):
            return
        self._shown, self._time = line, now
        width = shutil.get_terminal_size().columns - 1  # a longer line would wrap and could not be rewritten
        self._write(f"\r\033[K{line[:width]}" if self._terminal else f"{line}\n")

    def say(self, line: str) -> None:
        """Write a permanent line."""
        self._shown = ""
        self._write(f"\r\033[K{line}\n" if self._terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def run_experiments(
    experiments: Sequence[Experiment],
    *,
    jobs: int = 2,
    progress: ProgressLine | None = None,
    on_finish: Callable[[Experiment], None] = lambda experiment: None,
) -> None:
    """Run experiments in parallel, skipping finished ones and resuming stopped ones.

    If the settings of an experiment differ from those in its folder, the folder is renamed and the experiment starts
    from scratch. All folders stay locked until the end, which also keeps out other calls.

    Args:
        experiments: experiments to run, each with its own folder.
        jobs: number of experiments that run at a time, each on one thread.
        progress: display for the state of all experiments.
        on_finish: called with every finished experiment, including those that were already finished.

    Raises:
        ExperimentError: an experiment failed and the others were stopped, or a folder is unusable or locked.
        ConfigError, WeightsError, BankError: see `Experiment.settings`.
    """
    progress = progress or ProgressLine()
    running: list[_Run] = []
    with ExitStack() as locks:
        pending = []
        for experiment in experiments:
            settings = experiment.settings()
            if experiment.is_finished(settings):  # no lock needed, since no process writes there
                progress.say(f"{experiment.name}: already finished, skipped")
                on_finish(experiment)
            else:
                pending.append(_Run(experiment, _prepare(experiment, settings, progress, locks)))
        try:
            while pending or running:
                while pending and len(running) < jobs:
                    running.append(pending.pop(0))
                    running[-1].start()
                time.sleep(_POLL_SECONDS)
                ended = [run for run in running if run.process.poll() is not None]
                for run in ended:  # recorded before the failure of one run ends all
                    run.record_end()
                    running.remove(run)
                for run in ended:
                    run.require_success(progress)
                    progress.say(f"{run.experiment.name}: finished after {run.experiment.seconds():.0f} s")
                    on_finish(run.experiment)
                waiting = [f"{len(pending)} more waiting"] if pending else []
                progress.show(" | ".join([*(run.status() for run in running), *waiting]))
        finally:
            _stop(running)


def _prepare(
    experiment: Experiment, settings: Mapping[str, Any], progress: ProgressLine, locks: ExitStack
) -> int | None:
    """Lock the folder of an experiment, write its record, and return the lock for the experiment's process."""
    folder = experiment.output

    def lock() -> int | None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(folder / _LOCK)
        except (BlockingIOError, FileNotFoundError):  # or the folder was renamed just now
            raise ExperimentError(
                f"'{folder}' is being written by another process. Wait for it to end, or choose a different folder."
            ) from None
        locks.callback(held.close)  # the file stays, and so does the lock of a process that inherited it
        return held.descriptor

    started = folder.is_dir() and {path.name for path in folder.iterdir()} <= {_LOCK}
    if folder.exists() and not started and not read_record(folder):
        raise ExperimentError(f"'{folder}' contains files but no experiment. Choose a different folder.")
    descriptor, record = lock(), read_record(folder)
    if record and not same_settings(record.get("settings"), settings):
        names = (folder.with_name(f"{folder.name}.before{number}") for number in itertools.count(1))
        before = folder.rename(next(name for name in names if not name.exists()))
        progress.say(f"{experiment.name}: moved a run with different settings to {before}; starting from scratch")
        descriptor = lock()
    noted = {"settings": settings, "machine": processor_name(), "seconds": experiment.seconds(), "finished": False}
    write_record(folder, noted)
    return descriptor


def _stop(runs: Sequence["_Run"]) -> None:
    """Interrupt all processes and their workers, and kill those that have not ended after a while."""
    runs = [run for run in runs if "process" in vars(run)]  # the last one may not have started
    try:
        for run in runs:
            run.send(signal.SIGINT)
        deadline = time.monotonic() + _SECONDS_TO_STOP
        for run in runs:
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for run in runs:
            run.send(signal.SIGKILL)
        for run in runs:
            run.record_end()


class _Run:
    """Experiment with a prepared folder, and its process."""

    process: "subprocess.Popen[bytes]"  # set by start()

    def __init__(self, experiment: Experiment, lock: int | None) -> None:
        self.experiment, self.lock = experiment, lock
        cfg = experiment.load_config()
        self.iterations, self.targets = cfg.SOLVER.MAX_ITER, len(cfg.DATASETS.TEST)
        self.log = experiment.output / _CONSOLE
        self._read = self.log.stat().st_size if self.log.exists() else 0  # bytes of earlier starts
        self._seconds = experiment.seconds()  # of earlier starts
        self._scored, self._status = 0, "starting"

    def start(self) -> None:
        self._start = time.monotonic()
        command = [sys.executable, *TRAIN, "--config-file", str(self.experiment.config), "--resume"]
        with self.log.open("a") as console:
            self.process = subprocess.Popen(
                [*command, *self.experiment.overrides],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C reaches it and its workers only once, from here
                pass_fds=() if self.lock is None else (self.lock,),  # it keeps the lock if it outlives this process
            )  # fmt: skip

    def status(self) -> str:
        """Return a phrase about the current work, based on the new lines of the log."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole_lines = text[: text.rfind(b"\n") + 1]
        self._read += len(whole_lines)
        for match in _STATUS.finditer(whole_lines.decode(errors="replace")):
            if match["mined"]:
                self._status = f"mining {match['mined']}/{match['batches']}, {match['mining_left']} left"
            elif match["iteration"]:
                left = f", {match['left']} left" if match["left"] else ""
                self._status = f"training {int(match['iteration']) + 1}/{self.iterations}{left}"
            else:
                self._scored += 1
                self._status = f"scoring {min(self._scored, self.targets)}/{self.targets}"
        return f"{self.experiment.name}: {self._status}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its workers, unless it has ended."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    @property
    def succeeded(self) -> bool:
        """Whether the ended process has completed all of its work, even if it was asked to stop in the meantime."""
        return self.process.returncode == 0 and (self.experiment.output / RESULTS_FILE).exists()

    def record_end(self) -> None:
        self.process.wait()
        record = read_record(self.experiment.output)
        seconds = self._seconds + time.monotonic() - self._start
        write_record(self.experiment.output, {**record, "seconds": seconds, "finished": self.succeeded})

    def require_success(self, progress: ProgressLine) -> None:
        """Show the end of the log and raise ExperimentError if the process has failed."""
        if self.succeeded:
            return
        lines = self.log.read_text(errors="replace").splitlines()[-_LINES_OF_A_FAILURE:]
        progress.say("\n".join([f"{self.experiment.name}: the end of {self.log}", *(f"    {line}" for line in lines)]))
        raise ExperimentError(
            f"{self.experiment.name} ended with exit status {self.process.returncode}: "
            f"{lines[-1].strip() if lines else 'no output'}. See the end of its log above and the full log in {self.log}."
        )
