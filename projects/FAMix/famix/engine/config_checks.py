"""Checks of a config before a run starts: components are built without weights, and settings are cross-checked."""

import argparse
import logging
import math
import os
import tempfile

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.utils import comm

from famix.clip import IMAGE, at_stage
from famix.clip.build import tower_without_weights, undownloaded
from famix.config import flat_settings, require_setting
from famix.data import FAMixDatasetMapper, get_dataset_dicts, require_same_classes
from famix.data.build import build_train_mapper, count_mining_batches
from famix.data.check import evenly_spaced
from famix.data.images import image_size
from famix.data.meta_architecture import predicts, trains_on
from famix.data.registration import require_known_sources
from famix.data.sampling.rare_classes import check_sampler
from famix.data.vocabulary import vocabulary_of
from famix.engine.model_selection import check_selection
from famix.engine.optimization import build_lr_scheduler, build_optimizer
from famix.engine.step_trainer import check_steps
from famix.evaluation import check_evaluation
from famix.evaluation.evaluators import check_panoptic
from famix.mining import MiningSettings, style_bank_path
from famix.modeling.compiling import check_compilation
from famix.reports.trackers import build_trackers
from famix.style import PatchRestyler, needs_bank
from famix.style.patches import check_grid
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

_NUM_SIZES = 32  # images whose headers are read
_MOST_PADDING = 0.5  # of each crop, without a warning
_SYNCHRONIZED = ("SyncBN", "nnSyncBN")


def check_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check a config for the task on the command line and against the registered datasets.

    Raises:
        ConfigError: a setting is invalid.
        DatasetError: a dataset is unknown, or two datasets have different classes.
    """
    training, testing = not args.eval_only, not args.mine_styles_only
    for split, needed in (("TRAIN", training), ("TEST", args.eval_only)):
        remedy = (
            f"Set DATASETS.{split} to \"('NAME',)\", or pass --config-file FILE, e.g. "
            "projects/FAMix/configs/GTA5/famix_RN50.yaml"
        )
        valid = bool(cfg.DATASETS[split]) or not needed
        require_setting(cfg, f"DATASETS.{split}", valid, "a non-empty tuple of labeled datasets", remedy)
    _check_model_settings(cfg)
    names = used_datasets(cfg, args)
    training_names = [name for name in names if name in cfg.DATASETS.TRAIN]
    _check_classes(cfg, names if vocabulary_of(cfg) is None else training_names)
    check_panoptic(cfg, names)
    FAMixDatasetMapper(cfg, is_train=False)  # checks the image settings, which apply to every run
    if testing:
        require_known_sources(cfg)
        check_evaluation(cfg, _scored_datasets(cfg, args))
    if training and testing:
        check_selection(cfg)
        check_steps(cfg)
        _check_norms(cfg)
        _check_crop(cfg)
        build_train_mapper(cfg)
        check_sampler(cfg)
        build_trackers(cfg)
    if testing:
        probe = undownloaded(cfg)
        probe.MODEL.DEVICE = "meta"
        with torch.random.fork_rng(devices=[]):
            model = build_model(probe)
        if training:
            build_lr_scheduler(probe, build_optimizer(probe, model))
    _check_folder("OUTPUT_DIR", cfg.OUTPUT_DIR)
    if training:
        _check_styles(cfg)


def check_source(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check the crops and mining batches of a run against its source images, whose files must be sound.

    A warning is logged if padding covers more than half of every crop.

    Raises:
        ConfigError: mining is needed, and there are too few images for one batch.
    """
    images = get_dataset_dicts(cfg.DATASETS.TRAIN)
    scales = {} if args.mine_styles_only else {"training": sum(cfg.INPUT.SCALE_RANGE) / 2}
    if not os.path.isfile(style_bank_path(cfg)) and (args.mine_styles_only or needs_bank(cfg)):
        count_mining_batches(cfg, len(images))
        scales["mining"] = 1.0
    crop = cfg.INPUT.CROP.SIZE
    sizes = {image_size(image["file_name"], cfg.INPUT.MAX_PIXELS) for image in evenly_spaced(images, _NUM_SIZES)}
    largest = max(sizes, key=math.prod)

    def shown(size: tuple[int, int], scale: float) -> float:
        """Return the share of a crop that shows the image."""
        return math.prod(min(1, scale * side / most) for side, most in zip(size, crop, strict=True))

    padding = {task: 1 - max(shown(size, scale) for size in sizes) for task, scale in scales.items()}
    if any(share > _MOST_PADDING for share in padding.values()):
        shares = " and ".join(f"{100 * share:.0f} % (in {task})" for task, share in padding.items())
        logging.getLogger(__name__).warning(
            "INPUT.CROP.SIZE is %s, but the largest images have %d x %d pixels (height x width), so padding fills %s of "
            "their crops. Set INPUT.CROP.SIZE to at most the size of the images.",
            list(crop), *largest, shares,
        )  # fmt: skip


