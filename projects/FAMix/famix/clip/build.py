"""Registration of the CLIP backbone with Detectron2."""

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from famix.clip.architecture import architecture_of
from famix.clip.resnet import CLIPResNet
from famix.clip.weights import load_configured_clip

__all__ = ["build_clip_resnet_backbone"]


@BACKBONE_REGISTRY.register()
def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> CLIPResNet:
    """Build the backbone that MODEL.CLIP describes, without CLIP's attention pool.

    Args:
        cfg: reads MODEL.CLIP. With WEIGHTS the file decides the sizes; without, ARCHITECTURE does and the weights are
            random until a checkpoint fills them.
        input_shape: unused; CLIP takes 3 channels.

    Returns:
        The backbone, frozen but for TRAINABLE.

    Raises:
        ConfigError: ARCHITECTURE is unknown, or does not fit the file.
        WeightsError: see `load_clip_state_dict`.
    """
    clip = cfg.MODEL.CLIP
    if clip.WEIGHTS:
        logging.getLogger(__name__).info("The backbone starts from the CLIP weights %s", clip.WEIGHTS)
        return CLIPResNet.from_state_dict(
            load_configured_clip(cfg),
            clip.OUTPUT_STRIDE,
            trainable=clip.TRAINABLE,
            with_attention_pool=False,
        ).train()  # as the rest of a new model is
    return CLIPResNet(
        architecture_of(clip.ARCHITECTURE), clip.OUTPUT_STRIDE, trainable=clip.TRAINABLE, with_attention_pool=False
    )
