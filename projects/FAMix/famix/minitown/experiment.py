"""Experiments of the town: what they follow from, and what they scored. `runner` runs them.

A folder of an experiment holds what train_net.py leaves in OUTPUT_DIR, and
    experiment.json     the settings, the processor, the seconds spent so far, and whether it is finished
    experiment.lock     locked by the processes that write into the folder
    console.log         all output of train_net.py
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from famix.engine import load_config
from famix.evaluation import RESULTS_FILE, read_results
from famix.files import whole_file
from famix.minitown.conditions import CONDITIONS
from famix.minitown.splits import FORMAT_VERSION
from famix.modeling import clip_weights_hash, load_clip_state_dict
from famix.style import StyleBank

__all__ = [
    "CONFIGS",
    "Experiment",
    "condition_of",
    "read_record",
    "read_scores",
    "unseen_mean",
    "write_record",
]

CONFIGS = Path(__file__).parents[2] / "configs/minitown"  # only a clone has them

_RECORD = "experiment.json"


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
        return float(read_record(self.output).get("seconds", 0.0))


def condition_of(dataset_name: str) -> str:
    """Condition of a data set: "night" of "minitown_night_val", "haze" of "minitown_haze_dev"."""
    return dataset_name.removesuffix("_val").removesuffix("_dev").rsplit("_", 1)[-1]


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


def _bank_hash(path: str) -> str:
    """Of the styles, not of the file, whose metadata come in any order; the path itself where a bank is to be mined."""
    if not Path(path).is_file():
        return path
    bank = StyleBank.load(path)
    return clip_weights_hash({"mean": bank.mean, "std": bank.std, "class_ids": bank.class_ids.float()})


def read_record(folder: Path) -> dict[str, Any]:
    """What is noted about the experiment of a folder, see the top of this module; empty where it holds none."""
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Note something about the experiment of a folder, whole or not at all."""
    with whole_file(folder / _RECORD) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")
