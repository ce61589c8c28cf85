"""What a table of scores must say of the run that they are of."""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode

from famix.config import flat_settings

__all__ = [
    "AVERAGE",
    "BEST",
    "FILE",
    "LAST",
    "RunFacts",
    "ScoredWeights",
    "describe_run",
    "file_sha256",
    "from_plain",
    "method_name",
]

T = TypeVar("T")

LAST, BEST, AVERAGE, FILE, MEMORY = "last", "best", "ema", "file", "memory"

# Keys that do not change what is trained: where things lie, who computes, how often is looked, what is scored how.
_OUTPUT = ("OUTPUT_DIR",)
_NOT_OF_THE_METHOD = (
    *_OUTPUT,
    *("SEED", "STYLE_MINING.SEED", "MODEL.WEIGHTS", "MODEL.STYLE.BANK", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"),
    *("SOLVER.CHECKPOINT_PERIOD", "VIS_PERIOD", "MODEL_SELECTION.USE", "DATASETS.TEST", "DATASETS.FILES"),
    *("TEST.EVAL_PERIOD", "TEST.EVALUATOR", "TEST.SOURCE", "TEST.CLASSES", "TEST.ABSENT_CLASSES"),
    *("TEST.PROTOCOL", "TEST.PROTOCOL_OF", "TEST.RELEASED_PADDING"),
)


@dataclass(frozen=True)
class ScoredWeights:
    """Which weights of a run were scored.

    Attributes:
        selection: "last" (as training left them), "best" (on the source's validation set), "ema" (their moving
            average), "file" (a file that says nothing of that) or "memory" (in mid-training).
        file: name of the file that holds them; None where they were only in memory.
        sha256: of that file.
        iterations: that were done; None where nothing says so.
        source_val: data set that "best" was chosen on.
        source_score: mIoU there, in percent.
    """

    selection: str = MEMORY
    file: str | None = None
    sha256: str | None = None
    iterations: int | None = None
    source_val: str | None = None
    source_score: float | None = None

    @property
    def label(self) -> str:
        """One word for a table."""
        return Path(self.file).stem if self.selection == FILE and self.file else self.selection

    def describe(self) -> str:
        """A phrase for the text beside a table."""
        known = {LAST: "the last", BEST: "the best", AVERAGE: "the moving average", MEMORY: "those in memory"}
        words = known.get(self.selection, f"those of {self.file}")
        if self.source_val is not None and self.source_score is not None:
            words += f" on {self.source_val} ({self.source_score:.1f})"
        return words if self.iterations is None else f"{words}, after {self.iterations} iterations"


@dataclass(frozen=True)
class RunFacts:
    """What was run.

    Attributes:
        method: last part of OUTPUT_DIR that does not name a seed.
        seed: SEED.
        trained_on: DATASETS.TRAIN.
        weights: that were scored.
        evaluator: TEST.EVALUATOR.
        config_hash: SHA-256 of the config but for OUTPUT_DIR.
        method_hash: SHA-256 of what of the config shapes the weights, but for the seeds.
        date: of the scoring, in ISO format with time and zone.
        versions: of Python and of the packages that matter.
    """

    method: str
    seed: int
    trained_on: tuple[str, ...]
    weights: ScoredWeights
    evaluator: str
    config_hash: str
    method_hash: str
    date: str
    versions: Mapping[str, str]


def describe_run(cfg: CfgNode, weights: ScoredWeights) -> RunFacts:
    """Collect the facts of a run that is being scored.

    Args:
        cfg: the effective config.
        weights: what is scored.
    """
    return RunFacts(
        method=method_name(cfg.OUTPUT_DIR),
        seed=cfg.SEED,
        trained_on=tuple(cfg.DATASETS.TRAIN),
        weights=weights,
        evaluator=cfg.TEST.EVALUATOR,
        config_hash=_hash_without(cfg, _OUTPUT),
        method_hash=_hash_without(cfg, _NOT_OF_THE_METHOD),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "famix": version("famix"),
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def from_plain(kind: type[T], plain: Mapping[str, Any], **known: Any) -> T:
    """Make a dataclass of what JSON keeps of one: lists instead of tuples.

    Args:
        kind: the dataclass; its fields are texts, numbers, booleans, None, tuples of texts and mappings of texts.
        plain: field -> value.
        known: fields that need no look.

    Raises:
        TypeError: a field is missing, unknown, or of another type.
    """
    values = {**plain, **known}
    for name, hint in get_type_hints(kind).items():
        if name in values and name not in known:
            values[name] = _checked(name, values[name], hint)
    return kind(**values)


def _checked(name: str, value: Any, hint: Any) -> Any:
    if hint == tuple[str, ...]:
        fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        value = tuple(value) if fits else value
    elif hint == Mapping[str, str]:
        fits = isinstance(value, Mapping) and all(isinstance(entry, str) for entry in value.values())
    else:
        number = isinstance(value, int) and not isinstance(value, bool)
        fits = isinstance(value, hint) and (number or not isinstance(value, int) or hint is bool)
        fits = fits or (number and isinstance(0.0, hint))
    if not fits:
        raise TypeError(f"{name} is {value!r:.200}, expected {hint}")
    return value


def method_name(output_dir: str) -> str:
    """What a run is called: "famix" for output/famix, output/famix/seed2 and output/famix_seed2."""
    for part in reversed(Path(output_dir).resolve().parts):
        name = re.sub(r"[_.-]*seed[_=-]?\d+$", "", part)
        if name:
            return name
    return str(output_dir)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_without(cfg: CfgNode, keys: tuple[str, ...]) -> str:
    settings = {key: value for key, value in flat_settings(cfg).items() if key not in keys}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
