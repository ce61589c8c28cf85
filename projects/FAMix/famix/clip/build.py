"""Builders of CLIP backbones, with and without a feature pyramid."""

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

_PREFIXES = ("backbone.bottom_up.", "backbone.")  # of a backbone with and without a feature pyramid
_from_checkpoint: ContextVar[tuple[type[CLIPImageTower], Any] | None] = ContextVar("_from_checkpoint", default=None)


@BACKBONE_REGISTRY.register()
def build_clip_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> CLIPImageTower:
    """Build the image tower of any CLIP family, without the modules for image embeddings.

    Args:
        cfg: config with MODEL.CLIP. WEIGHTS determines the family and its sizes. Without WEIGHTS, ARCHITECTURE determines them
            and the weights are random.
        input_shape: unused; the input is RGB.

    Returns:
        The backbone in train mode, frozen except for TRAINABLE.

    Raises:
        ConfigError: ARCHITECTURE is unknown or contradicts the file.
        WeightsError: the file is missing or invalid (see `load_clip_state_dict`).
    """
    clip, found = cfg.MODEL.CLIP, _from_checkpoint.get()
    if found is None and clip.WEIGHTS:
        logging.getLogger(__name__).info("Loading the backbone from the CLIP weights %s", clip.WEIGHTS)
        return CLIPImageTower.from_state_dict(
            load_configured_clip(cfg), clip.OUTPUT_STRIDE, trainable=clip.TRAINABLE, with_embedding=False
        ).train()  # like the rest of a new model
    return _create(cfg, clip.TRAINABLE, *(found or _named(clip.ARCHITECTURE)))


@BACKBONE_REGISTRY.register()
def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> CLIPImageTower:
    """Call `build_clip_backbone`; configs of version 0.1 use this name."""
    return build_clip_backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_clip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """Build a feature pyramid on a CLIP image tower.

    Args:
        cfg: config with MODEL.CLIP and MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM, FUSE_TYPE}.
        input_shape: unused; the input is RGB.

    Returns:
        p2 to p6 for IN_FEATURES res2 to res5; `bottom_up` is the CLIP tower, frozen except for TRAINABLE.

    Raises:
        ConfigError: the strides of IN_FEATURES do not double from stage to stage.
    """
    tower = build_clip_backbone(cfg)
    strides = [tower.output_shape()[name].stride or 0 for name in cfg.MODEL.FPN.IN_FEATURES]
    if any(2 * fine != coarse for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(
            f"MODEL.CLIP.OUTPUT_STRIDE must be 32 for a feature pyramid, got {cfg.MODEL.CLIP.OUTPUT_STRIDE} "
            f"(strides {strides}). Set MODEL.CLIP.OUTPUT_STRIDE 32."
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
    """Build backbones with the family and sizes of a segmentation checkpoint while the context is open.

    Args:
        weights: state_dict of the segmentation network. If no family recognizes its backbone, MODEL.CLIP is used.
    """
    found = None
    for prefix in _PREFIXES:
        visual = {f"visual.{name.removeprefix(prefix)}": weights[name] for name in weights if name.startswith(prefix)}
        family = find_family(visual)
        if family is not None:
            with suppress(WeightsError):  # loading the checkpoint reports the error
                found = family, family.read_architecture(visual, with_embedding=False)
            break
    token = _from_checkpoint.set(found)
    try:
        yield
    finally:
        _from_checkpoint.reset(token)


def tower_without_weights(cfg: CfgNode, state_dict: Mapping[str, Tensor] | None = None) -> CLIPImageTower:
    """Build the image tower on the meta device, to query its stages and shapes.

    Published weights are not downloaded.

    Args:
        cfg: config with MODEL.CLIP.
        state_dict: weights of MODEL.CLIP.WEIGHTS, if already loaded.

    Raises:
        ConfigError, WeightsError: as in `build_clip_backbone`.
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
    return family(architecture, cfg.MODEL.CLIP.OUTPUT_STRIDE, trainable=trainable, with_embedding=False)


def undownloaded(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config in which the name of a published CLIP is replaced by its architecture."""
    cfg = cfg.clone()
    cfg.defrost()
    if is_published(cfg.MODEL.CLIP.WEIGHTS):
        cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.CLIP.WEIGHTS, ""
    return cfg
