"""Runs experiments side by side, each in a process of its own: started, watched, continued, skipped where they are done."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from famix.errors import ConfigError, FAMixError
from famix.evaluation import RESULTS_FILE
from famix.minitown.experiment import Experiment, read_record, write_record
from famix.minitown.progress_line import ProgressLine

__all__ = ["ExperimentError", "run_experiments"]

TRAIN_NET = Path(__file__).parents[2] / "train_net.py"  # only a clone has it

_CONSOLE = "console.log"
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
    experiments: Sequence[Experiment], *, jobs: int = 2, threads: int = 1, progress: ProgressLine | None = None
) -> None:
    """Run experiments side by side. Those that are finished are skipped, those that were stopped continue.

    An experiment whose settings differ from those of its folder starts anew; the folder of before is kept beside it.

    Args:
        experiments: each with a folder of its own.
        jobs: how many run at a time.
        threads: of each, as OMP_NUM_THREADS.
        progress: where to show how far they are.

    Raises:
        ExperimentError: one failed, with the end of its log, and the others were stopped; or a folder holds something
            else than an experiment.
        ConfigError, WeightsError, BankError: see `Experiment.settings`.
    """
    if not TRAIN_NET.is_file():
        raise ConfigError(f"got no {TRAIN_NET}, which runs an experiment; use a clone of the repository")
    progress = progress or ProgressLine()
    pending = [experiment for experiment in experiments if not _prepare(experiment, progress)]
    for experiment in experiments:
        if experiment not in pending:
            progress.say(f"{experiment.name}: finished before, kept as it is")
    running: list[_Run] = []
    try:
        while pending or running:
            while pending and len(running) < jobs:
                running.append(_Run(pending.pop(0), threads))
            time.sleep(_POLL_SECONDS)
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                run.finish()
                progress.say(f"{run.experiment.name}: finished after {run.experiment.seconds():.0f} s")
            waiting = [f"{len(pending)} more wait"] if pending else []
            progress.show(" | ".join([*(run.status() for run in running), *waiting]))
    finally:
        for run in running:
            run.stop()


class _Run:
    """An experiment whose process runs."""

    def __init__(self, experiment: Experiment, threads: int) -> None:
        self.experiment = experiment
        self.start = time.monotonic()
        cfg = experiment.load_config()
        self.iterations, self.targets = cfg.SOLVER.MAX_ITER, len(cfg.DATASETS.TEST)
        self.log = experiment.output / _CONSOLE
        self._read = self.log.stat().st_size if self.log.exists() else 0  # what earlier starts wrote
        self._scored = 0
        self._status = "starting"
        command = [sys.executable, str(TRAIN_NET), "--config-file", str(experiment.config), "--resume"]
        with self.log.open("a") as console:
            self.process = subprocess.Popen(
                [*command, *experiment.overrides],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # an interruption reaches it once, from here, with all its workers
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

    def finish(self) -> None:
        """Take note of the end of the process."""
        succeeded = self.process.returncode == 0 and (self.experiment.output / RESULTS_FILE).exists()
        self._record_end(succeeded)
        if not succeeded:
            lines = self.log.read_text(errors="replace").splitlines()[-_LINES_OF_A_FAILURE:]
            raise ExperimentError(
                f"{self.experiment.name} ended with exit status {self.process.returncode}; the end of {self.log}:\n"
                + "\n".join(f"    {line}" for line in lines)
            )

    def stop(self) -> None:
        """End the process and its workers; its checkpoints stay."""
        self._signal(signal.SIGINT)
        try:
            self.process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()
        self._record_end(finished=False)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _record_end(self, finished: bool) -> None:
        record = read_record(self.experiment.output)
        seconds = record.get("seconds", 0.0) + time.monotonic() - self.start
        write_record(self.experiment.output, {**record, "seconds": seconds, "finished": finished})


def _prepare(experiment: Experiment, progress: ProgressLine) -> bool:
    """Make the folder fit for a start; returns whether there is nothing left to do."""
    folder, settings = experiment.output, experiment.settings()
    record = read_record(folder)
    if record.get("settings") == settings:
        return bool(record.get("finished")) and (folder / RESULTS_FILE).exists()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not record:  # whatever it is, it is not ours to remove
            raise ExperimentError(f"{folder} holds no experiment but something else; name another folder")
        progress.say(f"{experiment.name}: made with other settings, now in {_set_aside(folder)}; made anew")
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, {"settings": settings, "seconds": 0.0, "finished": False})
    return False


def _set_aside(folder: Path) -> Path:
    """Rename a folder to one that does not exist yet, beside it."""
    names = (folder.with_name(f"{folder.name}.before{number}") for number in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))
