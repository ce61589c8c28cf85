"""Adapter-only checkpoints: trained weights, without the backbone's frozen weights, which come from the base weights.

The base weights are MODEL.CLIP.WEIGHTS, or MODEL.TIMM.WEIGHTS for a timm backbone. A checkpoint stores their hash and
is rejected with other base weights.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from famix.clip.base import CLIPImageTower
from famix.clip.open_clip.timm_backbone import build_timm_tower
from famix.clip.weights import clip_weights_hash, load_configured_clip
from famix.io.checkpointer import BASE
from famix.utils.errors import ConfigError, WeightsError


class BaseWeights(NamedTuple):
    """Weights of a backbone before training.

    Attributes:
        key: config key that names the weights.
        source: value of this key.
        hash: hash of the CLIP as in style banks, or of the timm backbone.
        state: state_dict of the image tower.
    """

    key: str
    source: str
    hash: str
    state: dict[str, Tensor]

    @classmethod
    def read(cls, cfg: CfgNode) -> "BaseWeights":
        """Load the base weights of a config.

        Raises:
            ConfigError: the config names no weights.
            WeightsError: the weights are missing or invalid.
        """
        clip, timm = cfg.MODEL.CLIP, cfg.MODEL.TIMM
        is_timm = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"
        key, source = ("MODEL.TIMM.WEIGHTS", timm.WEIGHTS) if is_timm else ("MODEL.CLIP.WEIGHTS", clip.WEIGHTS)
        if not source:
            raise ConfigError(
                f"{key} must be the weights that the adapters were trained on, got ''. Set {key} to their name or file."
            )
        if is_timm:
            state = build_timm_tower(timm.NAME, source, clip.OUTPUT_STRIDE, ()).state_dict()
            return cls(key, source, clip_weights_hash(state), state)
        weights = load_configured_clip(cfg)
        tower = CLIPImageTower.from_state_dict(weights, clip.OUTPUT_STRIDE, trainable=(), with_embedding=False)
        return cls(key, source, clip_weights_hash(weights), tower.state_dict())


def without_base(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Return the entries of an adapter-only checkpoint.

    Args:
        model: segmentation network with adapters.
        cfg: config with the base weights.

    Returns:
        "model" with all tensors that differ from the base weights, and an entry that describes the base weights.

    Raises:
        ConfigError: the network has no adapters, or the config names no base weights.
        WeightsError: frozen tensors differ from the base weights.
    """
    if not cfg.MODEL.ADAPTERS.RANK:
        raise ConfigError("MODEL.ADAPTERS.RANK must be positive for --format adapters, got 0. Use --format stripped.")
    base = BaseWeights.read(cfg)
    ((path, tower),) = ((path, part) for path, part in model.named_modules() if isinstance(part, CLIPImageTower))
    prefix = f"{path}."
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    omitted = {name for name, value in base.state.items() if _equal(value, state.get(prefix + name))}
    trained = tuple(f"{name}." for name in tower.trainable)
    changed = [name for name in base.state if name not in omitted and not name.startswith(trained)]
    if changed and "all" not in tower.trainable:
        raise WeightsError(
            f"{base.key} must be the weights that the network was trained on, got {base.source!r}, which differ in "
            f"{len(changed)} frozen tensors, e.g. {changed[0]}. Set {base.key} to the weights used for training."
        )
    kept = {name: value for name, value in state.items() if name.removeprefix(prefix) not in omitted}
    return {"model": kept, BASE: {"hash": base.hash, "prefix": prefix}}


def with_base(content: Mapping[str, Any], path: str | os.PathLike[str], *, cfg: CfgNode) -> dict[str, Any]:
    """Return the entries of a checkpoint with all tensors of the network.

    Args:
        content: entries of any checkpoint. Only those of adapter-only checkpoints are changed.
        path: path of the checkpoint, for error messages.
        cfg: config with the base weights.

    Raises:
        ConfigError: the config names no base weights.
        WeightsError: the base weights are missing or differ from those used for training.
    """
    if BASE not in content:
        return dict(content)
    try:
        stored, prefix = str(content[BASE]["hash"]), str(content[BASE]["prefix"])
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"Entry '{BASE}' in '{path}' is damaged ({type(error).__name__}: {error}). Export the original checkpoint again "
            "with tools/export.py."
        ) from error
    base = BaseWeights.read(cfg)
    if base.hash != stored:
        raise WeightsError(
            f"{base.key} must be the weights that the adapters in '{path}' were trained on, with the hash {stored}, got "
            f"{base.source!r} with the hash {base.hash}. Set {base.key} to the weights used for training."
        )
    others = {name: value for name, value in content.items() if name != BASE}
    return {**others, "model": {prefix + name: value for name, value in base.state.items()} | content["model"]}


def _equal(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.dtype == other.dtype and torch.equal(value, other)
