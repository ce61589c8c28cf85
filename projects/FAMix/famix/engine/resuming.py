"""Comparison of a resumed run's settings with those in its checkpoint: changes are either applied or rejected."""

import filecmp
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from famix.config import add_famix_config, find_node, flat_settings, read_settings
from famix.data.classes import CLASSES, classes_of, trained_classes
from famix.data.definition import changed_entry, describe_dataset
from famix.engine.peers import in_main_process
from famix.io.atomic import whole_file
from famix.io.checkpointer import SETTINGS, SafeCheckpointer
from famix.mining import style_bank_path
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import shown

_PLACE = "OUTPUT_DIR"  # not stored, so identical runs have identical checkpoints
_DATASETS = "datasets"  # checkpoint entry: name of a training dataset -> description
_KEPT_CONFIG, _CONFIG = "config_before_resume.yaml", "config.yaml"
_MOST_NAMED = 3

FREE = (
    # Paths and hardware; datasets are compared by definition, and style banks by content.
    *("OUTPUT_DIR", "VERSION", "MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.CLIP.TOKENIZER", "DATASETS.FILES"),
    "DATALOADER.NUM_WORKERS",
    *("CUDNN_BENCHMARK", "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.ACCUMULATE"),  # the scaled settings are compared
    *("MODEL.CLIP.CHECKPOINT_ACTIVATIONS", "MODEL.COMPILE"),
    # Periods for saving, scoring and logging, and limits.
    *("SOLVER.CHECKPOINT*", "SOLVER.MAX_SKIPPED_BATCHES", "VIS_PERIOD", "TRACKERS", "INPUT.MAX_PIXELS"),
    # Evaluation, which does not affect the weights.
    *("TEST.*", "DATASETS.TEST", "*_TEST", "MODEL_SELECTION.PERIOD", "MODEL_SELECTION.USE"),
    *("MODEL.PANOPTIC_FPN.COMBINE.*", "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA", "MODEL.PANOPTIC_DEEPLAB.CENTER_THRESHOLD"),
    *("MODEL.MASK_FORMER.O*_THRESHOLD", "MODEL.MASK_FORMER.CLIP_REGIONS"),
    *("MODEL.PANOPTIC_DEEPLAB.NMS_KERNEL", "MODEL.PANOPTIC_DEEPLAB.TOP_K_INSTANCE"),
    *("MODEL.PANOPTIC_DEEPLAB.PREDICT_INSTANCES", "MODEL.PANOPTIC_DEEPLAB.BENCHMARK_NETWORK_SPEED"),
    # Used by Detectron2's DatasetMapper only; runs of release 0.1 have its defaults.
    *("INPUT.MIN_SIZE_TRAIN*", "INPUT.MAX_SIZE_TRAIN"),
)
"""Patterns for keys that may change when a run resumes because they do not affect the weights."""

