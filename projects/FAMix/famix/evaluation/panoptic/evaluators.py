"""Panoptic scores beside the semantic ones: which evaluators a data set gets, and what must fit."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from famix.data.panoptic.classes import is_panoptic, panoptic_classes, require_same_things
from famix.data.panoptic.targets import CENTERS, INSTANCES, targets_of
from famix.evaluation.panoptic.instances import InstanceAPEvaluator
from famix.evaluation.panoptic.quality import PanopticQualityEvaluator, require_panopticapi
from famix.evaluation.panoptic.truth import TruthReader
from famix.evaluation.protocols.protocol import protocol_of
from famix.utils.errors import ConfigError

__all__ = [
    "PANOPTIC_ARCHITECTURES",
    "check_panoptic",
    "with_panoptic_evaluators",
]

PANOPTIC_ARCHITECTURES = {"FAMixPanopticDeepLab": CENTERS, "FAMixPanopticFPN": INSTANCES}
"""Meta-architectures that predict "panoptic_seg" -> kind of targets they train with."""


def with_panoptic_evaluators(cfg: CfgNode, dataset_name: str, semantic: DatasetEvaluator) -> DatasetEvaluator:
    """Add to a semantic evaluator what else a panoptic model is scored by.

    Args:
        cfg: reads MODEL.META_ARCHITECTURE.
        dataset_name: a registered data set.
        semantic: scores "sem_seg".

    Returns:
        For panoptic models and data sets evaluators of "sem_seg", "panoptic_seg" (PQ) and "segm" (mask AP), as for
        Detectron2's Panoptic-DeepLab; otherwise `semantic`.
    """
    if cfg.MODEL.META_ARCHITECTURE not in PANOPTIC_ARCHITECTURES or not is_panoptic(dataset_name):
        return semantic
    truths = TruthReader(panoptic_classes(dataset_name).things, cfg.INPUT.MAX_PIXELS)
    quality = PanopticQualityEvaluator(dataset_name, truths)
    return DatasetEvaluators([semantic, quality, InstanceAPEvaluator(dataset_name, truths)])


def check_panoptic(cfg: CfgNode, names: Sequence[str]) -> None:
    """Find out whether a panoptic model can be built, trained and scored as the config says.

    Args:
        cfg: the effective config; those of other models are not looked at.
        names: of the data sets that the run reads.

    Raises:
        ConfigError: names the key, what it is and what it should be.
    """
    architecture, head = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD
    if architecture not in PANOPTIC_ARCHITECTURES:
        return
    require_panopticapi()
    if not cfg.DATASETS.TRAIN:
        raise ConfigError(f"DATASETS.TRAIN is empty; {architecture} is told by its first data set what is a thing")
    classes = require_same_things([cfg.DATASETS.TRAIN[0], *names])
    for name in cfg.DATASETS.TEST:
        if name in names and not protocol_of(cfg, name).is_native:
            raise ConfigError(
                f"the protocol '{protocol_of(cfg, name).name}' of {name} resizes or averages scores of classes, which "
                "says nothing of instances; set TEST.PROTOCOL native, and leave the data set out of TEST.PROTOCOL_OF"
            )
    if targets_of(cfg) == CENTERS:
        _require(
            "MODEL.SEM_SEG_HEAD.LOSS_TYPE", head.LOSS_TYPE, "hard_pixel_mining", "the only one with weights of pixels"
        )
    else:
        _require(
            "MODEL.SEM_SEG_HEAD.NAME", head.NAME, "StuffSemSegFPNHead", "the head that takes the things for one class"
        )
        _require(
            "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES, len(classes.things), "the data set's things"
        )
        _require("MODEL.MASK_ON", cfg.MODEL.MASK_ON, True, "without masks there are no segments")


def _require(key: str, got: object, expected: object, reason: str) -> None:
    if got != expected:
        raise ConfigError(f"{key} is {got!r}, expected {expected!r} ({reason}); set it so")
