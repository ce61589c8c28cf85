"""Check a config before any work is done: build its components without weights, and compare settings of several ones."""

import argparse
import math
import os
import tempfile

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.utils import comm

from famix.clip.build import tower_without_weights, undownloaded
from famix.config import flat_settings
from famix.data import FAMixDatasetMapper, require_same_classes
from famix.data.build import build_train_mapper
from famix.data.domains import require_known_sources
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

_SYNCHRONIZED = ("SyncBN", "nnSyncBN")


def check_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check a config against the command line and the registered datasets.

    Args:
        cfg: the effective config.
        args: parsed command line, which decides whether the run mines, trains or evaluates.

    Raises:
        ConfigError: a setting is invalid; the message names the key, its value and the remedy.
        DatasetError: a dataset is unknown, or two datasets have different classes.
    """
    training, testing = not args.eval_only, not args.mine_styles_only
    if not (training or testing):
        raise ConfigError("--eval-only must be used without --mine-styles-only, got both. Omit one of them.")
    for split, needed in (("TRAIN", training), ("TEST", testing)):
        if needed and not cfg.DATASETS[split] and not getattr(args, "config_file", "any"):
            raise ConfigError(
                f"--config-file must name a config, got none, so that DATASETS.{split} is empty. Add --config-file FILE, "
                "e.g. projects/FAMix/configs/GTA5/famix_RN50.yaml."
            )
        if needed and not cfg.DATASETS[split]:
            kind = "the labeled source dataset" if split == "TRAIN" else "at least one target dataset"
            raise ConfigError(f"DATASETS.{split} must name {kind}, got none. Set DATASETS.{split} \"('NAME',)\".")
    _check_registered(cfg)
    _check_device(cfg.MODEL.DEVICE)
    _check_pixels(cfg)
    names = used_datasets(cfg, args)
    _check_classes(cfg, names)
    check_panoptic(cfg, names)
    FAMixDatasetMapper(cfg, is_train=False)  # checks the images of all runs
    if testing:
        require_known_sources(cfg)
        check_evaluation(cfg, _scored_datasets(cfg, args))
    if training and testing:
        check_selection(cfg)
        check_steps(cfg)
        _check_norms(cfg)
        _check_crop(cfg)
        build_train_mapper(cfg)
    if testing:
        _check_model(cfg, training)
    _check_folder("OUTPUT_DIR", cfg.OUTPUT_DIR)
    if training:
        _check_styles(cfg)


def used_datasets(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Return the names of the datasets that a run reads, sources first."""
    sources = () if args.eval_only else cfg.DATASETS.TRAIN
    return list(dict.fromkeys([*sources, *_scored_datasets(cfg, args)]))


def _scored_datasets(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    if args.mine_styles_only:
        return []
    source_val = cfg.MODEL_SELECTION.SOURCE_VAL
    return [*cfg.DATASETS.TEST, *([source_val] if source_val and not args.eval_only else [])]


def _check_registered(cfg: CfgNode) -> None:
    """Detectron2 looks up these names without an explanation."""
    model = cfg.MODEL
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        if name not in registry:
            hint = did_you_mean(name, [known for known, _ in registry])
            raise ConfigError(
                f"{key} must be a registered name, got {name!r}.{hint} Import the module that defines it before the run, as "
                "projects/FAMix/README.md shows."
            )


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE must be a device of torch, got {device!r}. Set it to cuda or cpu.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE must be available, got {device} without a GPU. Set MODEL.DEVICE cpu.")
    if kind == "cuda" and ":" in device and comm.get_world_size() > 1:
        raise ConfigError(
            f"MODEL.DEVICE must have no number for several processes, each on its own GPU, got {device}. Set MODEL.DEVICE "
            f"{kind}."
        )


def _check_pixels(cfg: CfgNode) -> None:
    for name, least in (("PIXEL_MEAN", -math.inf), ("PIXEL_STD", 0)):
        values = cfg.MODEL[name]
        if len(values) != 3 or not all(least < value < math.inf for value in values):
            kind = "positive" if least == 0 else "finite"
            raise ConfigError(
                f"MODEL.{name} must be three {kind} numbers, one per channel, got {values}. Omit it for CLIP's values."
            )


def _check_classes(cfg: CfgNode, names: list[str]) -> None:
    require_same_classes(names)
    head, metadata = cfg.MODEL.SEM_SEG_HEAD, MetadataCatalog.get(names[0])
    expected = len(metadata.stuff_classes), metadata.ignore_label
    if expected != (head.NUM_CLASSES, head.IGNORE_VALUE):
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES and IGNORE_VALUE must be {expected[0]} and {expected[1]} for dataset "
            f"{names[0]}, got {head.NUM_CLASSES} and {head.IGNORE_VALUE}. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES {expected[0]} "
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {expected[1]}."
        )


