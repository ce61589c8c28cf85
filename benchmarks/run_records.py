"""Records of finished runs: one small JSON file a run, committed, from which a benchmark goes on without the run directory.

A record holds "method", "seed", "settings" (of `famix_minitown.experiment.Experiment.settings`), "machine", "date",
"seconds" (mining, training and scoring), "versions" (of the packages), and "scores": condition -> {"mIoU": percent,
"IoU": {class: percent}}.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from famix.io import parse_json, read_text
from famix.io.atomic import whole_file
from famix.reports import RESULTS_FILE, read_results
from famix.utils.errors import FAMixError
from famix_minitown.experiment import Experiment, condition_of, read_record, same_settings

__all__ = ["RUNS", "RecordError", "RunRecord", "record_of"]

RUNS = Path(__file__).parent / "results/runs/minitown"
"""Folder of the committed records."""

_MAX_BYTES = 1 << 20
_PREFIX = "IoU-"
_DIGITS = 4  # of a score in percent; tables print one


class RecordError(FAMixError):
    """A record that cannot be read."""


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        method: name of the method in the benchmark.
        seed: of mining and training.
        settings: see `Experiment.settings`.
        machine: name of the processor.
        date: of the scoring, YYYY-MM-DD.
        seconds: that mining, training and scoring took.
        versions: package -> version.
        scores: condition -> {"mIoU": percent, "IoU": class -> percent}.
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
        """Whether the run is that of an experiment.

        Args:
            experiment: what is asked for.
            derived: see `same_settings`.
        """
        return same_settings(self.settings, experiment.settings(), derived)

    def save(self, folder: Path) -> None:
        """Write the record as a file of its own, one line a condition."""
        entries = asdict(self)
        lines = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(score)}" for name, score in entries.pop("scores").items()
        )
        head = "".join(f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in entries.items())
        with whole_file(self.path(folder, self.method, self.seed)) as part:
            part.write_text(f'{{\n{head}"scores": {{\n{lines}\n}}\n}}\n')

    @classmethod
    def load(cls, folder: Path, method: str, seed: int) -> "RunRecord | None":
        """Read the record of a run; None where there is none.

        Raises:
            RecordError: the file holds something else.
        """
        path = cls.path(folder, method, seed)
        if not path.exists():
            return None
        try:
            record = cls(**parse_json(read_text(path, _MAX_BYTES)))
            sound = (record.method, record.seed) == (method, seed) and all(map(math.isfinite, record.miou.values()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            sound = False
        if not sound:
            raise RecordError(f"{path} must be the record of {method} with seed {seed}; delete it to run that again")
        return record

    @staticmethod
    def path(folder: Path, method: str, seed: int) -> Path:
        """File of a record."""
        return folder / f"{method}_seed{seed}.json"


def record_of(experiment: Experiment, method: str, settings: Mapping[str, Any]) -> RunRecord:
    """Make the record of a finished experiment.

    Args:
        experiment: whose folder holds the scores.
        method: name of the method in the benchmark.
        settings: of `Experiment.settings`.

    Raises:
        DatasetError: there are no scores.
    """
    file, noted = experiment.output / RESULTS_FILE, read_record(experiment.output)
    scores = {condition_of(name): _scores(tasks["sem_seg"]) for name, tasks in read_results(file).items()}
    facts = parse_json(read_text(file, _MAX_BYTES)).get("report", {}).get("run", {})
    return RunRecord(
        method, experiment.seed, settings, str(noted.get("machine", "")), str(facts.get("date", ""))[:10],
        round(float(noted.get("seconds", 0.0)), 1), facts.get("versions", {}), scores,
    )  # fmt: skip


def _scores(metrics: Mapping[str, float]) -> dict[str, Any]:
    """The mIoU, and the IoU of all classes that occur."""
    classes = {
        name.removeprefix(_PREFIX): round(value, _DIGITS)
        for name, value in metrics.items()
        if name.startswith(_PREFIX) and not math.isnan(value)
    }
    return {"mIoU": round(metrics["mIoU"], _DIGITS), "IoU": classes}