APPLIED = (
    *("SOLVER.BASE_LR*", "SOLVER.BACKBONE_LR_FACTOR", "SOLVER.BIAS_LR_FACTOR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV"),
    *("SOLVER.WEIGHT_DECAY*", "SOLVER.MAX_ITER", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.GAMMA", "SOLVER.STEPS"),
    *("SOLVER.NUM_DECAYS", "SOLVER.WARMUP_*", "SOLVER.RESCALE_INTERVAL", "SOLVER.POLY_LR_*"),
    "SOLVER.AMP.*",  # the remedy for float16 overflow, and for devices without float16
)
"""Patterns for keys whose changes take effect at the resumed iteration. Every other key must keep its value."""


def run_record(cfg: CfgNode) -> dict[str, Any]:
    """Return the checkpoint entries that describe a run, given its config scaled to the number of processes."""
    return {
        SETTINGS: {key: value for key, value in flat_settings(cfg).items() if key != _PLACE},
        CLASSES: classes_of(cfg).to_dict(),
        _DATASETS: {name: describe_dataset(name) for name in cfg.DATASETS.TRAIN},
    }


def take_up_run(cfg: CfgNode) -> None:
    """Compare a config with the run in OUTPUT_DIR, if there is one, before anything is written.

    A negative SEED is replaced with the seed of the run. Checkpoints of release 0.1 store no settings, so the
    config.yaml of such a run is copied before it is replaced. Call this function in all processes.

    Raises:
        ConfigError: a key that must not change differs. The message gives both values.
        WeightsError: no checkpoint can be read.
    """

    def compare() -> CfgNode | None:
        checkpointer = SafeCheckpointer(torch.nn.Module(), cfg.OUTPUT_DIR)
        if not checkpointer.has_checkpoint():
            return None
        file, content = checkpointer.read_resumable()
        stored = require_resumable(content, cfg, file)
        config, kept = (os.path.join(cfg.OUTPUT_DIR, name) for name in (_CONFIG, _KEPT_CONFIG))
        if SETTINGS not in content and os.path.isfile(config) and not os.path.exists(kept):
            with whole_file(kept) as part:
                shutil.copyfile(config, part)
        return stored

    stored = in_main_process(compare)
    if stored is not None and cfg.SEED < 0:
        cfg.SEED = stored.SEED


def require_resumable(content: Mapping[str, Any], cfg: CfgNode, checkpoint: str) -> CfgNode | None:
    """Raise an error unless a run with a given config can resume from a checkpoint.

    Args:
        content: entries of the checkpoint.
        cfg: the effective config; its datasets are registered.
        checkpoint: path of the checkpoint.

    Returns:
        The settings in the checkpoint, scaled to the number of processes, or None if it contains none.

    Raises:
        ClassesError: the classes differ. The message gives an example.
        ConfigError: keys or entries in a dataset definition differ. The message gives both values.
        WeightsError: the settings in the checkpoint are damaged.
    """
    stored = _stored_settings(content, cfg)
    if stored is not None:
        now, before = flat_settings(_scaled(cfg)), flat_settings(stored)
        changed = [
            f"{key} is {shown(now[key])} (was {shown(before[key])})"
            for key in now
            if not any(fnmatchcase(key, pattern) for pattern in FREE + APPLIED)
            and not _same(key, before[key], now[key], stored, cfg)
        ]
        if changed:
            more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
            raise ConfigError(
                f"Settings have changed since '{checkpoint}' was saved: {', '.join(changed[:_MOST_NAMED])}{more}. "
                "Restore the old values to continue with --resume, or start a new run with --overwrite or in another "
                "OUTPUT_DIR."
            )
    trained, described = trained_classes(content), content.get(_DATASETS)
    if trained is not None:
        trained.require_same(classes_of(cfg), checkpoint, cfg.DATASETS.TRAIN[0])
    for name in cfg.DATASETS.TRAIN:
        known = described.get(name) if isinstance(described, Mapping) else None  # release 0.1 stored no definitions
        difference = changed_entry(name, known) if isinstance(known, Mapping) else None
        if difference is not None:
            raise ConfigError(
                f"The definition of dataset '{name}' has changed since '{checkpoint}' was saved: {difference}. "
                "Restore it in DATASETS.FILES (the run keeps a copy in its folder 'datasets'), or start a new run with "
                "--overwrite or in another OUTPUT_DIR."
            )
    return stored


def _stored_settings(content: Mapping[str, Any], cfg: CfgNode) -> CfgNode | None:
    """Return the settings in a checkpoint, with this release's defaults for missing keys.

    For a checkpoint of release 0.1, the settings are read from the config.yaml in OUTPUT_DIR.
    """
    settings = content.get(SETTINGS)
    if settings is None:
        files = [os.path.join(cfg.OUTPUT_DIR, name) for name in (_KEPT_CONFIG, _CONFIG)]
        file = next((file for file in files if os.path.isfile(file)), None)
        if file is None:
            return None
        settings = read_settings(file)
    if not isinstance(settings, Mapping):
        raise WeightsError(f"Damaged checkpoint: '{SETTINGS}' is a {type(settings).__name__} instead of a dictionary.")
    default = get_cfg()
    add_famix_config(default)
    values = flat_settings(default) | dict(settings)
    stored = cfg.clone()  # includes keys added by other code
    stored.defrost()
    for key in (flat_settings(stored).keys() & values.keys()) - {_PLACE}:
        node, name = find_node(stored, key)
        node[name] = values[key]
    return _scaled(stored)


def _scaled(cfg: CfgNode) -> CfgNode:
    scaled: CfgNode = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    return scaled


def _same(key: str, before: Any, now: Any, stored: CfgNode, cfg: CfgNode) -> bool:
    if _plain(before) == _plain(now) or (key == "SEED" and now < 0):  # the seed of the run is used
        return True
    if key == "MODEL.CLIP.ARCHITECTURE":
        return "" in (before, now)  # read from the file; loading rejects a different network
    if key == "MODEL.STYLE.BANK":
        return _same_file(str(style_bank_path(stored)), style_bank_path(cfg))
    return key in ("MODEL.CLIP.WEIGHTS", "MODEL.TIMM.WEIGHTS") and _same_file(str(before), now)


def _same_file(before: str, now: str) -> bool:
    """Return whether two files have the same content or, if one is missing, the same name."""
    if os.path.isfile(before) and os.path.isfile(now):
        return filecmp.cmp(before, now, shallow=False)
    return os.path.sep in before + now and os.path.basename(before) == os.path.basename(now)


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
