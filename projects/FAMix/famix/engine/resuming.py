"""Compare the settings of a resumed run with those in its checkpoint: changes apply, or are refused."""

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

_PLACE = "OUTPUT_DIR"  # not stored, so that equal runs have equal checkpoints
_DATASETS = "datasets"  # entry of a checkpoint: name of a training dataset -> its description
_KEPT_CONFIG, _CONFIG = "config_before_resume.yaml", "config.yaml"
_MOST_NAMED = 3

FREE = (
    # Paths and the machine: datasets are compared by their definitions, banks by their content.
    *("OUTPUT_DIR", "VERSION", "MODEL.DEVICE", "MODEL.WEIGHTS", "DATASETS.FILES", "DATALOADER.NUM_WORKERS"),
    *("CUDNN_BENCHMARK", "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.ACCUMULATE"),  # the scaled settings are compared
    # Periods of saving, scoring and logging, and limits of a run.
    *("SOLVER.CHECKPOINT*", "SOLVER.MAX_SKIPPED_BATCHES", "VIS_PERIOD", "INPUT.MAX_PIXELS"),
    # Evaluation, which does not affect the weights.
    *("TEST.*", "DATASETS.TEST", "*_TEST", "MODEL_SELECTION.PERIOD", "MODEL_SELECTION.USE"),
    *("MODEL.PANOPTIC_FPN.COMBINE.*", "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA", "MODEL.PANOPTIC_DEEPLAB.CENTER_THRESHOLD"),
    *("MODEL.PANOPTIC_DEEPLAB.NMS_KERNEL", "MODEL.PANOPTIC_DEEPLAB.TOP_K_INSTANCE"),
    *("MODEL.PANOPTIC_DEEPLAB.PREDICT_INSTANCES", "MODEL.PANOPTIC_DEEPLAB.BENCHMARK_NETWORK_SPEED"),
    # Only Detectron2's DatasetMapper reads these; runs of release 0.1 have its defaults.
    *("INPUT.MIN_SIZE_TRAIN*", "INPUT.MAX_SIZE_TRAIN"),
)
"""Patterns of keys that may change when a run resumes, since they do not affect the weights."""

APPLIED = (
    *("SOLVER.BASE_LR*", "SOLVER.BACKBONE_LR_FACTOR", "SOLVER.BIAS_LR_FACTOR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV"),
    *("SOLVER.WEIGHT_DECAY*", "SOLVER.MAX_ITER", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.GAMMA", "SOLVER.STEPS"),
    *("SOLVER.NUM_DECAYS", "SOLVER.WARMUP_*", "SOLVER.RESCALE_INTERVAL", "SOLVER.POLY_LR_*"),
    "SOLVER.AMP.*",  # the remedy for an overflow of float16, and for devices without it
)
"""Patterns of keys that may change and apply from the resumed iteration; every other key must keep its value."""


def run_record(cfg: CfgNode) -> dict[str, Any]:
    """Return the entries of checkpoints that describe a run, given its config scaled to the number of processes."""
    return {
        SETTINGS: {key: value for key, value in flat_settings(cfg).items() if key != _PLACE},
        CLASSES: classes_of(cfg).to_dict(),
        _DATASETS: {name: describe_dataset(name) for name in cfg.DATASETS.TRAIN},
    }


def take_up_run(cfg: CfgNode) -> None:
    """Compare a config with the run in OUTPUT_DIR, if there is one, before anything is written.

    A negative SEED becomes the seed of the run. Checkpoints of release 0.1 store no settings; the config.yaml of such a run
    is copied beside the new one. Called in all processes.

    Raises:
        ConfigError: keys differ that must not change; the message gives both values.
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
    """Raise unless a run can resume from a checkpoint with a config.

    Args:
        content: entries of the checkpoint.
        cfg: the effective config; its datasets are registered.
        checkpoint: path of the checkpoint.

    Returns:
        The settings of the checkpoint, scaled to the number of processes, or None if it has none.

    Raises:
        ClassesError: classes differ; the message gives one of each.
        ConfigError: keys or entries of a dataset's definition differ; the message gives both values.
        WeightsError: the settings in the checkpoint are damaged.
    """
    stored = _stored_settings(content, cfg)
    if stored is not None:
        now, before = flat_settings(_scaled(cfg)), flat_settings(stored)
        changed = [
            f"{key} must be {shown(before[key])}, got {shown(now[key])}"
            for key in now
            if not any(fnmatchcase(key, pattern) for pattern in FREE + APPLIED)
            and not _same(key, before[key], now[key], stored, cfg)
        ]
        if changed:
            more = f"; {len(changed) - _MOST_NAMED} more keys differ" if len(changed) > _MOST_NAMED else ""
            raise ConfigError(
                f"{'; '.join(changed[:_MOST_NAMED])}{more}. {checkpoint} was trained with the former: restore them to "
                "--resume, or start a new run with --overwrite or in another OUTPUT_DIR"
            )
    trained, described = trained_classes(content), content.get(_DATASETS)
    if trained is not None:
        trained.require_same(classes_of(cfg), checkpoint, cfg.DATASETS.TRAIN[0])
    for name in cfg.DATASETS.TRAIN:
        known = described.get(name) if isinstance(described, Mapping) else None  # release 0.1 stored no definitions
        difference = changed_entry(name, known) if isinstance(known, Mapping) else None
        if difference is not None:
            raise ConfigError(
                f"dataset {name}: {difference}. {checkpoint} was trained with the former: restore the definition in "
                "DATASETS.FILES (the run keeps a copy in its folder 'datasets'), or start a new run with --overwrite or in "
                "another OUTPUT_DIR"
            )
    return stored


def _stored_settings(content: Mapping[str, Any], cfg: CfgNode) -> CfgNode | None:
    """Return the settings in a checkpoint, with this release's default for every missing key.

    For a checkpoint of release 0.1, they are read from the config.yaml in OUTPUT_DIR.
    """
    settings = content.get(SETTINGS)
    if settings is None:
        files = [os.path.join(cfg.OUTPUT_DIR, name) for name in (_KEPT_CONFIG, _CONFIG)]
        file = next((file for file in files if os.path.isfile(file)), None)
        if file is None:
            return None
        settings = read_settings(file)
    if not isinstance(settings, Mapping):
        raise WeightsError(f"'{SETTINGS}' in the checkpoint must be a dictionary, got a {type(settings).__name__}")
    default = get_cfg()
    add_famix_config(default)
    values = flat_settings(default) | dict(settings)
    stored = cfg.clone()  # includes keys that other code has added
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
        return "" in (before, now)  # the file decides; loading refuses another network
    if key == "MODEL.STYLE.BANK":
        return _same_file(str(style_bank_path(stored)), style_bank_path(cfg))
    return key == "MODEL.CLIP.WEIGHTS" and _same_file(str(before), now)


def _same_file(before: str, now: str) -> bool:
    """Return whether files have equal content or, if one is missing, equal names."""
    if os.path.isfile(before) and os.path.isfile(now):
        return filecmp.cmp(before, now, shallow=False)
    return os.path.sep in before + now and os.path.basename(before) == os.path.basename(now)


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