def used_datasets(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Return the names of the datasets that a run reads, sources first."""
    sources = () if args.eval_only else cfg.DATASETS.TRAIN
    return list(dict.fromkeys([*sources, *_scored_datasets(cfg, args)]))


def _scored_datasets(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    if args.mine_styles_only:
        return []
    source_val = cfg.MODEL_SELECTION.SOURCE_VAL
    return [*cfg.DATASETS.TEST, *([source_val] if source_val and not args.eval_only else [])]


def _check_model_settings(cfg: CfgNode) -> None:
    model, device = cfg.MODEL, cfg.MODEL.DEVICE
    for key, name, registry in (  # Detectron2's own lookup errors do not name the key
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        hint = did_you_mean(name, [known for known, _ in registry])
        remedy = "Import the module that registers it before the run (see projects/FAMix/README.md)"
        require_setting(cfg, key, name in registry, "a registered name", f"{hint} {remedy}".strip())
    try:
        on_gpu = torch.device(device).type == "cuda"
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE must be a torch device, got {device!r}. Set it to cuda or cpu.") from error
    found, numbered = not on_gpu or torch.cuda.is_available(), on_gpu and ":" in device
    require_setting(cfg, "MODEL.DEVICE", found, "cpu on a machine without a GPU", "Set MODEL.DEVICE to cpu")
    valid = not numbered or comm.get_world_size() == 1
    require_setting(cfg, "MODEL.DEVICE", valid, "cuda, without an index, for several processes", "Set it to cuda")
    check_compilation(cfg)
    for name, kind, least in (("PIXEL_MEAN", "finite", -math.inf), ("PIXEL_STD", "positive", 0)):
        valid = len(model[name]) == 3 and all(least < value < math.inf for value in model[name])
        constraint = f"three {kind} numbers, one per channel"
        require_setting(cfg, f"MODEL.{name}", valid, constraint, "Omit it to use CLIP's values")


def _check_classes(cfg: CfgNode, names: list[str]) -> None:
    if not names:  # TEST.CLASSES maps the classes of test datasets by name
        return
    require_same_classes(names)
    head, metadata = cfg.MODEL.SEM_SEG_HEAD, MetadataCatalog.get(names[0])
    expected = len(metadata.stuff_classes), metadata.ignore_label
    if expected != (head.NUM_CLASSES, head.IGNORE_VALUE):
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES and IGNORE_VALUE are {head.NUM_CLASSES} and {head.IGNORE_VALUE}, but "
            f"dataset '{names[0]}' has {expected[0]} classes and ignore label {expected[1]}. Set "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES to {expected[0]} and MODEL.SEM_SEG_HEAD.IGNORE_VALUE to {expected[1]}."
        )


def _check_norms(cfg: CfgNode) -> None:
    """Reject torch's SyncBatchNorm, which supports GPUs only, if several processes run on the CPU."""
    if torch.device(cfg.MODEL.DEVICE).type != "cpu" or comm.get_world_size() == 1:
        return
    for key, value in flat_settings(cfg.MODEL, "MODEL.").items():
        used = key.endswith(".NORM") and ("INS_EMBED_HEAD" not in key or "centers" in trains_on(cfg))
        require_setting(
            cfg, key, not used or value not in _SYNCHRONIZED, "naiveSyncBN, BN or GN for several processes on the CPU",
            "Set it to naiveSyncBN, which synchronizes statistics on any device",
        )  # fmt: skip


def _check_crop(cfg: CfgNode) -> None:
    """Reject crops whose deepest feature map gives batch norm fewer than two values per channel."""
    crop, stride = cfg.INPUT.CROP, cfg.MODEL.CLIP.OUTPUT_STRIDE
    if predicts(cfg) != {"sem_seg"} or not crop.ENABLED or crop.TYPE != "absolute":
        return
    size = cfg.INPUT.CROP_RESIZED_TO or crop.SIZE
    cells = [(int(side) + 1) // 2 // max(1, stride // 2) for side in size]
    images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() // cfg.SOLVER.ACCUMULATE
    if math.prod(cells) * images < 2:
        raise ConfigError(
            f"INPUT.CROP is too small for batch norm, which needs at least two values per channel: with {images} "
            f"image(s) of {size} pixels and MODEL.CLIP.OUTPUT_STRIDE {stride}, the deepest feature map has size "
            f"{cells}. Increase the crop to {[2 * stride] * 2}, or increase SOLVER.IMS_PER_BATCH."
        )


def _check_folder(key: str, folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{key} is not writable: '{folder}' ({error.strerror}). Choose another folder.") from error


def _check_styles(cfg: CfgNode) -> None:
    restyler = PatchRestyler(cfg)
    if restyler.active:
        FAMixDatasetMapper(cfg, is_mining=True)  # checks the crop settings for mining
        tower = at_stage(tower_without_weights(cfg), restyler.stage)
        crop = torch.empty(1, 3, *cfg.INPUT.CROP.SIZE, device="meta")
        check_grid(tower.features_at(restyler.stage, crop).shape[-2:], restyler.grid)
    path = style_bank_path(cfg)
    if not restyler.needs("bank") or os.path.isfile(path):
        return
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" and restyler.stage != IMAGE:
        raise ConfigError(
            f"MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME} has no text tower, so styles cannot be mined in its features. Set "
            "MODEL.STYLE.STRATEGY to noise, mixstyle or none, or set MODEL.STYLE.STAGE to image and MODEL.CLIP.WEIGHTS to the "
            "CLIP that mines picture styles."
        )
    if not cfg.MODEL.CLIP.WEIGHTS:
        raise ConfigError(
            f"MODEL.STYLE.STRATEGY {cfg.MODEL.STYLE.STRATEGY!r} requires a style bank, but '{path}' does not exist and "
            "MODEL.CLIP.WEIGHTS is empty, so no bank can be mined. Set MODEL.CLIP.WEIGHTS (e.g. to RN50 or a file), "
            "set MODEL.STYLE.BANK to an existing bank, or change the strategy."
        )
    MiningSettings.from_config(cfg)
    _check_folder("MODEL.STYLE.BANK", os.path.dirname(os.path.abspath(path)))
