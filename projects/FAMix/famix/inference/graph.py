"""A semantic network as one graph from pixels to logits, without anything that only training or Detectron2 need."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from famix.inference.predictor import SMALLEST_SIDE
from famix.modeling import FAMixSemanticSegmentor
from famix.utils.errors import ConfigError

__all__ = ["AXES", "INPUT", "OUTPUT", "SemanticGraph", "export_graph"]

INPUT, OUTPUT = "image", "logits"
AXES = {0: "batch", 2: "height", 3: "width"}
"""Axes of the input, and of the output, that may have any length."""

_LARGEST = {"batch": 1024, "height": 1 << 14, "width": 1 << 14}
_EXAMPLE = (2, 3, 96, 128)  # of an input; 0 and 1 would be taken for fixed lengths


class SemanticGraph(nn.Module):
    """What a FAMixSemanticSegmentor does in inference, as a function of tensors.

    Args:
        model: in eval mode.
        image_format: of the images that the model takes, RGB or BGR; those of the graph are RGB.

    Raises:
        ConfigError: another network, e.g. a panoptic one, whose post-processing is no graph, or one whose backbone pads
            images, e.g. a feature pyramid.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, image_format: str = "RGB") -> None:
        super().__init__()
        head: Any = getattr(model, "sem_seg_head", None)
        if not isinstance(model, FAMixSemanticSegmentor) or not hasattr(head, "layers"):
            raise ConfigError(
                f"only a FAMixSemanticSegmentor whose head has `layers` becomes a graph, got {type(model).__name__} with "
                f"{type(head).__name__}; --format stripped takes any network"
            )
        if model.backbone.size_divisibility > 1:
            raise ConfigError(
                f"the backbone {type(model.backbone).__name__} pads images to multiples of "
                f"{model.backbone.size_divisibility} pixels, which no graph for all sizes can; use build_clip_resnet_backbone, "
                "or --format stripped"
            )
        self.backbone, self.head = model.backbone, head
        self.is_reversed = image_format == "BGR"
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W), RGB in pixel values 0-255, uint8 or float32, to logits (B, K, H, W)."""
        ordered = image.flip(1) if self.is_reversed else image
        pixels = (ordered.float() - self.mean) / self.std
        logits = self.head.layers(self.backbone(pixels))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def export_graph(graph: SemanticGraph, *, float_input: bool = False) -> ExportedProgram:
    """Trace a graph for images of any number and size.

    Args:
        graph: on the CPU.
        float_input: the images are float32 instead of uint8, still 0-255.
    """
    example = torch.zeros(_EXAMPLE, dtype=torch.float32 if float_input else torch.uint8)
    lowest = {"batch": 1, "height": SMALLEST_SIDE, "width": SMALLEST_SIDE}
    sizes = {axis: Dim(name, min=lowest[name], max=_LARGEST[name]) for axis, name in AXES.items()}
    return torch.export.export(graph.eval().requires_grad_(False), (example,), dynamic_shapes={INPUT: sizes})