def _check_norms(cfg: CfgNode) -> None:
    """torch's SyncBatchNorm trains on GPUs only; a single process does not need it."""
    if torch.device(cfg.MODEL.DEVICE).type != "cpu" or comm.get_world_size() == 1:
        return
    for key, value in flat_settings(cfg.MODEL, "MODEL.").items():
        read = "INS_EMBED_HEAD" not in key or "centers" in trains_on(cfg)
        if key.endswith(".NORM") and value in _SYNCHRONIZED and read:
            raise ConfigError(
                f"{key} must be naiveSyncBN, BN or GN for several processes on the CPU, got {value}. Set it to naiveSyncBN, "
                "which shares the statistics among processes on any device."
            )


def _check_crop(cfg: CfgNode) -> None:
    """Batch norm needs two values per channel, and the deepest map of a small crop has only one."""
    crop, stride = cfg.INPUT.CROP, cfg.MODEL.CLIP.OUTPUT_STRIDE
    if predicts(cfg) != {"sem_seg"} or not crop.ENABLED or crop.TYPE != "absolute":
        return
    size = cfg.INPUT.CROP_RESIZED_TO or crop.SIZE
    cells = [(int(side) + 1) // 2 // max(1, stride // 2) for side in size]
    images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() // cfg.SOLVER.ACCUMULATE
    if math.prod(cells) * images < 2:
        raise ConfigError(
            f"INPUT.CROP must leave two cells for batch norm at MODEL.CLIP.OUTPUT_STRIDE {stride}, got {cells} cells of "
            f"{size} pixels for {images} image(s). Enlarge the crop to {[2 * stride] * 2} or raise SOLVER.IMS_PER_BATCH."
        )


def _check_model(cfg: CfgNode, training: bool) -> None:
    """Build the model, and for training its optimizer and schedule, on the meta device."""
    probe = undownloaded(cfg)
    probe.MODEL.DEVICE = "meta"
    with torch.random.fork_rng(devices=[]):
        model = build_model(probe)
    if training:
        build_lr_scheduler(probe, build_optimizer(probe, model))


def _check_folder(name: str, folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name} must be writable, got {folder} ({error.strerror}). Choose another folder."
        ) from error


def _check_styles(cfg: CfgNode) -> None:
    restyler = PatchRestyler(cfg)
    if restyler.active:
        FAMixDatasetMapper(cfg, is_mining=True)  # checks the crops of mining
        tower = tower_without_weights(cfg)
        crop = torch.empty(1, 3, *cfg.INPUT.CROP.SIZE, device="meta")
        check_grid(tower.features_at(restyler.stage, crop).shape[-2:], restyler.grid)
    path = style_bank_path(cfg)
    if not restyler.needs("bank") or os.path.isfile(path):
        return
    if not cfg.MODEL.CLIP.WEIGHTS:
        raise ConfigError(
            f"MODEL.STYLE.STRATEGY must not need a bank without MODEL.CLIP.WEIGHTS, got {cfg.MODEL.STYLE.STRATEGY!r} without "
            f"a bank at {path}. Set MODEL.CLIP.WEIGHTS (e.g. RN50 or a file), MODEL.STYLE.BANK, or another strategy."
        )
    MiningSettings.from_config(cfg)
    _check_folder("the folder of MODEL.STYLE.BANK", os.path.dirname(os.path.abspath(path)))
