#!/usr/bin/env python
"""Mix styles into a meta-architecture defined outside the package.

    python projects/FAMix/examples/extending/meta_architecture.py --config-file CONFIG \
        MODEL.META_ARCHITECTURE PresenceSegmentor

It accepts the same options as train_net.py.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # projects/FAMix, the folder of train_net.py

from famix.modeling import PatchStyleMixin
from famix.style import PatchRestyler


@META_ARCH_REGISTRY.register()
class PresenceSegmentor(PatchStyleMixin, SemanticSegmentor):
    """Detectron2's SemanticSegmentor with restyling, and with an extra loss on which classes an image contains.

    The mixin must be the first base class. It restyles features during the forward pass of the second.

    Args:
        restyler: style randomizer (see PatchStyleMixin).
        num_classes: number of classes K.
        **kwargs: arguments of SemanticSegmentor.
    """

    TRAINS_ON = frozenset({"sem_seg"})  # targets from the dataset mapper; also possible: "centers", "instances"
    PREDICTS = frozenset({"sem_seg"})  # predictions to score; also possible: "panoptic_seg", "instances"

    @configurable
    def __init__(self, *, restyler: PatchRestyler | None = None, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_restyler(restyler)
        self.stage, shape = list(self.backbone.output_shape().items())[-1]
        self.presence = nn.Linear(shape.channels, num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the config."""
        own = {"restyler": PatchRestyler(cfg), "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}
        return {**super().from_config(cfg), **own}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Compute losses in training and predictions otherwise."""
        if not self.training:
            return super().forward(batched_inputs)
        seen: list[Tensor] = []

        def keep(features: Tensor) -> Tensor:
            seen.append(features)
            return features

        with self.clip_backbone.transform_stage(self.stage, keep):
            losses = super().forward(batched_inputs)
        logits = self.presence(seen[0].mean(dim=(2, 3)))
        classes = torch.arange(logits.shape[1], device=logits.device)
        present = torch.stack([torch.isin(classes, x["sem_seg"].to(logits.device)) for x in batched_inputs])
        losses["loss_presence"] = 0.1 * F.binary_cross_entropy_with_logits(logits, present.to(logits))
        return losses


if __name__ == "__main__":
    from train_net import launch_from_command_line

    launch_from_command_line()
