"""Targets and predictions of MODEL.META_ARCHITECTURE, read from the class so that no module needs to list class names.

A meta-architecture declares them as class attributes:

    TRAINS_ON = frozenset({"sem_seg", "instances"})      # any of "sem_seg", "centers", "instances" and "segments"
    PREDICTS = frozenset({"sem_seg", "panoptic_seg", "instances"})      # any of these three
    SCORES = "probabilities"      # if "sem_seg" is proportional to probabilities instead of logits

"centers" are the targets of Panoptic-DeepLab; "instances" are boxes and masks; "segments" are a class and a mask for every
thing and stuff segment. A Detectron2 class without these attributes trains on its usual targets, and only its semantic
predictions are scored.
"""

from contextlib import suppress

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN

from famix.data.classes import is_panoptic


def trains_on(cfg: CfgNode) -> frozenset[str]:
    """Return the training targets of the meta-architecture: "sem_seg", plus "centers" or "instances" if it is panoptic."""
    architecture = _class_of(cfg)
    targets = {"sem_seg"}
    if issubclass(architecture, GeneralizedRCNN):
        targets.add("instances")
    with suppress(ImportError):  # Detectron2's Panoptic-DeepLab requires panopticapi, which is optional
        from detectron2.projects.panoptic_deeplab import PanopticDeepLab

        if issubclass(architecture, PanopticDeepLab):
            targets.add("centers")
    return getattr(architecture, "TRAINS_ON", frozenset(targets))


def predicts(cfg: CfgNode) -> frozenset[str]:
    """Return the predictions that can be scored: "sem_seg", "panoptic_seg" or "instances".

    A model that trains on segments predicts things only if all training datasets (or test datasets, if there are none) are
    panoptic.
    """
    predictions: frozenset[str] = getattr(_class_of(cfg), "PREDICTS", frozenset({"sem_seg"}))
    if "segments" in trains_on(cfg):
        sources = [name for name in cfg.DATASETS.TRAIN or cfg.DATASETS.TEST if name in DatasetCatalog]
        if not (sources and all(map(is_panoptic, sources))):
            return predictions & {"sem_seg"}
    return predictions


def predicts_logits(cfg: CfgNode) -> bool:
    """Return whether "sem_seg" predictions are logits rather than proportional to probabilities."""
    return getattr(_class_of(cfg), "SCORES", "logits") != "probabilities"


def _class_of(cfg: CfgNode) -> type:
    name = cfg.MODEL.META_ARCHITECTURE
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else object
