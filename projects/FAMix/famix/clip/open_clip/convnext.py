"""CLIP ConvNeXts."""

from typing import Any

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from famix.clip.base import CLIP_FAMILY_REGISTRY
from famix.clip.open_clip.family import OpenClipTower, pad_to


@CLIP_FAMILY_REGISTRY.register()
class CLIPConvNeXt(OpenClipTower):
    """timm's ConvNeXt with open_clip's projection. Its features are signed, and it accepts images of any size."""

    stages = ("res2", "res3", "res4", "res5")
    embedding_modules = ("head", "trunk.norm_pre", "trunk.head")
    kinds = ("convnext",)
    markers = ("visual.trunk.stem.0.weight", "visual.trunk.stages.0.blocks.0.conv_dw.weight")
    example = "convnext_base_w"

    def _set_up(self, tower: Any) -> None:
        self.trunk: Any
        self.head: Any
        if not self.with_embedding:
            self.trunk.norm_pre, self.trunk.head, self.head = nn.Identity(), nn.Identity(), None
        self._strides = [min(4 * 2**stage, self.output_stride) for stage in range(4)]

    def stem(self, images: Tensor, dense: bool) -> Tensor:
        """Compute (B, width, H / 4, W / 4). Dense maps cover the whole image, padded to multiples of the largest stride."""
        return self.trunk.stem(pad_to(images, self._strides[-1]) if dense else images)

    def run_stage(self, stage: str, x: Tensor, dense: bool) -> Tensor:
        """Run the blocks of a stage."""
        index = self.stages.index(stage)
        dilation = 4 * 2**index // self._strides[index] if dense else 1
        layers = self.trunk.stages[index]
        if dilation == 1:
            x = layers.downsample(x)
            for block in layers.blocks:
                x = self.run_block(block, x)
            return x
        norm, conv = layers.downsample
        x = F.conv2d(_pad_same(norm(x), dilation // 2), conv.weight, conv.bias, dilation=dilation // 2)
        for block in layers.blocks:
            x = self.run_block(_run_dilated, block, x, dilation)
        return x

    def embed(self, features: Tensor) -> Tensor:
        """Pool and project res5."""
        self.require_embedding()
        return self.head(self.trunk.forward_head(self.trunk.norm_pre(features)))

    @property
    def size_divisibility(self) -> int:
        """Largest stride."""
        return self._strides[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every stage."""
        channels = [info["num_chs"] for info in self.trunk.feature_info]
        return {
            stage: ShapeSpec(channels=size, stride=stride)
            for stage, size, stride in zip(self.stages, channels, self._strides, strict=True)
        }


def _pad_same(x: Tensor, dilation: int) -> Tensor:
    """Pad for a 2x2 convolution with stride 1 that keeps the size."""
    return F.pad(x, [dilation // 2, dilation - dilation // 2] * 2)


def _run_dilated(block: Any, x: Tensor, dilation: int) -> Tensor:
    """Run timm's ConvNeXtBlock with a dilated depthwise convolution."""
    conv = block.conv_dw
    padding = [dilation * (side // 2) for side in conv.kernel_size]
    out = F.conv2d(x, conv.weight, conv.bias, padding=padding, dilation=dilation, groups=conv.groups)
    if block.use_conv_mlp:
        out = block.mlp(block.norm(out))
    else:
        out = block.mlp(block.norm(out.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    if block.gamma is not None:
        out = out * block.gamma[:, None, None]
    return block.drop_path(out) + x
