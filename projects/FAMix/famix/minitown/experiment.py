"""Experiments of the town, each in a process of its own: started, watched, continued, and skipped where they are done.

A folder of an experiment holds what train_net.py leaves in OUTPUT_DIR, and
    experiment.json     the settings, the seconds spent so far, and whether it is finished
    console.log         all output of train_net.py
"""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from detectron2.config import CfgNode

from famix.engine import load_config
from famix.errors import ConfigError, FAMixError
from famix.evaluation import RESULTS_FILE, read_results
from famix.files import whole_file
from famix.minitown.conditions import CONDITIONS
from famix.minitown.splits import FORMAT_VERSION
from famix.modeling import clip_weights_hash, load_clip_state_dict
from famix.style import StyleBank

__all__ = [
    "CONFIGS",
    "Experiment",
    "ExperimentError",
    "ProgressLine",
    "condition_of",
    "read_scores",
    "run_experiments",
    "unseen_mean",
]

_PROJECT = Path(__file__).parents[2]  # only a clone has the script and the configs
TRAIN_NET = _PROJECT / "train_net.py"
CONFIGS = _PROJECT / "configs/minitown"

_RECORD, _CONSOLE = "experiment.json", "console.log"
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


@dataclass(frozen=True)
class Experiment:
    """A run of train_net.py.

    Attributes:
        name: for messages.
        config: the YAML file.
        output: folder of its own.
        options: KEY VALUE KEY VALUE ..., which override the file.
        seed: of training and of mining, so that the spread over seeds contains that of mining.
    """

    name: str
    config: Path
    output: Path
    options: tuple[str, ...] = ()
    seed: int = 1

    @property
    def overrides(self) -> list[str]:
        """All KEY VALUE pairs that go behind the config file."""
        seed = str(self.seed)
        return [*self.options, "OUTPUT_DIR", str(self.output), "SEED", seed, "STYLE_MINING.SEED", seed]

    def load_config(self) -> CfgNode:
        """The merged config.

        Raises:
            ConfigError: see `famix.engine.load_config`.
        """
        return load_config(str(self.config), self.overrides)

    def settings(self) -> dict[str, str]:
        """What the result follows from, whatever the folders are called: config, CLIP, a given bank, the images.

        Raises:
            ConfigError: see `famix.engine.load_config`.
            WeightsError, BankError: CLIP or the bank cannot be read.
        """
        cfg = self.load_config()
        weights, bank = cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.STYLE.BANK
        clip_hash = clip_weights_hash(load_clip_state_dict(weights)) if weights else ""
        cfg.OUTPUT_DIR = cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.STYLE.BANK = ""
        town = str(FORMAT_VERSION)  # its images change with it
        return {"config": cfg.dump(), "clip_hash": clip_hash, "bank": _bank_hash(bank), "town": town}

    def seconds(self) -> float:
        """Time spent on it so far, over all starts."""
        return float(_read_record(self.output).get("seconds", 0.0))


def run_experiments(
    experiments: Sequence[Experiment], *, jobs: int = 2, threads: int = 1, progress: "ProgressLine | None" = None
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


def condition_of(dataset_name: str) -> str:
    """Condition of a data set: "night" of "minitown_night_val"."""
    return dataset_name.removesuffix("_val").rsplit("_", 1)[-1]


def read_scores(folder: Path) -> dict[str, float]:
    """Scores of a finished experiment.

    Returns:
        Condition -> mIoU in percent, in the order of DATASETS.TEST.

    Raises:
        DatasetError: there are none.
    """
    results = read_results(folder / RESULTS_FILE)
    return {condition_of(name): tasks["sem_seg"]["mIoU"] for name, tasks in results.items()}


def unseen_mean(scores: Mapping[str, float]) -> float:
    """Mean over the conditions that training has not seen; NaN where there is none."""
    unseen = [score for condition, score in scores.items() if condition != CONDITIONS[0]]
    return sum(unseen) / len(unseen) if unseen else math.nan


class ProgressLine:
    """Shows how far work is: one line that is rewritten on a terminal, else a line now and then.

    Args:
        stream: None takes standard error.
        interval: seconds between lines where the stream is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 20.0) -> None:
        self.stream = stream or sys.stderr
        self.interval = interval
        self._shown, self._time = "", time.monotonic()
        self._terminal = self.stream.isatty()

    def show(self, line: str) -> None:
        """Show the state of now, if it is worth a line."""
        now = time.monotonic()
        if line == self._shown or not line or (not self._terminal and now - self._time < self.interval):
            return
        self._shown, self._time = line, now
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1  # a longer line would wrap, and could not be rewritten
            self._write(f"\r\033[K{line[:width]}")
        else:
            self._write(f"{line}\n")

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._shown = ""
        self._write(f"\r\033[K{line}\n" if self._terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


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
        record = _read_record(self.experiment.output)
        seconds = record.get("seconds", 0.0) + time.monotonic() - self.start
        _write_record(self.experiment.output, {**record, "seconds": seconds, "finished": finished})


def _prepare(experiment: Experiment, progress: ProgressLine) -> bool:
    """Make the folder fit for a start; returns whether there is nothing left to do."""
    folder, settings = experiment.output, experiment.settings()
    record = _read_record(folder)
    if record.get("settings") == settings:
        return bool(record.get("finished")) and (folder / RESULTS_FILE).exists()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not record:  # whatever it is, it is not ours to remove
            raise ExperimentError(f"{folder} holds no experiment but something else; name another folder")
        progress.say(f"{experiment.name}: made with other settings, now in {_set_aside(folder)}; made anew")
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(folder, {"settings": settings, "seconds": 0.0, "finished": False})
    return False


def _set_aside(folder: Path) -> Path:
    """Rename a folder to one that does not exist yet, beside it."""
    names = (folder.with_name(f"{folder.name}.before{number}") for number in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))


def _bank_hash(path: str) -> str:
    """Of the styles, not of the file, whose metadata come in any order; the path itself where a bank is to be mined."""
    if not Path(path).is_file():
        return path
    bank = StyleBank.load(path)
    return clip_weights_hash({"mean": bank.mean, "std": bank.std, "class_ids": bank.class_ids.float()})


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    with whole_file(folder / _RECORD) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")
