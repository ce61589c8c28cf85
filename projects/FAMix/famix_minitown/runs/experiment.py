"""Town experiments: their settings and scores. `famix_minitown.runs.runner` runs them.

The folder of an experiment is the OUTPUT_DIR of train_net.py. It contains
    experiment.json     settings, processor, elapsed seconds, and whether the experiment is finished
    experiment.lock     locked by the processes that write into the folder
    console.log         all output of train_net.py
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from detectron2.config import CfgNode

from famix.clip import clip_weights_hash, load_clip_state_dict
from famix.config import config_file, flat_settings
from famix.data.definition_file import load_definition
from famix.engine import load_config
from famix.io import read_json
from famix.io.atomic import whole_file
from famix.reports import RESULTS_FILE, read_results
from famix.reports.report import CLASS_ACCURACY, TASK, describe_occurring
from famix.style import StyleBank
from famix.utils.errors import DatasetError
from famix_minitown.datasets import FORMAT_VERSION, register
from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS

CONFIGS = Path(config_file("minitown/baseline.yaml")).parent

_RECORD = "experiment.json"
_MAX_BYTES = 16 << 20

# Paths (compared by hash instead), log settings, and settings of Detectron2's mappers.
_WITHOUT_EFFECT = (
    *("OUTPUT_DIR", "VERSION", "VIS_PERIOD", "TRACKERS", "MODEL.CLIP.WEIGHTS", "MODEL.STYLE.BANK"),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN"),
    "DATASETS.FILES",
)
_ARCHITECTURE = "MODEL.CLIP.ARCHITECTURE"  # compared only without weights, which determine it


@dataclass(frozen=True)
class Experiment:
    """Run of train_net.py in its own folder."""

    name: str  # for messages
    config: Path
    output: Path
    options: tuple[str, ...] = ()  # KEY VALUE KEY VALUE ..., which override the config
    seed: int = 1  # seed of training and mining; the spread over seeds thus includes mining

    @property
    def overrides(self) -> list[str]:
        """All KEY VALUE pairs that override the config file."""
        seed = str(self.seed)
        return [*self.options, "OUTPUT_DIR", str(self.output), "SEED", seed, "STYLE_MINING.SEED", seed]

    def load_config(self) -> CfgNode:
        """Register the town and return the merged config (see `famix.config.load_config`)."""
        register()
        return load_config(str(self.config), self.overrides)

    def settings(self) -> dict[str, Any]:
        """Collect all settings that determine the result, independently of folder names.

        Returns:
            "config": config key -> value, for keys that differ from their defaults; "clip_hash" and "bank": hashes of
            CLIP and of a given style bank, or ""; "town": version of the rendered images; "definitions": hash of the
            definition files in DATASETS.FILES, or "".

        Raises:
            ConfigError: see `famix.config.load_config`.
            DatasetError: a definition file is missing or invalid.
            WeightsError, BankError: CLIP or the bank cannot be read.
        """
        cfg = self.load_config()
        weights, bank = cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.STYLE.BANK
        file = Path(weights).expanduser()  # may also be a name
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if weights and file.exists() else None
        if Path(bank).is_file():  # otherwise the bank does not exist yet
            styles = StyleBank.load(bank)
            bank = clip_weights_hash({"mean": styles.mean, "std": styles.std, "class_ids": styles.class_ids.float()})
        clip_hash = _clip_hash(weights, stamp) if weights else ""
        changed = {key: value for key, value in _flat(cfg).items() if value != _defaults().get(key)}
        config = _with_effect(changed, bool(clip_hash))
        definitions = _hash_definitions(cfg.DATASETS.FILES) if cfg.DATASETS.FILES else ""
        facts = {"clip_hash": clip_hash, "bank": bank, "town": str(FORMAT_VERSION), "definitions": definitions}
        return {"config": config, **facts}

    def seconds(self) -> float:
        """Return the time in seconds spent so far, summed over all starts."""
        seconds = read_record(self.output).get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0

    def is_finished(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the folder contains a finished experiment with these settings."""
        record = read_record(self.output)
        done = bool(record.get("finished")) and (self.output / RESULTS_FILE).exists()
        return done and same_settings(record.get("settings"), settings)


