"""CLIP ResNets, with dilated stages for dense prediction and the original strides for image embeddings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from famix.clip.architecture import ARCHITECTURES, CLIP_STRIDE, CLIPArchitecture, check_layout
from famix.clip.base import CLIP_FAMILY_REGISTRY, CLIPImageTower, check_output_stride
from famix.clip.folding import conv_norm
from famix.clip.openai import AttentionPool2d
from famix.clip.text.tower import OPEN_CLIP_TEXT, OPENAI_TEXT, TextDesign
from famix.utils.errors import ConfigError

STAGES = ("res2", "res3", "res4", "res5")  # outputs of layer1 .. layer4, at CLIP's own strides 4, 8, 16, 32
_STEM_STRIDE = 4
_EXPANSION = 4
_OPEN_CLIP, _QUICK_GELU = "open_clip:", "-quickgelu"  # prefix and suffix of values of MODEL.CLIP.ARCHITECTURE


class BlockGeometry(NamedTuple):
    """Stride and dilation of a residual block."""

    stride: int  # stride of the average pool after the 3x3 convolution
    dilation: int  # dilation of the 3x3 convolution


def plan_blocks(layers: Sequence[int], output_stride: int) -> list[list[BlockGeometry]]:
    """Compute the stride and dilation of every block.

    A stage that would exceed the output stride keeps its resolution and doubles the dilation. As in the reference
    implementation, only its last block uses the new dilation: the first block has dilation 1, and the blocks in between
    use the dilation of the previous stage. In a stage with a single block, that block is the last one.

    Args:
        layers: number of blocks per stage, e.g. (3, 4, 6, 3).
        output_stride: stride of the last stage: 8, 16 or 32.

    Returns:
        The geometry of each block, grouped by stage.

    Raises:
        ConfigError: the output stride is invalid.
    """
    check_output_stride(output_stride)
    plan, stride, dilation = [], _STEM_STRIDE, 1
    for stage, blocks in enumerate(layers):
        first_stride = 1 if stage == 0 else 2
        last_dilation = dilation
        if stride * first_stride > output_stride:
            first_stride, last_dilation = 1, dilation * 2
        dilations = [1, *[dilation] * (blocks - 2), last_dilation][-blocks:]
        strides = [first_stride, *[1] * (blocks - 1)]
        plan.append([BlockGeometry(*geometry) for geometry in zip(strides, dilations, strict=True)])
        stride, dilation = stride * first_stride, last_dilation
    return plan


class Bottleneck(nn.Module):
    """Residual block with CLIP's anti-aliased stride, an average pool after the 3x3 convolution.

    Args:
        in_channels: channels of the input.
        channels: channels of the 3x3 convolution; a quarter of the output channels.
        has_shortcut: add a convolution to the identity branch.
    """

    def __init__(self, in_channels: int, channels: int, has_shortcut: bool) -> None:
        super().__init__()
        out_channels = channels * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if has_shortcut:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor, geometry: BlockGeometry) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 4 * channels, H // stride, W // stride)."""
        stride, dilation = geometry
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = F.relu(conv_norm(out, self.conv2, self.bn2, dilation), inplace=True)
        if stride > 1:
            out, x = F.avg_pool2d(out, stride), F.avg_pool2d(x, stride)
        out = conv_norm(out, self.conv3, self.bn3)
        shortcut = x if self.downsample is None else conv_norm(x, *self.downsample)
        return F.relu(out.add_(shortcut), inplace=True)


