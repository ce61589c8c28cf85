#!/usr/bin/env python
"""Mine styles in a CLIP family from outside the package, and train with them.

    python projects/FAMix/examples/extending/clip_family.py --config-file CONFIG \
        MODEL.BACKBONE.NAME build_clip_backbone MODEL.CLIP.WEIGHTS two_stage.pt MODEL.CLIP.TRAINABLE "[stage2]" \
        MODEL.STYLE.STAGE stage1 MODEL.SEM_SEG_HEAD.IN_FEATURES "[stage1, stage2]"

The options are those of train_net.py. The weights file is a state_dict with the image tower below "visual." and a text
tower with the names of OpenAI's CLIP.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # projects/FAMix, the folder of train_net.py

from famix.clip import CLIP_FAMILY_REGISTRY, CLIPImageTower, TextDesign


class Sizes(NamedTuple):
    """Channels of the first stage and of the embedding."""

    width: int
    embed_dim: int


@CLIP_FAMILY_REGISTRY.register()
class TwoStageCLIP(CLIPImageTower):
    """Two convolutional stages with signed outputs at strides 4 and 8, and an average pool, for images of any size.

    Args:
        architecture: sizes of the network.
        output_stride: ignored, as the strides are fixed.
        trainable: names of the submodules to train.
        with_embedding: keep the layer that computes the image embedding.
    """

    stages = ("stage1", "stage2")
    rectified = False  # restyled maps keep their negative values
    input_resolution = 64
    embedding_modules = ("head",)

    def __init__(
        self,
        architecture: Sizes,
        output_stride: int = 8,
        *,
        trainable: Sequence[str] = ("all",),
        with_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.channels = {"stage1": architecture.width, "stage2": 2 * architecture.width}
        self.patchify = nn.Conv2d(3, architecture.width, 4, stride=4)
        self.stage1 = nn.Conv2d(architecture.width, architecture.width, 3, padding=1)
        self.stage2 = nn.Conv2d(architecture.width, 2 * architecture.width, 2, stride=2)
        self.head = nn.Linear(2 * architecture.width, architecture.embed_dim) if with_embedding else None
        self.with_embedding = with_embedding
        self.freeze_except(trainable)

    # The family: from a state_dict to a network

    @classmethod
    def recognises(cls, state_dict: Mapping[str, Tensor]) -> bool:
        """Return whether the image tower of a state_dict has these layers."""
        return "visual.patchify.weight" in state_dict and "visual.stage2.weight" in state_dict

    @classmethod
    def read_architecture(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> Sizes:
        """Read the sizes from the shapes; a segmentation checkpoint has no "visual.head"."""
        embed_dim = len(state_dict["visual.head.weight"]) if with_embedding else 0
        return Sizes(len(state_dict["visual.patchify.weight"]), embed_dim)

    @classmethod
    def text_design(cls, architecture: str = "") -> TextDesign:
        """Return the activation and the mask of the text tower, which cannot be read from its weights."""
        return TextDesign("gelu", causal=True)

    # The network, stage by stage

    def stem(self, images: Tensor, dense: bool) -> Tensor:
        """Map images (B, 3, H, W) to (B, C, H / 4, W / 4)."""
        return self.patchify(images)

    def run_stage(self, stage: str, x: Tensor, dense: bool) -> Tensor:
        """Run one stage, at the same stride in `forward` and in `encode_image`."""
        return self.get_submodule(stage)(F.gelu(x))

    def embed(self, features: Tensor) -> Tensor:
        """Map the output of stage2 (N, C, h, w) to image embeddings (N, D)."""
        self.require_embedding()
        assert self.head is not None
        return self.head(F.gelu(features).mean(dim=(2, 3)))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and strides."""
        return {stage: ShapeSpec(self.channels[stage], stride=4 * 2**i) for i, stage in enumerate(self.stages)}


if __name__ == "__main__":
    from train_net import launch_from_command_line

    launch_from_command_line()
