"""Registration of the CLIP backbone with Detectron2."""

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from famix.errors import ConfigError
from famix.modeling.clip_architecture import ARCHITECTURES
from famix.modeling.clip_resnet import CLIPResNet
from famix.modeling.clip_weights import load_clip_state_dict

__all__ = ["build_clip_resnet_backbone"]


@BACKBONE_REGISTRY.register()
def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> CLIPResNet:
    """Build the backbone that MODEL.CLIP describes, without CLIP's attention pool.

    Args:
        cfg: reads MODEL.CLIP. With WEIGHTS the file decides the architecture; without, ARCHITECTURE does and the
            weights are random until a checkpoint fills them.
        input_shape: unused; CLIP takes 3 channels.

    Returns:
        The backbone, frozen but for TRAINABLE.
    """
    clip = cfg.MODEL.CLIP
    if clip.WEIGHTS:
        logging.getLogger(__name__).info("The backbone starts from the CLIP weights %s", clip.WEIGHTS)
        return CLIPResNet.from_state_dict(
            load_clip_state_dict(clip.WEIGHTS),
            clip.OUTPUT_STRIDE,
            trainable=clip.TRAINABLE,
            with_attention_pool=False,
        ).train()  # as the rest of a new model is
    if clip.ARCHITECTURE not in ARCHITECTURES:
        raise ConfigError(
            f"MODEL.CLIP.ARCHITECTURE must be one of {', '.join(ARCHITECTURES)}, got {clip.ARCHITECTURE!r}; "
            "for any other network set MODEL.CLIP.WEIGHTS to its file"
        )
    return CLIPResNet(
        ARCHITECTURES[clip.ARCHITECTURE], clip.OUTPUT_STRIDE, trainable=clip.TRAINABLE, with_attention_pool=False
    )
