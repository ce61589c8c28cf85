"""Whether a config can work, found out before any work is done."""

import argparse
import math
import os
import tempfile
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.utils import comm

from famix.clip.build import tower_without_weights, undownloaded
from famix.config import flat_settings
from famix.data import FAMixDatasetMapper, require_same_classes
from famix.data.domains import require_known_sources
from famix.data.images import MOST_PIXELS
from famix.data.panoptic.mapper import build_train_mapper
from famix.engine.model_selection import check_selection
from famix.engine.optimization import build_lr_scheduler, build_optimizer
from famix.engine.step_trainer import check_steps
from famix.evaluation import check_evaluation
from famix.evaluation.evaluators import check_panoptic
from famix.mining import MiningSettings, style_bank_path
from famix.style import PatchRestyler
from famix.style.patches import check_grid
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean
from famix.utils.meta_architecture import predicts, trains_on

__all__ = ["check_config", "used_datasets"]

_SYNCHRONISED = ("SyncBN", "nnSyncBN")
_RATES = (
    *("BASE_LR", "BACKBONE_LR_FACTOR", "BIAS_LR_FACTOR", "MOMENTUM"),
    *("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
)


def check_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Find what cannot work, from the config and the registered data sets alone.

    Args:
        cfg: the effective config.
        args: of the command line: what the run is to do.

    Raises:
        ConfigError: names the key, what it is and what it should be.
        DatasetError: a data set is unknown, or two have different classes.
    """
    training, testing = not args.eval_only, not args.mine_styles_only
    if not (training or testing):
        raise ConfigError("--eval-only and --mine-styles-only exclude each other; leave one out")
    missing = "TRAIN" if training and not cfg.DATASETS.TRAIN else "TEST" if testing and not cfg.DATASETS.TEST else ""
    if missing and not getattr(args, "config_file", "any"):
        raise ConfigError(
            f"--config-file must name a config, got none, so that DATASETS.{missing} is empty. Add --config-file FILE, "
            "e.g. projects/FAMix/configs/GTA5/famix_RN50.yaml"
        )
    if training and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty; name the labelled source data set")
    if testing and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name at least one target data set")
    _check_registered(cfg)
    _check_device(cfg.MODEL.DEVICE)
    _check_pixels(cfg.MODEL)
    if not 0 < cfg.INPUT.MAX_PIXELS <= MOST_PIXELS:
        raise ConfigError(
            f"INPUT.MAX_PIXELS must be from 1 to {MOST_PIXELS}, the most that Pillow reads, got {cfg.INPUT.MAX_PIXELS}. Leave it "
            "out for the default."
        )
    _check_classes(cfg, used_datasets(cfg, args))
    check_panoptic(cfg, used_datasets(cfg, args))
    if testing:
        require_known_sources(cfg)
        check_evaluation(cfg, _scored_datasets(cfg, args))
    if training and testing:
        check_selection(cfg)
        _check_norms(cfg)
        _check_iterations(cfg.SOLVER.MAX_ITER)
        _check_rates(cfg.SOLVER)
        _check_batch(cfg.SOLVER.IMS_PER_BATCH)
        _check_crop(cfg)
        check_steps(cfg)
        build_train_mapper(cfg)
    if testing:
        _check_model(cfg, training)
    _check_folder("OUTPUT_DIR", cfg.OUTPUT_DIR)
    if training:
        _check_styles(cfg)


def used_datasets(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Names of the data sets that a run reads, sources first."""
    sources = () if args.eval_only else cfg.DATASETS.TRAIN
    return list(dict.fromkeys([*sources, *_scored_datasets(cfg, args)]))


def _scored_datasets(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    if args.mine_styles_only:
        return []
    source_val = cfg.MODEL_SELECTION.SOURCE_VAL
    return [*cfg.DATASETS.TEST, *([source_val] if source_val and not args.eval_only else [])]


def _check_registered(cfg: CfgNode) -> None:
    """Raise unless the parts of the model that go by name are registered."""
    model = cfg.MODEL
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        if name not in registry:
            hint = did_you_mean(name, [known for known, _ in registry])
            raise ConfigError(
                f"{key} {name} is not registered; import the module that defines it before the run, as "
                f"projects/FAMix/README.md shows.{hint}"
            )


def _check_model(cfg: CfgNode, training: bool) -> None:
    """Build the model, and for a training its optimiser, without memory for weights."""
    probe = undownloaded(cfg)
    probe.MODEL.DEVICE = "meta"
    with torch.random.fork_rng(devices=[]):
        model = build_model(probe)
    if training:
        optimizer = build_optimizer(probe, model)
        try:
            build_lr_scheduler(probe, optimizer)
        except ValueError as error:
            raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME must be PolyLR or one of Detectron2's: {error}") from error


def _check_norms(cfg: CfgNode) -> None:
    """torch's SyncBatchNorm trains on GPUs alone; a single process needs nothing of it."""
    if torch.device(cfg.MODEL.DEVICE).type != "cpu" or comm.get_world_size() == 1:
        return
    for key, value in flat_settings(cfg.MODEL, "MODEL.").items():
        read = "INS_EMBED_HEAD" not in key or "centers" in trains_on(cfg)
        if key.endswith(".NORM") and value in _SYNCHRONISED and read:
            raise ConfigError(
                f"{key} must be naiveSyncBN, BN or GN for several processes on the CPU, got {value}. Set it to naiveSyncBN, "
                "which shares the statistics among processes on any device."
            )


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ConfigError(
            f"SOLVER.MAX_ITER is {iterations}, expected at least 1; to score without training, use --eval-only"
        )


def _check_rates(solver: CfgNode) -> None:
    """What optimisers multiply with; torch refuses some of it, and trains to infinity with the rest."""
    for name in _RATES:
        rate = solver[name]
        if rate is not None and not 0 <= rate < math.inf:
            raise ConfigError(
                f"SOLVER.{name} must be a finite number of at least 0, got {rate}. Set SOLVER.{name} 0.0 or more."
            )
    if solver.NESTEROV and not solver.MOMENTUM:
        raise ConfigError("SOLVER.NESTEROV must be False without SOLVER.MOMENTUM, got True. Set SOLVER.NESTEROV False.")


def _check_pixels(model: CfgNode) -> None:
    mean, std = model.PIXEL_MEAN, model.PIXEL_STD
    for name, values, least in (("PIXEL_MEAN", mean, -math.inf), ("PIXEL_STD", std, 0)):
        if len(values) != 3 or not all(least < value < math.inf for value in values):
            above = " above 0" if least == 0 else ""
            raise ConfigError(
                f"MODEL.{name} must be three finite numbers{above}, one a channel, got {values}. Leave MODEL.{name} out for CLIP's."
            )


def _check_batch(images: int) -> None:
    processes = comm.get_world_size()
    if images < 1 or images % processes:
        raise ConfigError(f"SOLVER.IMS_PER_BATCH is {images}, expected a multiple of the {processes} processes")


def _check_crop(cfg: CfgNode) -> None:
    """Batch norm needs two values a channel, of which the deepest map of a small crop has one."""
    crop, stride = cfg.INPUT.CROP, cfg.MODEL.CLIP.OUTPUT_STRIDE
    if predicts(cfg) != {"sem_seg"} or not crop.ENABLED or crop.TYPE != "absolute":
        return
    size = cfg.INPUT.CROP_RESIZED_TO or crop.SIZE
    cells = [(int(side) + 1) // 2 // max(1, stride // 2) for side in size]
    images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() // max(1, cfg.SOLVER.ACCUMULATE)
    if math.prod(cells) * images < 2:
        raise ConfigError(
            f"INPUT.CROP makes images of {size} pixels, of which MODEL.CLIP.OUTPUT_STRIDE {stride} leaves {cells} cells, too "
            f"few for the batch norm of {images} image(s) at once; enlarge the crop to {[2 * stride] * 2} or more, or raise "
            "SOLVER.IMS_PER_BATCH"
        )


def _check_styles(cfg: CfgNode) -> None:
    restyler, weights = PatchRestyler(cfg), cfg.MODEL.CLIP.WEIGHTS
    if restyler.active:
        FAMixDatasetMapper(cfg, is_mining=True)  # which knows how crops are made
        tower = tower_without_weights(cfg)
        crop = torch.empty(1, 3, *cfg.INPUT.CROP.SIZE, device="meta")
        check_grid(tower.features_at(restyler.stage, crop).shape[-2:], restyler.grid)
    path = style_bank_path(cfg)
    if not restyler.needs("bank") or os.path.isfile(path):
        return
    if not weights:
        raise ConfigError(
            f"MODEL.STYLE.STRATEGY bank needs styles, but there is no bank at {path} and no CLIP to mine one with; "
            "set MODEL.CLIP.WEIGHTS (e.g. RN50 or a file), MODEL.STYLE.BANK, or another strategy"
        )
    MiningSettings.from_config(cfg)
    _check_folder("the folder of MODEL.STYLE.BANK", os.path.dirname(os.path.abspath(path)))


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE must be a device of torch such as cuda or cpu; got {device!r}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {device}, but torch finds no GPU; add MODEL.DEVICE cpu to the command")
    if kind == "cuda" and ":" in device and comm.get_world_size() > 1:
        raise ConfigError(
            f"MODEL.DEVICE must be without a number where several processes run, each on a GPU of its own, got {device}. "
            f"Set MODEL.DEVICE {kind}."
        )


def _check_folder(name: str, folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{name} {folder} cannot be written to ({error.strerror}); choose another") from error


def _check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    require_same_classes(names)
    head, metadata = cfg.MODEL.SEM_SEG_HEAD, MetadataCatalog.get(names[0])
    if (len(metadata.stuff_classes), metadata.ignore_label) != (head.NUM_CLASSES, head.IGNORE_VALUE):
        raise ConfigError(
            f"data set {names[0]} has {len(metadata.stuff_classes)} classes and ignore label {metadata.ignore_label}; "
            f"the config says MODEL.SEM_SEG_HEAD.NUM_CLASSES {head.NUM_CLASSES} and IGNORE_VALUE {head.IGNORE_VALUE}; "
            "set these to the data set's"
        )
