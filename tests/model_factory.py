"""Tiny models and batches for tests."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from clip_factory import tiny_clip
from famix.clip import CLIPResNet
from famix.engine import load_config
from famix.modeling import CLIPDeepLabV3PlusHead, FAMixSemanticSegmentor
from famix.style import PatchRestyler, StyleStrategy, build_strategies

NUM_CLASSES = 5


def tiny_backbone(layers: tuple[int, ...] = (1, 1, 1, 1), output_stride: int = 16, **kwargs: Any) -> CLIPResNet:
    """Make a CLIPResNet of width 8 with random norms and without attention pool."""
    kwargs = {"with_embedding": False, **kwargs}
    return CLIPResNet.from_state_dict(_weights(layers), output_stride, **kwargs)


def tiny_head(backbone: CLIPResNet, **kwargs: Any) -> CLIPDeepLabV3PlusHead:
    """Make a narrow decoder without dropout from a fixed seed."""
    torch.manual_seed(0)
    narrow = {"aspp_channels": 8, "conv_dims": 8, "aspp_dropout": 0.0}
    return CLIPDeepLabV3PlusHead(
        backbone.output_shape(),
        **{"in_features": ("res2", "res5"), "num_classes": NUM_CLASSES, "project_channels": 4} | narrow | kwargs,
    )


def make_strategies(names: str, noise_scale: float = 0.5) -> list[StyleStrategy]:
    """Build strategies from the value of MODEL.STYLE.STRATEGY."""
    cfg = load_config("")
    cfg.MODEL.STYLE.STRATEGY, cfg.MODEL.STYLE.NOISE_SCALE = names, noise_scale
    return build_strategies(cfg)


def make_restyler(strategy: str = "noise", grid: tuple[int, int] = (2, 3), **kwargs: Any) -> PatchRestyler:
    """Make a restyler with alpha between 0 and 1."""
    return PatchRestyler(strategies=make_strategies(strategy), grid=grid, beta=1.0, **kwargs)


def tiny_segmentor(restyler: PatchRestyler | None = None, **kwargs: Any) -> FAMixSemanticSegmentor:
    """Make a FAMixSemanticSegmentor with fixed weights, deterministic except for its styles."""
    backbone = kwargs.pop("backbone", None) or tiny_backbone()
    head = kwargs.pop("sem_seg_head", None) or tiny_head(backbone)
    mean, std = [120.0, 115.0, 100.0], [68.0, 66.0, 70.0]
    return FAMixSemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=mean, pixel_std=std, restyler=restyler, **kwargs
    )


def make_batch(*sizes: Sequence[int], labels: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """Make one random input of a semantic segmentor per (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for size in sizes:
        inputs = {"image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)}
        if labels:
            inputs["sem_seg"] = torch.randint(NUM_CLASSES, tuple(size), generator=generator)
        batch.append(inputs)
    return batch


@cache
def _weights(layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return tiny_clip(layers).state_dict()
