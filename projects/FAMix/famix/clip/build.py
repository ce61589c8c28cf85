"""Builders for CLIP backbones, with and without a feature pyramid."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from famix.clip.adapters import add_adapters
from famix.clip.base import CLIP_FAMILY_REGISTRY, CLIPImageTower, family_named, family_of, find_family
from famix.clip.open_clip.timm_backbone import build_timm_tower, find_timm_model
from famix.clip.weights import architecture_of, load_configured_clip
from famix.config import register_completion
from famix.utils.errors import ConfigError, WeightsError

_BUILDERS = (
    "build_clip_backbone",
    "build_clip_resnet_backbone",
    "build_clip_resnet_fpn_backbone",
    "build_timm_backbone",
)
_ROUNDING = 1e-3  # rounding error of pixel statistics in configs
_PREFIXES = ("backbone.bottom_up.", "backbone.net.", "backbone.")  # with and without a feature pyramid
_from_checkpoint: ContextVar[tuple[type[CLIPImageTower], Any] | None] = ContextVar("_from_checkpoint", default=None)


class CLIPFeaturePyramid(SimpleFeaturePyramid):
    """Detectron2's feature pyramid on the last block of a ViT ("ViTDet", Li et al., ECCV 2022).

    Args:
        tower: image tower with a single stride.
        channels: number of channels of all maps.
        top_block: module that computes additional maps (see Detectron2's FPN).
    """

    def __init__(self, tower: CLIPImageTower, channels: int, top_block: nn.Module | None = None) -> None:
        # Detectron2's "LN" computes the same in a dozen operations, and its weights decay like those of convolutions.
        norm = partial(LayerNorm2d, eps=1e-6)
        super().__init__(tower, tower.stages[-1], channels, (4.0, 2.0, 1.0, 0.5), top_block, norm)
        tower.returned = tower.stages[-1:]

    @property
    def bottom_up(self) -> CLIPImageTower:
        """The image tower, under the name that Detectron2's FPN uses."""
        return self.net

    @property
    def size_divisibility(self) -> int:
        """Largest stride. Detectron2 returns 0, which leaves images unpadded."""
        return max(self._out_feature_strides.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Empty dict, because Detectron2's constraints have a misspelled key."""
        return {}


@BACKBONE_REGISTRY.register()
def build_clip_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the image tower of any CLIP family, without the modules for image embeddings.

    Args:
        cfg: config with MODEL.CLIP. WEIGHTS determines the family and its sizes. Without WEIGHTS, ARCHITECTURE determines them
            and the weights are random.
        input_shape: unused; the input is RGB.

    Returns:
        The image tower in training mode, frozen except for TRAINABLE. A ViT, whose stages have a single stride, comes with a
        feature pyramid (p2 to p5 for stride 16).

    Raises:
        ConfigError: ARCHITECTURE is unknown or contradicts the file.
        WeightsError: the file is missing or invalid (see `load_clip_state_dict`).
    """
    return _finish(cfg, _build_tower(cfg))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build a ViT or ConvNeXt from timm. It has no text tower, so styles cannot be mined in its features.

    Args:
        cfg: config with MODEL.TIMM, MODEL.ADAPTERS and MODEL.CLIP.{OUTPUT_STRIDE, TRAINABLE, CHECKPOINT_ACTIVATIONS}.
        input_shape: unused; the input is RGB.

    Returns:
        See `build_clip_backbone`.

    Raises:
        ConfigError, WeightsError: a setting or the weights are invalid.
    """
    timm, clip = cfg.MODEL.TIMM, cfg.MODEL.CLIP
    tower = build_timm_tower(timm.NAME, timm.WEIGHTS, clip.OUTPUT_STRIDE, clip.TRAINABLE)
    return _finish(cfg, tower.train())


def _finish(cfg: CfgNode, tower: CLIPImageTower) -> Backbone:
    """Add a pyramid to a tower with a single stride."""
    _prepare_training(cfg, tower)
    return CLIPFeaturePyramid(tower, cfg.MODEL.FPN.OUT_CHANNELS) if _has_one_stride(tower) else tower


def _prepare_training(cfg: CfgNode, tower: CLIPImageTower) -> None:
    tower.checkpoint_activations = cfg.MODEL.CLIP.CHECKPOINT_ACTIVATIONS
    adapters = cfg.MODEL.ADAPTERS
    if adapters.RANK:
        names = add_adapters(tower, adapters.PATTERNS, adapters.RANK, adapters.ALPHA)
        logging.getLogger(__name__).info("Added adapters of rank %d to %d weights", adapters.RANK, len(names))


def _build_tower(cfg: CfgNode) -> CLIPImageTower:
    clip, found = cfg.MODEL.CLIP, _from_checkpoint.get()
    if found is None and clip.WEIGHTS:
        logging.getLogger(__name__).info("Loading the backbone from the CLIP weights %s", clip.WEIGHTS)
        return CLIPImageTower.from_state_dict(
            load_configured_clip(cfg), clip.OUTPUT_STRIDE, trainable=clip.TRAINABLE, with_embedding=False
        ).train()  # like the rest of a new model
    return _create(cfg, clip.TRAINABLE, *(found or family_named(clip.ARCHITECTURE)))


def _has_one_stride(tower: CLIPImageTower) -> bool:
    return len({shape.stride for shape in tower.output_shape().values()}) == 1


@BACKBONE_REGISTRY.register()
def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Call `build_clip_backbone`. Configs of version 0.1 use this name."""
    return build_clip_backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_clip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> "FPN | CLIPFeaturePyramid":
    """Build a feature pyramid on a CLIP image tower.

    Args:
        cfg: config with MODEL.CLIP and MODEL.FPN.{IN_FEATURES, OUT_CHANNELS, NORM, FUSE_TYPE}.
        input_shape: unused; the input is RGB.

    Returns:
        The pyramid, with p2 to p6 for IN_FEATURES res2 to res5. `bottom_up` is the CLIP tower, frozen except TRAINABLE.

    Raises:
        ConfigError: the strides of IN_FEATURES do not double from stage to stage.
    """
    tower = _build_tower(cfg)
    _prepare_training(cfg, tower)
    if _has_one_stride(tower):
        return CLIPFeaturePyramid(tower, cfg.MODEL.FPN.OUT_CHANNELS, LastLevelMaxPool())
    strides = [tower.output_shape()[name].stride or 0 for name in cfg.MODEL.FPN.IN_FEATURES]
    if any(2 * fine != coarse for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(
            f"MODEL.CLIP.OUTPUT_STRIDE must be 32 for a feature pyramid, got {cfg.MODEL.CLIP.OUTPUT_STRIDE} "
            f"(strides {strides}). Set MODEL.CLIP.OUTPUT_STRIDE to 32."
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
    """While the context is open, build backbones with the CLIP family and sizes of a segmentation checkpoint.

    Args:
        weights: state_dict of the segmentation network. If no family recognizes its backbone, MODEL.CLIP is used.
    """
    found = None
    for prefix in _PREFIXES:
        visual = {f"visual.{name.removeprefix(prefix)}": weights[name] for name in weights if name.startswith(prefix)}
        family = find_family(visual)
        if family is not None:
            # The checkpoint is damaged, which loading reports, or only the config determines the architecture.
            with suppress(WeightsError, ConfigError):
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
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" and not state_dict:
        with torch.device("meta"):
            return build_timm_tower(cfg.MODEL.TIMM.NAME, "", cfg.MODEL.CLIP.OUTPUT_STRIDE, ())
    cfg = undownloaded(cfg)
    found = family_named(cfg.MODEL.CLIP.ARCHITECTURE)
    if found[0].sizes_in_weights and (state_dict or cfg.MODEL.CLIP.WEIGHTS):
        state_dict = state_dict or load_configured_clip(cfg)
        family = family_of(state_dict)
        found = family, family.read_architecture(state_dict)
    with torch.device("meta"):
        return _create(cfg, (), *found)


@register_completion
def complete_backbone_settings(cfg: CfgNode) -> None:
    """Fill in settings that follow from the backbone, in place, so that config.yaml suffices to rebuild it.

    `load_config` calls this function. MODEL.CLIP.ARCHITECTURE is set if WEIGHTS names a model whose tensors do not determine its architecture. MODEL.PIXEL_MEAN
    and PIXEL_STD are replaced with those of the backbone if they are OpenAI's and differ.
    """
    if cfg.MODEL.BACKBONE.NAME not in _BUILDERS:
        return
    name = architecture_of(cfg.MODEL.CLIP.WEIGHTS)
    if name and not cfg.MODEL.CLIP.ARCHITECTURE and not family_named(name)[0].sizes_in_weights:
        cfg.MODEL.CLIP.ARCHITECTURE = name
    default = CLIPImageTower.pixel_mean, CLIPImageTower.pixel_std
    if (tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)) == default:
        mean, std = map(list, _pixel_statistics(cfg))
        if max(abs(a - b) for a, b in zip(mean + std, default[0] + default[1], strict=True)) > _ROUNDING:
            cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean, std
            logging.getLogger(__name__).info("Using the backbone's pixel mean %s and standard deviation %s", mean, std)


def _pixel_statistics(cfg: CfgNode) -> tuple[Sequence[float], Sequence[float]]:
    """Return the pixel mean and standard deviation of the backbone without building it or reading its weights, if possible."""
    by_file = [family for _, family in CLIP_FAMILY_REGISTRY if family.sizes_in_weights]
    known = {(family.pixel_mean, family.pixel_std) for family in by_file}
    with suppress(ConfigError, WeightsError):  # reported when the backbone is built, unless a checkpoint determines it
        if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
            named, described = None, find_timm_model(cfg.MODEL.TIMM.NAME)
        else:
            named, described = family_named(undownloaded(cfg).MODEL.CLIP.ARCHITECTURE)
        if named in by_file and len(known) == 1:
            return known.pop()
        if not hasattr(described, "pixel_mean"):
            described = tower_without_weights(cfg)
        return described.pixel_mean, described.pixel_std
    return CLIPImageTower.pixel_mean, CLIPImageTower.pixel_std


def _create(cfg: CfgNode, trainable: Sequence[str], family: Any, architecture: Any) -> CLIPImageTower:
    return family(architecture, cfg.MODEL.CLIP.OUTPUT_STRIDE, trainable=trainable, with_embedding=False)


def undownloaded(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config in which the name of a published CLIP is replaced with its architecture."""
    cfg = cfg.clone()
    cfg.defrost()
    name = architecture_of(cfg.MODEL.CLIP.WEIGHTS)
    if name:
        cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.CLIP.WEIGHTS = name, ""
    return cfg
