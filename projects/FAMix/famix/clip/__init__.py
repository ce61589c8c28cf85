"""CLIP: image towers as backbones, text towers, prompts and weight files."""

from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture
from famix.clip.base import CLIP_FAMILY_REGISTRY, CLIPImageTower
from famix.clip.build import build_clip_backbone, build_clip_resnet_backbone, build_clip_resnet_fpn_backbone
from famix.clip.image_stage import IMAGE, ImageStage, at_stage
from famix.clip.open_clip import CLIPConvNeXt, CLIPTimmViT, CLIPViT
from famix.clip.resnet import STAGES, CLIPResNet
from famix.clip.text.encoder import PromptEncoder
from famix.clip.text.prompts import (
    IGNORE_PROMPT,
    IMAGENET_TEMPLATES,
    check_styles,
    check_templates,
    class_prompt,
    fill_template,
)
from famix.clip.text.tower import OPEN_CLIP_TEXT, OPENAI_TEXT, TextDesign, TextTower
from famix.clip.weights import (
    clip_weights_hash,
    load_clip_state_dict,
    load_configured_clip,
    register_clip_weights,
    require_text_design,
)

__all__ = [
    "ARCHITECTURES",
    "CLIP_FAMILY_REGISTRY",
    "CLIPArchitecture",
    "CLIPConvNeXt",
    "CLIPImageTower",
    "CLIPResNet",
    "CLIPTimmViT",
    "CLIPViT",
    "IGNORE_PROMPT",
    "IMAGE",
    "IMAGENET_TEMPLATES",
    "ImageStage",
    "OPENAI_TEXT",
    "OPEN_CLIP_TEXT",
    "PromptEncoder",
    "STAGES",
    "TextDesign",
    "TextTower",
    "at_stage",
    "build_clip_backbone",
    "build_clip_resnet_backbone",
    "build_clip_resnet_fpn_backbone",
    "check_styles",
    "check_templates",
    "class_prompt",
    "clip_weights_hash",
    "fill_template",
    "load_clip_state_dict",
    "load_configured_clip",
    "register_clip_weights",
    "require_text_design",
]
