"""The experiment driver: a study runs methods over seeds, keeps a record of each finished run and prints a report.

A record is one JSON line in a file of its own, `<method>_seed<seed>.json`. It replaces the run directory: a later call
with the same settings prints the table without it.
"""

import argparse
import hashlib
import json
import logging
import math
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import torch
from tabulate import tabulate

from famix.data import register_datasets
from famix.io import parse_json, read_text
from famix.io.atomic import whole_file
from famix.mining import matching_noise_scale
from famix.mining.measured import measure_bank
from famix.reports import RESULTS_FILE, read_results
from famix.style import StyleBank
from famix.utils.environment import processor_name
from famix.utils.errors import FAMixError
from famix_minitown.experiment import Experiment, condition_of, read_record, same_settings
from famix_minitown.runner import run_experiments

__all__ = ["RecordError", "RunRecord", "Study", "describe_machine", "markdown", "one_line_errors", "record_of"]

_MAX_BYTES = 1 << 20
_DIGITS = 4  # of a score in percent; tables print one
_FAILED, _SIGNALLED = 1, 128  # exit status; a signal adds its number, as in a shell
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows: no SIGHUP


class RecordError(FAMixError):
    """A record that cannot be read."""


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        method: name of the method in the study.
        seed: of mining and training.
        settings: see `Experiment.settings`.
        machine: name of the processor.
        date: of the scoring, YYYY-MM-DD.
        seconds: spent on mining, training and scoring.
        versions: package -> version.
        scores: condition -> {"mIoU": percent, "IoU": {class: percent}}.
    """

    method: str
    seed: int
    settings: Mapping[str, Any]
    machine: str
    date: str
    seconds: float
    versions: Mapping[str, str]
    scores: Mapping[str, Mapping[str, Any]]

    @property
    def miou(self) -> dict[str, float]:
        """Condition -> mIoU in percent."""
        return {condition: score["mIoU"] for condition, score in self.scores.items()}

    def fits(self, experiment: Experiment, derived: Collection[str] = ()) -> bool:
        """Return whether the run has the settings of an experiment, `derived` keys aside (see `same_settings`)."""
        return same_settings(self.settings, experiment.settings(), derived)

    def save(self, folder: Path) -> None:
        """Write the record to its file in a folder."""
        with whole_file(folder / f"{self.method}_seed{self.seed}.json") as part:
            part.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path, method: str, seed: int) -> "RunRecord | None":
        """Read the record of a run; None if it does not exist.

        Raises:
            RecordError: the file is not such a record.
        """
        path = folder / f"{method}_seed{seed}.json"
        if not path.exists():
            return None
        try:
            record = cls(**parse_json(read_text(path, _MAX_BYTES)))
            sound = (record.method, record.seed) == (method, seed) and all(map(math.isfinite, record.miou.values()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            sound = False
        if not sound:
            raise RecordError(f"{path} must be the record of {method} with seed {seed}. Delete it to repeat the run.")
        return record


def record_of(experiment: Experiment, method: str) -> RunRecord:
    """Make the record of a finished experiment.

    Raises:
        DatasetError: the experiment has no scores.
    """
    file, noted = experiment.output / RESULTS_FILE, read_record(experiment.output)
    scores = {}
    for name, tasks in read_results(file).items():
        metrics = tasks["sem_seg"]
        classes = {
            key.removeprefix("IoU-"): round(value, _DIGITS)
            for key, value in metrics.items()
            if key.startswith("IoU-") and not math.isnan(value)
        }
        scores[condition_of(name)] = {"mIoU": round(metrics["mIoU"], _DIGITS), "IoU": classes}
    facts = parse_json(read_text(file, _MAX_BYTES)).get("report", {}).get("run", {})
    return RunRecord(
        method, experiment.seed, experiment.settings(), str(noted.get("machine", "")),
        str(facts.get("date", ""))[:10], round(float(noted.get("seconds", 0.0)), 1), facts.get("versions", {}), scores,
    )  # fmt: skip


class Study:
    """Methods x seeds. A benchmark derives from it and implements `experiment`, `run` and `report`.

    Args:
        arguments: output, seeds, jobs, opts and optionally quick and clip, see benchmarks/arguments.py.

    Attributes:
        output: folder of the runs.
        seeds: without repetitions.
        jobs: runs side by side.
        options: KEY VALUE pairs that override the settings of every method.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path = arguments.output
        self.seeds: list[int] = list(dict.fromkeys(arguments.seeds))
        self.jobs: int = arguments.jobs
        self.options: tuple[str, ...] = tuple(arguments.opts)
        if arguments.quick is not None:
            self.options += ("SOLVER.MAX_ITER", str(arguments.quick))

    def experiment(self, method: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """Return the run of a method; `options` come last."""
        raise NotImplementedError

    def run(self) -> None:
        """Make all runs."""
        raise NotImplementedError

    def report(self, command: str) -> str:
        """Return the report in Markdown; `command` is the command line that prints it."""
        raise NotImplementedError

    def make(self, method: str, seed: int, config: Path, options: Sequence[str]) -> Experiment:
        """Make an experiment in a folder of its own, with the study's options behind those of the method."""
        folder = self.output / method.replace(" ", "_") / f"seed{seed}"
        return Experiment(f"{method}/{seed}", config, folder, (*options, *self.options), seed)

    def run_experiments(
        self, experiments: Iterable[Experiment], on_finish: Callable[[Experiment], None] = lambda experiment: None
    ) -> None:
        """Make runs, each on one thread; `on_finish` gets each finished one."""
        run_experiments(list(experiments), jobs=self.jobs, on_finish=on_finish)

    def results(self, method: str, seed: int) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """Return the scores of a finished run: dataset -> task -> metric -> value."""
        return read_results(self.experiment(method, seed).output / RESULTS_FILE)

    def mined_bank(self, method: str, seed: int) -> StyleBank:
        """Load the bank that a finished run has mined."""
        return StyleBank.load(self.experiment(method, seed).output / "style_bank.safetensors")

    def measured_bank(self, experiment: Experiment, datasets: Sequence[str], name: str) -> Path:
        """Measure a bank on labeled images, once for the same CLIP, settings and images.

        Args:
            experiment: has the CLIP and the settings, and no bank of its own.
            datasets: registered names.
            name: first part of the file name.
        """
        key = hashlib.sha256(json.dumps([experiment.settings(), list(datasets)], sort_keys=True).encode()).hexdigest()
        path = self.output / "banks" / f"{name}_{key[:12]}.safetensors"
        if not path.exists():
            cfg = experiment.load_config()
            register_datasets(cfg.DATASETS.FILES)
            measure_bank(cfg, list(datasets)).save(path)
        return path

    def noise_scale(self, mined: StyleBank, source: Path) -> tuple[str, str]:
        """Return the setting with which noise moves the statistics of `source` as far as mined styles do."""
        return "MODEL.STYLE.NOISE_SCALE", f"{matching_noise_scale(mined, StyleBank.load(source)):.6f}"

    def describe_runs(self, experiments: Iterable[Experiment]) -> str:
        """Return a line about this machine, and about the processors that the runs were made on."""
        unknown = "an unknown processor"
        machines = {str(read_record(experiment.output).get("machine", unknown)) for experiment in experiments}
        return (
            f"{describe_machine()}; {self.jobs} runs side by side, a thread each, on {' and '.join(sorted(machines))}"
        )

    def main(self, script: str, file: Path | None) -> str:
        """Make the runs and return the report; errors and interruptions end the process with one line.

        Args:
            script: name of the benchmark's file.
            file: also gets the report.
        """
        torch.set_num_threads(1)  # a measured bank is the same on every number of cores
        with one_line_errors():
            self.run()
            report = self.report(shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]))
            if file is not None:
                with whole_file(file) as part:
                    part.write_text(report)
        return report


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on an error of the user, on Ctrl-C, SIGTERM and SIGHUP, so that no run outlives it.

    Progress is logged to standard error. The exit status is 1, or 128 plus the number of the signal. A SIGHUP that
    nohup ignores stays ignored.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("famix_minitown").setLevel(logging.INFO)
    handlers = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _terminate)
    try:
        yield
    except (FAMixError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_FAILED)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command continues the runs\n")
        sys.exit(_SIGNALLED + signal.SIGINT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: object) -> NoReturn:
    for request in _STOP_SIGNALS:
        signal.signal(request, signal.SIG_IGN)  # a closing shell sends several; the runs must still end in order
    sys.exit(_SIGNALLED + number)


def describe_machine(device: str = "cpu") -> str:
    """Return date, processor or GPU, threads, memory and versions: the line above the table of a benchmark."""
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else processor_name()
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    memory = next((round(int(line.split()[1]) / 2**20) for line in lines if line.startswith("MemTotal")), "?")
    return (
        f"{date.today()}, {hardware}, {torch.get_num_threads()} threads, {memory} GiB, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]], **options: Any) -> str:
    """Return a Markdown table; cells that are strings stay as they are. `options` go to `tabulate`."""
    return tabulate(rows, headers=headers, tablefmt="github", **({"disable_numparse": True} | options))
