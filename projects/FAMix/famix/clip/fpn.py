"""CLIP's image tower under a feature pyramid."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from famix.clip.build import build_clip_resnet_backbone
from famix.clip.dilation import CLIP_STRIDE
from famix.utils.errors import ConfigError

__all__ = ["build_clip_resnet_fpn_backbone"]


@BACKBONE_REGISTRY.register()
def build_clip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """Build a feature pyramid on the backbone that MODEL.CLIP describes.

    Args:
        cfg: reads MODEL.CLIP and MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM, FUSE_TYPE}.
        input_shape: unused; CLIP takes 3 channels.

    Returns:
        p2 to p6, where IN_FEATURES has res2 to res5; its `bottom_up` is a CLIPResNet, frozen but for TRAINABLE.

    Raises:
        ConfigError: MODEL.CLIP.OUTPUT_STRIDE is not 32, without which the stages do not halve one by one.
    """
    if cfg.MODEL.CLIP.OUTPUT_STRIDE != CLIP_STRIDE:
        raise ConfigError(
            f"MODEL.CLIP.OUTPUT_STRIDE is {cfg.MODEL.CLIP.OUTPUT_STRIDE}, expected {CLIP_STRIDE}: in a feature pyramid "
            "every stage has half the resolution of the one before"
        )
    return FPN(
        bottom_up=build_clip_resnet_backbone(cfg),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
