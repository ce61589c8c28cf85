"""Metadata of a scored run: the weights, the seed, hashes of the config and package versions."""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

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
    "RunMetadata",
    "ScoredWeights",
    "describe_run",
    "file_sha256",
    "method_name",
]

LAST, BEST, AVERAGE, FILE, MEMORY = "last", "best", "ema", "file", "memory"

# Keys that do not change the training: seeds, paths, devices, logging and evaluation.
_NOT_OF_THE_METHOD = (
    *("OUTPUT_DIR", "SEED", "STYLE_MINING.SEED", "MODEL.WEIGHTS", "MODEL.STYLE.BANK", "MODEL.DEVICE"),
    *("DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "VIS_PERIOD", "MODEL_SELECTION.USE"),
    *("DATASETS.TEST", "DATASETS.FILES", "TEST.EVAL_PERIOD", "TEST.EVALUATOR", "TEST.SOURCE", "TEST.CLASSES"),
    *("TEST.ABSENT_CLASSES", "TEST.PROTOCOL", "TEST.PROTOCOL_OF", "TEST.RELEASED_PADDING"),
)


@dataclass(frozen=True)
class ScoredWeights:
    """The weights that were scored.

    Attributes:
        selection: "last" (the final ones), "best" (on the validation split of the source), "ema" (the moving
            average), "file" (a file without that information) or "memory" (during training).
        file: file name; None for weights in memory.
        sha256: hash of the file.
        iterations: number of training iterations; None if unknown.
        source_val: dataset that selected "best".
        source_score: mIoU on `source_val`, in percent.
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
        """Describe the weights in a phrase, e.g. "best on gta5_val (71.3), 300 iterations"."""
        words = {AVERAGE: "moving average", MEMORY: "in memory", FILE: str(self.file)}.get(
            self.selection, self.selection
        )
        if self.source_val is not None and self.source_score is not None:
            words += f" on {self.source_val} ({self.source_score:.1f})"
        return words if self.iterations is None else f"{words}, {self.iterations} iterations"


@dataclass(frozen=True)
class RunMetadata:
    """Metadata of a run.

    Attributes:
        method: last part of OUTPUT_DIR without the seed.
        seed: SEED.
        trained_on: DATASETS.TRAIN.
        weights: the scored weights.
        evaluator: TEST.EVALUATOR.
        config_hash: SHA-256 of the config without OUTPUT_DIR.
        method_hash: SHA-256 of the settings that shape the weights, without the seeds.
        date: time of the evaluation in ISO format with the time zone.
        versions: Python and package versions.
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

    def facts(self) -> dict[str, str]:
        """Return the metadata as name -> text."""
        return {
            "weights": self.weights.describe(),
            "file": self.weights.file or "in memory",
            "sha256": self.weights.sha256 or "",
            "seed": str(self.seed),
            "trained on": ", ".join(self.trained_on),
            "evaluator": self.evaluator,
            "config": self.config_hash,
            "date": self.date,
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions.items()),
        }


def describe_run(cfg: CfgNode, weights: ScoredWeights) -> RunMetadata:
    """Collect the metadata of a run during its evaluation.

    Args:
        cfg: the effective config.
        weights: the scored weights.
    """

    def hash_without(*keys: str) -> str:
        settings = {key: value for key, value in flat_settings(cfg).items() if key not in keys}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    return RunMetadata(
        method=method_name(cfg.OUTPUT_DIR),
        seed=cfg.SEED,
        trained_on=tuple(cfg.DATASETS.TRAIN),
        weights=weights,
        evaluator=cfg.TEST.EVALUATOR,
        config_hash=hash_without("OUTPUT_DIR"),
        method_hash=hash_without(*_NOT_OF_THE_METHOD),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "famix": version("famix"),
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def method_name(output_dir: str) -> str:
    """Return the method's name: "famix" for output/famix, output/famix/seed2 and output/famix_seed2."""
    for part in reversed(Path(output_dir).resolve().parts):
        name = re.sub(r"[_.-]*seed[_=-]?\d+$", "", part)
        if name:
            return name
    return str(output_dir)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
