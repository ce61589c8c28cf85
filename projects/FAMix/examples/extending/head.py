#!/usr/bin/env python
"""Train with a semantic head defined outside the package.

    python projects/FAMix/examples/extending/head.py --config-file CONFIG MODEL.SEM_SEG_HEAD.NAME LinearHead

It accepts the same options as train_net.py. Any head in Detectron2's registry works the same way: styles are mixed
into backbone features and require nothing from the head.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # projects/FAMix, the folder of train_net.py


@SEM_SEG_HEADS_REGISTRY.register()
class LinearHead(nn.Module):
    """Sum of linear classifiers, one for each feature map.

    Args:
        input_shape: channels and strides of the backbone's features.
        in_features: names of the features, from finest to coarsest.
        num_classes: number of classes K.
        ignore_value: label id of pixels excluded from the loss.
    """

    @configurable
    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, in_features: Sequence[str], num_classes: int, ignore_value: int
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.ignore_value = ignore_value
        self.common_stride = input_shape[in_features[0]].stride
        self.classifiers = nn.ModuleList(nn.Conv2d(input_shape[name].channels, num_classes, 1) for name in in_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.SEM_SEG_HEAD."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "in_features": head.IN_FEATURES,
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Compute losses in training and logits (B, K, H, W) otherwise.

        Args:
            features: stage name -> (B, C, h, w).
            targets: (B, H, W) int64 labels; required in training.
        """
        logits = self.layers(features)
        upsampled = F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)
        if not self.training:
            return upsampled, {}
        assert targets is not None, "targets are required in training"
        return None, {"loss_sem_seg": F.cross_entropy(upsampled, targets, ignore_index=self.ignore_value)}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Compute logits (B, K, h, w) at the finest resolution, which inference upsamples to the size of each image."""
        first, *others = (conv(features[name]) for conv, name in zip(self.classifiers, self.in_features, strict=True))
        for logits in others:
            first = first + F.interpolate(logits, first.shape[-2:], mode="bilinear", align_corners=False)
        return first


if __name__ == "__main__":
    from train_net import launch_from_command_line

    launch_from_command_line()
