"""The query head as a function of tensors, for export.

Shapes: B images of H x W pixels, Q queries, K classes.
"""

import json
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from famix.clip.adapters import merge_adapters
from famix.modeling.query import MaskFormer
from famix.modeling.query.decoder import STRIDES
from famix.modeling.query.inference import semantic_scores


class QueryGraph(nn.Module):
    """Inference with a FAMixMaskFormer as a function of tensors, from the image to classes, masks and the score map.

    The graph has no segments, because their number depends on the image. They follow from the first two outputs (see
    `projects/FAMix/examples/query_segments.py`).

    Args:
        model: network in eval mode. Its adapters are merged into the weights in place.
        size: height and width of images in an export, because tracing for any size would take minutes.
        image_format: channel order that the model expects, RGB or BGR. The graph itself always expects RGB.
    """

    mean: Tensor
    std: Tensor
    divisor = 1  # images are padded within the graph
    outputs: ClassVar = {
        "class_logits": "(batch, queries, classes + 1); the last one is 'no object'",
        "mask_logits": f"(batch, queries, rows, columns) at 1/{STRIDES[0]} of the size of the image, padded at the bottom and right",
        "scores": "(batch, classes, height, width), at least 0; the index of the highest score is the train id",
    }

    def __init__(self, model: MaskFormer, size: tuple[int, int], image_format: str = "RGB") -> None:
        super().__init__()
        merge_adapters(model.backbone)
        self.backbone, self.decoder, self.classifier = model.backbone, model.decoder, model.classifier
        self.in_features = model.in_features
        self.multiple = model.size_divisibility
        self.size = size
        self.is_reversed = image_format == "BGR"
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        panoptic = {"object_threshold": model.object_threshold, "overlap_threshold": model.overlap_threshold}
        segments = {"panoptic": panoptic, "instance": {"most_instances": model.most_instances}}
        settings: dict[str, Any] = segments if model.things else {}
        facts = {"tasks": ["semantic", *settings], "things": sorted(model.things), **settings}
        self.facts = {key: json.dumps(value) for key, value in facts.items()}
        """Metadata of an ONNX file: the tasks of the network, its things, and its settings for segments."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the outputs for RGB images (B, 3, H, W), uint8 or float32 in the range 0-255.

        Returns:
            "class_logits" (B, Q, K + 1), "mask_logits" (B, Q, h, w) at stride 4 of the padded images, and "scores" (B, K, H,
            W), the sum of all masks weighted with the class probabilities of their queries.
        """
        height, width = image.shape[-2:]
        ordered = image.flip(1) if self.is_reversed else image
        pixels = (ordered.float() - self.mean) / self.std
        pixels = F.pad(pixels, (0, -width % self.multiple, 0, -height % self.multiple))
        features = self.backbone(pixels)
        output = self.decoder([features[name] for name in self.in_features])
        classes, masks = self.classifier(output.queries[-1]), output.masks[-1]
        full = F.interpolate(masks, pixels.shape[-2:], mode="bilinear", align_corners=False).sigmoid()
        scores = semantic_scores(classes, full[..., :height, :width])
        return {"class_logits": classes, "mask_logits": masks, "scores": scores}