@CLIP_FAMILY_REGISTRY.register()
class CLIPResNet(CLIPImageTower):
    """CLIP's "ModifiedResNet", with the same parameter names.

    Args:
        architecture: sizes of the network.
        output_stride: stride of res5 in `forward`: 8, 16 or 32. `encode_image` always uses the original stride 32.
        trainable: names of the trainable submodules (see `from_state_dict`).
        with_embedding: build the attention pool, which `encode_image` requires.

    Raises:
        ConfigError: the output stride or a name in `trainable` is invalid.
    """

    stages = STAGES
    rectified = True
    embedding_modules = ("attnpool",)

    def __init__(
        self,
        architecture: CLIPArchitecture,
        output_stride: int = 16,
        *,
        trainable: Sequence[str] = ("all",),
        with_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.input_resolution = architecture.input_resolution
        width = architecture.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        in_channels = width
        for stage, blocks in enumerate(architecture.layers):
            channels = width * 2**stage
            bottlenecks = [Bottleneck(in_channels, channels, has_shortcut=True)]
            in_channels = channels * _EXPANSION
            bottlenecks += [Bottleneck(in_channels, channels, has_shortcut=False) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*bottlenecks))
        self.with_embedding = with_embedding
        self.attnpool: AttentionPool2d | None = None
        if with_embedding:
            side = architecture.input_resolution // CLIP_STRIDE
            self.attnpool = AttentionPool2d(side, in_channels, architecture.heads, architecture.embed_dim)
        self._dense_plan = plan_blocks(architecture.layers, output_stride)
        self._clip_plan = plan_blocks(architecture.layers, CLIP_STRIDE)
        self.freeze_except(trainable)

    @classmethod
    def recognises(cls, state_dict: Mapping[str, Tensor]) -> bool:
        """See the base class."""
        return "visual.layer1.0.conv1.weight" in state_dict

    @classmethod
    def read_architecture(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> CLIPArchitecture:
        """See the base class."""
        return CLIPArchitecture.from_state_dict(state_dict, with_embedding)

    @classmethod
    def architecture_named(cls, name: str) -> CLIPArchitecture | None:
        """Return the sizes of OpenAI's or open_clip's models. "" means RN50."""
        name = name.removeprefix(_OPEN_CLIP).removesuffix(_QUICK_GELU) if name.startswith(_OPEN_CLIP) else name
        return ARCHITECTURES.get(name or "RN50")

    @classmethod
    def check_weights(cls, state_dict: Mapping[str, Tensor]) -> None:
        """Compare names and shapes with those of the clip package's model."""
        check_layout(state_dict)

    @classmethod
    def text_design(cls, architecture: str = "") -> TextDesign:
        """Return OpenAI's or open_clip's design, or an unknown design for ""."""
        if not architecture:
            return TextDesign()
        gelu = architecture.startswith(_OPEN_CLIP) and not architecture.endswith(_QUICK_GELU)
        return OPEN_CLIP_TEXT if gelu else OPENAI_TEXT

    def stem(self, images: Tensor, dense: bool) -> Tensor:
        """Compute (B, width, H / 4, W / 4)."""
        x = _channels_last(images)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(conv_norm(x, conv, norm), inplace=True)
        return F.avg_pool2d(x, 2)

    def run_stage(self, stage: str, x: Tensor, dense: bool) -> Tensor:
        """Run the bottlenecks of a stage."""
        index = STAGES.index(stage)
        x = _channels_last(x)
        plan = self._dense_plan if dense else self._clip_plan
        layer = self.get_submodule(f"layer{index + 1}")
        for block, geometry in zip(layer.children(), plan[index], strict=True):
            x = self.run_block(block, x, geometry)
        return x

    def embed(self, features: Tensor) -> Tensor:
        """Apply the attention pool to res5.

        Raises:
            ConfigError: the size of `features` does not match `input_resolution`, or there is no attention pool.
        """
        self.require_embedding()
        assert self.attnpool is not None
        cells, expected = features.shape[-2] * features.shape[-1], len(self.attnpool.positional_embedding) - 1
        if cells != expected:
            side = self.input_resolution
            raise ConfigError(
                f"The attention pool requires a feature map of {expected} cells, got {features.shape[-2]} x {features.shape[-1]}. "
                f"Resize the images to {side} x {side} pixels."
            )
        return self.attnpool(_channels_last(features))

    def input_side(self, stage: str) -> int:
        """Return the height and width of a stage at CLIP's input resolution."""
        self.check_stage(stage)
        return self.input_resolution // (_STEM_STRIDE * 2 ** STAGES.index(stage))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every stage in `forward`."""
        shapes, stride = {}, _STEM_STRIDE
        for index, (stage, plan) in enumerate(zip(STAGES, self._dense_plan, strict=True)):
            stride *= plan[0].stride
            shapes[stage] = ShapeSpec(channels=self.architecture.channels(index), stride=stride)
        return shapes

    @property
    def smallest_side(self) -> int:
        """Smallest image side in pixels for which res5 is not empty. The first convolution rounds up."""
        return self.output_shape()["res5"].stride - 1


def _channels_last(x: Tensor) -> Tensor:
    # Convolutions are fastest in this memory format on most devices, and every layer keeps it.
    return x if torch.compiler.is_compiling() else x.contiguous(memory_format=torch.channels_last)
