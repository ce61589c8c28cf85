"""Networks: CLIP's image tower as a backbone, the decoder and the meta-architectures."""

from contextlib import suppress

from famix.modeling.backbone import build_clip_resnet_backbone
from famix.modeling.clip_architecture import ARCHITECTURES, CLIPArchitecture, architecture_of
from famix.modeling.clip_resnet import STAGES, CLIPResNet
from famix.modeling.clip_weights import (
    clip_weights_hash,
    load_clip_state_dict,
    load_configured_clip,
    require_text_design,
)
from famix.modeling.deeplab_head import CLIPDeepLabV3PlusHead
from famix.modeling.panoptic_backbone import build_clip_resnet_fpn_backbone
from famix.modeling.panoptic_fpn import FAMixPanopticFPN, StuffSemSegFPNHead
from famix.modeling.semantic_segmentor import FAMixSemanticSegmentor
from famix.modeling.style_mixin import PatchStyleMixin

with suppress(ImportError):  # Detectron2's Panoptic-DeepLab needs panopticapi, which nothing else here needs
    from famix.modeling.panoptic_deeplab import FAMixPanopticDeepLab

__all__ = [
    "ARCHITECTURES",
    "STAGES",
    "CLIPArchitecture",
    "CLIPDeepLabV3PlusHead",
    "CLIPResNet",
    "FAMixPanopticDeepLab",
    "FAMixPanopticFPN",
    "FAMixSemanticSegmentor",
    "PatchStyleMixin",
    "StuffSemSegFPNHead",
    "architecture_of",
    "build_clip_resnet_backbone",
    "build_clip_resnet_fpn_backbone",
    "clip_weights_hash",
    "load_clip_state_dict",
    "load_configured_clip",
    "require_text_design",
]
