"""Tiny query heads, and batches with segments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from famix.data.mapper import make_segments
from famix.modeling import FAMixMaskFormer
from famix.modeling.query.criterion import MaskCriterion
from famix.modeling.query.decoder import MaskDecoder
from famix.modeling.query.maskformer import features_by_stride
from famix.modeling.query.queries import LinearClassifier
from model_factory import tiny_backbone

NUM_CLASSES, NUM_QUERIES, HIDDEN_DIM = 3, 8, 32
THINGS = (2,)


def tiny_decoder(backbone: Backbone, **options: Any) -> MaskDecoder:
    """Make a narrow decoder of few layers from a fixed seed."""
    shapes = backbone.output_shape()
    channels = [shapes[name].channels or 0 for name in features_by_stride(shapes)]
    sizes = {"num_queries": NUM_QUERIES, "hidden_dim": HIDDEN_DIM, "encoder_layers": 1, "decoder_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MaskDecoder(channels, **sizes | options)


def tiny_maskformer(backbone: Backbone | None = None, num_points: int = 64, **options: Any) -> FAMixMaskFormer:
    """Make a FAMixMaskFormer of three classes, the last of which is a thing."""
    backbone = backbone or tiny_backbone(output_stride=32, trainable=[])
    parts = {
        "decoder": options.pop("decoder", None) or tiny_decoder(backbone),
        "classifier": options.pop("classifier", None) or seeded_classifier(),
        "criterion": options.pop("criterion", None) or MaskCriterion(NUM_CLASSES, num_points=num_points),
    }
    mean, std = [120.0, 115.0, 100.0], [68.0, 66.0, 70.0]
    return FAMixMaskFormer(backbone=backbone, pixel_mean=mean, pixel_std=std, **parts | {"things": THINGS, **options})


def seeded_classifier() -> LinearClassifier:
    """Make a classifier from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LinearClassifier(HIDDEN_DIM, NUM_CLASSES)


def make_scene(place: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Return an image (3, 64, 64) of road, sky and two cars, and (64, 64) segments: 0, 1, and 2 and 3 for cars."""
    segments = np.zeros((64, 64), dtype=np.int64)
    segments[:24] = 1
    segments[32:52, 4 + place : 24 + place], segments[32:52, 28 + place : 48 + place] = 2, 3
    colors = np.array([[90, 90, 95], [120, 170, 230], [200, 40, 40], [180, 30, 90]])
    noise = np.random.default_rng(place).normal(0, 4, (64, 64, 3))
    pixels = (colors[segments] + noise).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), segments


SCENE_CLASSES = (0, 1, 2, 2)
"""Class of each segment of a scene."""


def make_scenes(*places: int, seeds: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Make one training input for each scene."""
    batch = []
    for number, place in enumerate(places):
        image, segments = make_scene(place)
        masks = segments == np.arange(len(SCENE_CLASSES))[:, None, None]
        seed = seeds[number] if seeds else place
        sample = {"image": image, "segments": make_segments(masks, SCENE_CLASSES), "point_seed": seed}
        batch.append({**sample, "sem_seg": torch.from_numpy(np.take(SCENE_CLASSES, segments))})
    return batch


class Pyramid(Backbone):
    """Random feature maps of given strides, which depend on the image."""

    def __init__(self, strides: Sequence[int], channels: int = 4) -> None:
        super().__init__()
        self.strides, self.channels = strides, channels
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = x.mean(dim=1, keepdim=True).expand(-1, self.channels, -1, -1) * self.scale
        return {f"p{stride}": torch.nn.functional.avg_pool2d(maps, stride, ceil_mode=True) for stride in self.strides}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{stride}": ShapeSpec(channels=self.channels, stride=stride) for stride in self.strides}
