"""Heads, losses, meta-architectures and the mixin that restyles features inside them."""

from contextlib import suppress

from famix.modeling.deeplab_head import CLIPDeepLabV3PlusHead
from famix.modeling.panoptic_fpn import FAMixPanopticFPN, StuffSemSegFPNHead
from famix.modeling.query import FAMixMaskFormer
from famix.modeling.semantic_segmentor import FAMixSemanticSegmentor
from famix.modeling.style_mixin import PatchStyleMixin

with suppress(ImportError):  # Detectron2's Panoptic-DeepLab requires panopticapi, which is optional
    from famix.modeling.panoptic_deeplab import FAMixPanopticDeepLab

__all__ = [
    "CLIPDeepLabV3PlusHead",
    "FAMixMaskFormer",
    "FAMixPanopticDeepLab",
    "FAMixPanopticFPN",
    "FAMixSemanticSegmentor",
    "PatchStyleMixin",
    "StuffSemSegFPNHead",
]
