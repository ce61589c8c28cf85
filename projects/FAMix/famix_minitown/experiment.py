"""Experiments of the town: what they follow from, and what they scored. `runner` runs them.

A folder of an experiment holds what train_net.py leaves in OUTPUT_DIR, and
    experiment.json     the settings, the processor, the seconds spent so far, and whether it is finished
    experiment.lock     locked by the processes that write into the folder
    console.log         all output of train_net.py
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from detectron2.config import CfgNode

from famix.clip import clip_weights_hash, load_clip_state_dict
from famix.config import flat_settings
from famix.engine import load_config
from famix.io import parse_yaml, read_json
from famix.io.atomic import whole_file
from famix.reports import RESULTS_FILE, read_results
from famix.reports.report import CLASS_ACCURACY, TASK, describe_occurring
from famix.style import StyleBank
from famix.utils.errors import DatasetError
from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.datasets import register
from famix_minitown.splits import FORMAT_VERSION

__all__ = [
    "CONFIGS",
    "Experiment",
    "condition_of",
    "development_mean",
    "is_finished",
    "read_occurring",
    "read_record",
    "read_scores",
    "same_settings",
    "unseen_mean",
    "write_record",
]

CONFIGS = Path(__file__).parents[1] / "configs/minitown"  # only a clone has them

_RECORD = "experiment.json"
_MAX_BYTES = 16 << 20

# Where files lie, which hashes stand for; what only steers the log; what Detectron2's mappers read and those here do not.
_WITHOUT_EFFECT = (
    *("OUTPUT_DIR", "VERSION", "VIS_PERIOD", "MODEL.CLIP.WEIGHTS", "MODEL.STYLE.BANK"),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN"),
)
_ARCHITECTURE = "MODEL.CLIP.ARCHITECTURE"  # of a random CLIP only: weights know theirs


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
        """Register the town and return the merged config.

        Raises:
            ConfigError: see `famix.config.load_config`.
        """
        register()
        return load_config(str(self.config), self.overrides)

    def settings(self) -> dict[str, Any]:
        """Collect what determines the result, independent of folder names.

        Returns:
            "config": config key -> value, of the keys that differ from their defaults; "clip_hash" and "bank": hashes of
            CLIP and of a given style bank, or ""; "town": version of the rendered images.

        Raises:
            ConfigError: see `famix.config.load_config`.
            WeightsError, BankError: CLIP or the bank cannot be read.
        """
        cfg = self.load_config()
        weights, bank = cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.STYLE.BANK
        clip_hash = _clip_hash(weights, _stamp(weights)) if weights else ""
        defaults = _defaults()
        changed = {key: value for key, value in _flat(cfg).items() if value != defaults.get(key)}
        config = _with_effect(changed, bool(clip_hash))
        return {"config": config, "clip_hash": clip_hash, "bank": _bank_hash(bank), "town": str(FORMAT_VERSION)}

    def seconds(self) -> float:
        """Time spent on it so far, over all starts."""
        seconds = read_record(self.output).get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0


def same_settings(
    recorded: Mapping[str, Any] | None, current: Mapping[str, Any], derived: Collection[str] = ()
) -> bool:
    """Compare settings, which an earlier version of this package may have recorded.

    A config key that one of them lacks counts with its default of today. A key that the package has gained meanwhile
    therefore invalidates a record only where an experiment sets it to something else.

    Args:
        recorded: see `Experiment.settings`; of 0.1, whose "config" is the text of the whole config; or nothing.
        current: of `Experiment.settings`.
        derived: config keys, or "bank", that follow from another experiment and are not compared.
    """
    if not isinstance(recorded, Mapping) or any(recorded.get(name) != current[name] for name in ("clip_hash", "town")):
        return False
    if "bank" not in derived and recorded.get("bank") != current["bank"]:
        return False
    try:
        config = _with_effect(_recorded_config(recorded.get("config")), bool(current["clip_hash"]))
    except (ValueError, TypeError, AttributeError):  # damaged: it fits nothing
        return False
    defaults = _defaults()
    return all(
        config.get(key, defaults.get(key)) == current["config"].get(key, defaults.get(key))
        for key in (config.keys() | current["config"].keys()) - set(derived)
    )


@cache
def _defaults() -> dict[str, Any]:
    """All config keys with their defaults."""
    return _flat(load_config(""))


@cache  # of a benchmark's many runs
def _clip_hash(weights: str, stamp: tuple[int, int] | None) -> str:
    """Hash of CLIP's weights.

    Args:
        weights: MODEL.CLIP.WEIGHTS.
        stamp: of the file, so that one that changes is read again.
    """
    return clip_weights_hash(load_clip_state_dict(weights))


def _stamp(weights: str) -> tuple[int, int] | None:
    """Time and size of a file; None where a name stands for it."""
    try:
        status = Path(weights).expanduser().stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _recorded_config(config: Any) -> dict[str, Any]:
    """Config key -> value; 0.1 recorded the YAML text of all keys."""
    if not isinstance(config, str):
        return dict(config)
    return _flat(parse_yaml(config))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config keys with dots -> values as JSON has them: lists instead of tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(flat_settings(config)))
    return plain


def _with_effect(config: Mapping[str, Any], has_weights: bool) -> dict[str, Any]:
    ignored = (*_WITHOUT_EFFECT, _ARCHITECTURE) if has_weights else _WITHOUT_EFFECT
    return {key: value for key, value in config.items() if key not in ignored}


def is_finished(folder: Path, settings: Mapping[str, Any], derived: Collection[str] = ()) -> bool:
    """Whether a folder holds a finished experiment with these settings.

    Args:
        folder: of an experiment; need not exist.
        settings: of `Experiment.settings`.
        derived: see `same_settings`.
    """
    record = read_record(folder)
    done = bool(record.get("finished")) and (folder / RESULTS_FILE).exists()
    return done and same_settings(record.get("settings"), settings, derived)


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
    try:
        return {condition_of(name): tasks["sem_seg"]["mIoU"] for name, tasks in results.items()}
    except KeyError as error:
        raise DatasetError(f"{folder / RESULTS_FILE} has no {error}; score the experiment again") from error


def read_occurring(folder: Path) -> str:
    """How many classes occur in the datasets of a finished experiment, and so in its means: "10 of 19 classes occur".

    Raises:
        DatasetError: there are no scores of classes.
    """
    accuracies = [
        [value for metric, value in tasks.get(TASK, {}).items() if metric.startswith(CLASS_ACCURACY)]
        for tasks in read_results(folder / RESULTS_FILE).values()
    ]
    if not accuracies or not all(accuracies):
        raise DatasetError(f"{folder / RESULTS_FILE} has no scores of classes; score the experiment again")
    return describe_occurring([sum(map(math.isfinite, one)) for one in accuracies], max(map(len, accuracies)))


def unseen_mean(scores: Mapping[str, float]) -> float:
    """Mean over the tested conditions that training has not seen; NaN where there is none.

    The development conditions, on which settings were chosen, do not count.

    Args:
        scores: condition -> score.
    """
    return _mean([value for name, value in scores.items() if name not in (CONDITIONS[0], *DEVELOPMENT_CONDITIONS)])


def development_mean(scores: Mapping[str, float]) -> float:
    """Mean over the development conditions, on which settings are chosen; NaN where there is none.

    Args:
        scores: condition -> score.
    """
    return _mean([value for name, value in scores.items() if name in DEVELOPMENT_CONDITIONS])


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _bank_hash(path: str) -> str:
    """Of the styles, not of the file, whose metadata come in any order; the path itself where a bank is to be mined."""
    if not Path(path).is_file():
        return path
    bank = StyleBank.load(path)
    return clip_weights_hash({"mean": bank.mean, "std": bank.std, "class_ids": bank.class_ids.float()})


def read_record(folder: Path) -> dict[str, Any]:
    """What is noted about the experiment of a folder, see the top of this module; empty where it holds none."""
    try:
        return read_json(folder / _RECORD, _MAX_BYTES)
    except (OSError, ValueError):
        return {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Note something about the experiment of a folder, whole or not at all."""
    with whole_file(folder / _RECORD) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")