def same_settings(
    recorded: Mapping[str, Any] | None, current: Mapping[str, Any], derived: Collection[str] = ()
) -> bool:
    """Compare current settings with recorded ones, possibly from an earlier version of this package.

    A missing config key counts as its current default. A key that is new in this version therefore invalidates a
    record only if an experiment sets it to a different value.

    Args:
        recorded: settings from a file that may be damaged.
        current: see `Experiment.settings`.
        derived: config keys, or "bank", that depend on another experiment and are not compared.
    """
    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("config"), Mapping):
        return False
    facts = {"clip_hash", "town", "bank", "definitions"}  # records of earlier versions have no definitions
    if any(recorded.get(name, "") != current.get(name, "") for name in facts - set(derived)):
        return False
    config, defaults = _with_effect(recorded["config"], bool(current["clip_hash"])), _defaults()
    return all(
        config.get(key, defaults.get(key)) == current["config"].get(key, defaults.get(key))
        for key in (config.keys() | current["config"].keys()) - set(derived)
    )


@cache
def _defaults() -> dict[str, Any]:
    return _flat(load_config(""))


@cache  # a study has many runs
def _clip_hash(weights: str, stamp: tuple[int, int] | None) -> str:
    """Return the hash of MODEL.CLIP.WEIGHTS. `stamp` changes with the file, so a changed file is read again."""
    return clip_weights_hash(load_clip_state_dict(weights))


def _hash_definitions(files: Sequence[str]) -> str:
    """Return the hash of the content of definition files, without the folders of their datasets."""
    contents = [asdict(replace(load_definition(Path(file)), root="", source="")) for file in files]
    return hashlib.sha256(json.dumps(contents, default=sorted).encode()).hexdigest()


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping from dotted config keys to JSON values, with lists instead of tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(flat_settings(config)))
    return plain


def _with_effect(config: Mapping[str, Any], has_weights: bool) -> dict[str, Any]:
    ignored = (*_WITHOUT_EFFECT, _ARCHITECTURE) if has_weights else _WITHOUT_EFFECT
    return {key: value for key, value in config.items() if key not in ignored}


def condition_of(dataset_name: str) -> str:
    """Return the condition of a dataset, e.g. "night" for "minitown_night_val" or "haze" for "minitown_haze_dev"."""
    return dataset_name.removesuffix("_panoptic").removesuffix("_val").removesuffix("_dev").rsplit("_", 1)[-1]


def read_scores(folder: Path) -> dict[str, float]:
    """Return a mapping from condition to a finished experiment's mIoU in percent, in the order of DATASETS.TEST.

    Raises:
        DatasetError: the experiment has no scores.
    """
    results = read_results(folder / RESULTS_FILE)
    try:
        return {condition_of(name): tasks[TASK]["mIoU"] for name, tasks in results.items()}
    except KeyError as error:
        raise DatasetError(f"'{folder / RESULTS_FILE}' has no {error}. Evaluate the experiment again.") from error


def read_occurring(folder: Path) -> str:
    """Return a phrase with the number of classes that occur in the datasets of a finished experiment.

    Raises:
        DatasetError: the experiment has no per-class scores.
    """
    accuracies = [
        [value for metric, value in tasks.get(TASK, {}).items() if metric.startswith(CLASS_ACCURACY)]
        for tasks in read_results(folder / RESULTS_FILE).values()
    ]
    if not accuracies or not all(accuracies):
        raise DatasetError(f"'{folder / RESULTS_FILE}' has no per-class scores. Evaluate the experiment again.")
    return describe_occurring([sum(map(math.isfinite, one)) for one in accuracies], max(map(len, accuracies)))


def unseen_mean(scores: Mapping[str, float]) -> float:
    """Return the mean score over the test conditions unseen in training, or NaN if there are none.

    The development conditions, which were used to choose settings, are excluded.
    """
    return _mean(scores, scores.keys() - {CONDITIONS[0], *DEVELOPMENT_CONDITIONS})


def development_mean(scores: Mapping[str, float]) -> float:
    """Return the mean score over the development conditions, used to choose settings, or NaN if there are none."""
    return _mean(scores, DEVELOPMENT_CONDITIONS)


def _mean(scores: Mapping[str, float], conditions: Collection[str]) -> float:
    values = [value for name, value in scores.items() if name in conditions]
    return fmean(values) if values else math.nan


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of experiment.json, or {} if it is missing or unreadable."""
    try:
        return read_json(folder / _RECORD, _MAX_BYTES)
    except (OSError, ValueError):
        return {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write experiment.json atomically."""
    with whole_file(folder / _RECORD) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")
