"""Targets and predictions of MODEL.META_ARCHITECTURE, read from the class, so that no module lists class names.

A meta-architecture declares them as class attributes:

    TRAINS_ON = frozenset({"sem_seg", "instances"})      # of "sem_seg", "centers" and "instances"
    PREDICTS = frozenset({"sem_seg", "panoptic_seg", "instances"})      # of these three

"centers" are the targets of Panoptic-DeepLab, "instances" are boxes and masks. A class of Detectron2 without these
attributes trains on its own targets, and its semantic predictions are scored.
"""

from contextlib import suppress

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN


def trains_on(cfg: CfgNode) -> frozenset[str]:
    """Return the targets of the meta-architecture: "sem_seg", and "centers" or "instances" for panoptic ones."""
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
    """Return the entries of the predictions that can be scored: "sem_seg", "panoptic_seg", "instances"."""
    return getattr(_class_of(cfg), "PREDICTS", frozenset({"sem_seg"}))


def _class_of(cfg: CfgNode) -> type:
    name = cfg.MODEL.META_ARCHITECTURE
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else object
