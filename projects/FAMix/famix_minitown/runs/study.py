"""Studies of experiments: records of finished runs, one-line errors for commands, and report headers.

Each record is one JSON line in its own file, `<method>_seed<seed>.json`. It replaces the run directory: a later call
with the same settings prints the table without that directory.
"""

import json
import logging
import math
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import torch
from tabulate import tabulate

from famix.io import parse_json, read_text
from famix.io.atomic import whole_file
from famix.reports import RESULTS_FILE, read_results
from famix.reports.report import CLASS_ACCURACY, CLASS_IOU
from famix.utils.environment import processor_name
from famix.utils.errors import FAMixError
from famix_minitown.runs.experiment import Experiment, condition_of, read_record

_MAX_BYTES = 1 << 20
_DIGITS = 4  # decimals stored for a score in percent; tables print one
_FAILED, _SIGNALLED = 1, 128  # exit status; a signal adds its number, as in a shell
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows: no SIGHUP


@dataclass(frozen=True)
class RunRecord:
    """Record of a finished run."""

    method: str
    seed: int  # seed of mining and training
    settings: Mapping[str, Any]  # see `Experiment.settings`
    machine: str  # name of the processor
    date: str  # date of scoring, YYYY-MM-DD
    seconds: float  # time spent on mining, training and scoring
    versions: Mapping[str, str]  # package -> version
    scores: Mapping[str, Mapping[str, Any]]  # condition -> {metric: percent, "IoU": {class: percent}}

    @property
    def miou(self) -> dict[str, float]:
        """Mapping from condition to mIoU in percent."""
        return {condition: score["mIoU"] for condition, score in self.scores.items()}

    def save(self, folder: Path) -> None:
        """Write the record to its file in a folder."""
        with whole_file(folder / f"{self.method}_seed{self.seed}.json") as part:
            part.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path, method: str, seed: int) -> "RunRecord | None":
        """Read the record of a run, or return None if it does not exist.

        Raises:
            FAMixError: the file is damaged, or is the record of a different run.
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
            raise FAMixError(
                f"'{path}' is not a valid record of {method} with seed {seed}. Delete it to repeat the run."
            )
        return record

    @classmethod
    def of(cls, experiment: Experiment, method: str) -> "RunRecord":
        """Create the record of a finished experiment.

        Raises:
            DatasetError: the experiment has no scores.
        """
        file, noted = experiment.output / RESULTS_FILE, read_record(experiment.output)
        scores = {}
        for name, tasks in read_results(file).items():
            found = {metric: value for task in tasks.values() for metric, value in task.items() if value == value}
            metrics = {metric: round(value, _DIGITS) for metric, value in found.items()}
            classes = {
                metric.removeprefix(CLASS_IOU): metrics.pop(metric) for metric in found if metric.startswith(CLASS_IOU)
            }
            whole = {metric: value for metric, value in metrics.items() if not metric.startswith(CLASS_ACCURACY)}
            scores[condition_of(name)] = {**whole, "IoU": classes}
        facts = parse_json(read_text(file, _MAX_BYTES)).get("report", {}).get("run", {})
        return cls(
            method, experiment.seed, experiment.settings(), str(noted.get("machine", "")),
            str(facts.get("date", ""))[:10], round(float(noted.get("seconds", 0.0)), 1), facts.get("versions", {}), scores,
        )  # fmt: skip


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on a user error, Ctrl-C, SIGTERM or SIGHUP, so that no run outlives it.

    Progress is logged to standard error. The exit status is 1, or 128 plus the signal number. A SIGHUP that
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
        sys.stderr.write("\nstopped; run the same command again to resume\n")
        sys.exit(_SIGNALLED + signal.SIGINT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: object) -> NoReturn:
    for request in _STOP_SIGNALS:
        signal.signal(request, signal.SIG_IGN)  # a closing shell sends several; the runs must still shut down cleanly
    sys.exit(_SIGNALLED + number)


def describe_machine(device: str = "cpu") -> str:
    """Return the line above a benchmark table: date, processor or GPU, threads, memory and versions."""
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else processor_name()
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    memory = next((round(int(line.split()[1]) / 2**20) for line in lines if line.startswith("MemTotal")), "?")
    return (
        f"{date.today()}, {hardware}, {torch.get_num_threads()} threads, {memory} GiB, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
