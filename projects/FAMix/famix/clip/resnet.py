"""The ResNet family of CLIPs: dense features at any output stride, or CLIP's own embedding.

Shapes: B images of 3 x H x W, normalised; C = width * 4 channels at res2, doubled by every further stage.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from famix.clip.architecture import CLIPArchitecture, check_layout, resnet_architectures, text_design_of
from famix.clip.base import CLIP_FAMILY_REGISTRY, CLIPImageTower
from famix.clip.dilation import CLIP_STRIDE, BlockGeometry, plan_blocks
from famix.clip.folding import conv_norm
from famix.clip.openai import AttentionPool2d
from famix.clip.text_tower import TextDesign
from famix.utils.errors import ConfigError

__all__ = ["STAGES", "CLIPResNet"]

STAGES = ("res2", "res3", "res4", "res5")  # outputs of layer1 .. layer4, at strides 4, 8, 16, 32 of CLIP itself
_EXPANSION = 4


class Bottleneck(nn.Module):
    """Residual block with CLIP's anti-aliased stride: an average pool behind the 3x3 convolution.

    Args:
        in_channels: of the input.
        channels: of the 3x3 convolution; the output has four times as many.
        has_shortcut: whether the identity branch has a convolution of its own.
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
    """CLIP's "ModifiedResNet" with the parameter names of its checkpoints.

    Args:
        architecture: depths, width and embedding of the network.
        output_stride: stride of res5 in `forward`: 8, 16 or 32. `encode_image` always runs at CLIP's own 32.
        trainable: names of the submodules that train, see `from_state_dict`.
        with_embedding: keep the attention pool, which only `encode_image` needs.

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
            self.add_module(f"layer{stage + 1}", _make_stage(in_channels, channels, blocks))
            in_channels = channels * _EXPANSION
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
    def named_architectures(cls) -> Mapping[str, CLIPArchitecture]:
        """Return OpenAI's models and open_clip's of the same sizes; "" stands for RN50."""
        return resnet_architectures()

    @classmethod
    def check_weights(cls, state_dict: Mapping[str, Tensor]) -> None:
        """Compare names and shapes with those of the clip package's own model."""
        check_layout(state_dict)

    @classmethod
    def text_design(cls, architecture: str = "") -> TextDesign:
        """Return OpenAI's design, or that of open_clip for its models; unknown for ""."""
        return text_design_of(architecture)

    def stem(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, width, H / 4, W / 4)."""
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
            x = block(x, geometry)
        return x

    def embed(self, features: Tensor) -> Tensor:
        """Pool res5 with attention, for as many cells as at CLIP's own input size.

        Raises:
            ConfigError: the features have another number of cells, or there is no attention pool.
        """
        if self.attnpool is None:
            raise ConfigError(
                "with_embedding must be True for an image embedding, got False. Build another CLIPResNet."
            )
        cells, expected = features.shape[-2] * features.shape[-1], len(self.attnpool.positional_embedding) - 1
        if cells != expected:
            side = self.input_resolution
            raise ConfigError(
                f"Images must have {expected} cells at stride {CLIP_STRIDE}, got {tuple(features.shape[-2:])}. Resize them to "
                f"CLIP's own {side} x {side} pixels."
            )
        return self.attnpool(_channels_last(features))

    def input_side(self, stage: str) -> int:
        """Return the side of a stage's output in cells, at CLIP's own stride and input size."""
        self.check_stage(stage)
        return self.input_resolution // (4 * 2 ** STAGES.index(stage))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every stage in `forward`."""
        shapes, stride = {}, 4
        for index, (stage, plan) in enumerate(zip(STAGES, self._dense_plan, strict=True)):
            stride *= plan[0].stride
            shapes[stage] = ShapeSpec(channels=self.architecture.channels(index), stride=stride)
        return shapes

    @property
    def smallest_side(self) -> int:
        """Pixels along a side with which `forward` leaves a cell at res5; the first convolution rounds up."""
        return self.output_shape()["res5"].stride - 1


def _channels_last(x: Tensor) -> Tensor:
    # Convolutions are fastest in this memory format on most devices, and every layer keeps it.
    return x if torch.compiler.is_compiling() else x.contiguous(memory_format=torch.channels_last)


def _make_stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    out_channels = channels * _EXPANSION
    first = Bottleneck(in_channels, channels, has_shortcut=True)
    return nn.Sequential(first, *(Bottleneck(out_channels, channels, has_shortcut=False) for _ in range(blocks - 1)))
