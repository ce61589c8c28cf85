"""CLIP image towers as backbones of Detectron2, with and without a feature pyramid."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor

from famix.clip.base import CLIPImageTower, family_named, family_of, find_family
from famix.clip.weights import is_published, load_configured_clip
from famix.utils.errors import ConfigError, WeightsError

__all__ = ["build_clip_backbone", "build_clip_resnet_backbone", "build_clip_resnet_fpn_backbone"]

_PREFIXES = ("backbone.bottom_up.", "backbone.")  # of a backbone with and without a feature pyramid
_from_checkpoint: ContextVar[tuple[type[CLIPImageTower], Any] | None] = ContextVar("_from_checkpoint", default=None)


@BACKBONE_REGISTRY.register()
def build_clip_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> CLIPImageTower:
    """Build the image tower that MODEL.CLIP describes, of any family, without the layers of CLIP's embedding.

    Args:
        cfg: reads MODEL.CLIP. With WEIGHTS the file decides on family and sizes; without, ARCHITECTURE does and the weights
            are random until a checkpoint fills them.
        input_shape: unused; CLIP takes 3 channels.

    Returns:
        The backbone, frozen except for TRAINABLE.

    Raises:
        ConfigError: ARCHITECTURE is unknown, or does not fit the file.
        WeightsError: see `load_clip_state_dict`.
    """
    clip, found = cfg.MODEL.CLIP, _from_checkpoint.get()
    if found is None and clip.WEIGHTS:
        logging.getLogger(__name__).info("The backbone starts from the CLIP weights %s", clip.WEIGHTS)
        return CLIPImageTower.from_state_dict(
            load_configured_clip(cfg), clip.OUTPUT_STRIDE, trainable=clip.TRAINABLE, with_embedding=False
        ).train()  # like the rest of a new model
    return _create(cfg, clip.TRAINABLE, *(found or _named(clip.ARCHITECTURE)))


@BACKBONE_REGISTRY.register()
def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> CLIPImageTower:
    """Build the same backbone as `build_clip_backbone`, under the name that configs of version 0.1 use."""
    return build_clip_backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_clip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """Build a feature pyramid on the backbone that MODEL.CLIP describes.

    Args:
        cfg: reads MODEL.CLIP and MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM, FUSE_TYPE}.
        input_shape: unused; CLIP takes 3 channels.

    Returns:
        p2 to p6 for IN_FEATURES res2 to res5; `bottom_up` is the CLIP tower, frozen except for TRAINABLE.

    Raises:
        ConfigError: the strides of IN_FEATURES do not double from one to the next.
    """
    tower = build_clip_backbone(cfg)
    strides = [tower.output_shape()[name].stride or 0 for name in cfg.MODEL.FPN.IN_FEATURES]
    if any(2 * fine != coarse for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(
            f"MODEL.CLIP.OUTPUT_STRIDE must be 32 for a feature pyramid, got {cfg.MODEL.CLIP.OUTPUT_STRIDE}, which gives the "
            f"strides {strides}. Set MODEL.CLIP.OUTPUT_STRIDE 32."
        )
    return FPN(
        bottom_up=tower,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@contextmanager
def backbone_of(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give backbones that are built while the context is open the family and sizes of a segmentation checkpoint.

    Args:
        weights: state_dict of the segmentation network. If no family recognises its backbone, MODEL.CLIP decides.
    """
    found = None
    for prefix in _PREFIXES:
        visual = {f"visual.{name.removeprefix(prefix)}": weights[name] for name in weights if name.startswith(prefix)}
        family = find_family(visual)
        if family is not None:
            with suppress(WeightsError):  # a damaged checkpoint, which is reported when it is loaded
                found = family, family.read_architecture(visual, with_embedding=False)
            break
    token = _from_checkpoint.set(found)
    try:
        yield
    finally:
        _from_checkpoint.reset(token)


def tower_without_weights(cfg: CfgNode, state_dict: Mapping[str, Tensor] | None = None) -> CLIPImageTower:
    """Build the image tower of MODEL.CLIP without memory for weights, to ask for its stages and shapes.

    Args:
        cfg: reads MODEL.CLIP.
        state_dict: the CLIP of MODEL.CLIP.WEIGHTS if it is loaded already. A published CLIP is not downloaded.

    Raises:
        ConfigError, WeightsError: see `build_clip_backbone`.
    """
    cfg = undownloaded(cfg)
    if not state_dict and cfg.MODEL.CLIP.WEIGHTS:
        state_dict = load_configured_clip(cfg)
    if state_dict:
        family = family_of(state_dict)
        found = family, family.read_architecture(state_dict)
    else:
        found = _named(cfg.MODEL.CLIP.ARCHITECTURE)
    with torch.device("meta"):
        return _create(cfg, (), *found)


def _named(architecture: str) -> tuple[type[CLIPImageTower], Any]:
    family = family_named(architecture)
    return family, family.named_architectures()[architecture]


def _create(cfg: CfgNode, trainable: Sequence[str], family: Any, architecture: Any) -> CLIPImageTower:
    """Call the constructor that all families share, see `CLIPImageTower`."""
    return family(architecture, cfg.MODEL.CLIP.OUTPUT_STRIDE, trainable=trainable, with_embedding=False)


def undownloaded(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config that names the architecture of a published CLIP in place of its weights."""
    cfg = cfg.clone()
    cfg.defrost()
    if is_published(cfg.MODEL.CLIP.WEIGHTS):
        cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.CLIP.WEIGHTS, ""
    return cfg
