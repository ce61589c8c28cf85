"""CLIP's image tower as a Detectron2 backbone: dense features at any output stride, or CLIP's own embedding.

Shapes: B images of 3 x H x W, normalised; C = width * 4 channels at res2, doubled by every further stage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from famix.clip.architecture import CLIPArchitecture
from famix.clip.dilation import CLIP_STRIDE, BlockGeometry, plan_blocks
from famix.clip.folding import conv_norm
from famix.clip.freezing import freeze_except, train_only
from famix.clip.openai import AttentionPool2d
from famix.utils.errors import ConfigError

__all__ = ["STAGES", "CLIPResNet"]

STAGES = ("res2", "res3", "res4", "res5")  # outputs of layer1 .. layer4, at strides 4, 8, 16, 32 of CLIP itself
_EXPANSION = 4
_VISUAL = "visual."


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


class CLIPResNet(Backbone):
    """CLIP's "ModifiedResNet" with the parameter names of its checkpoints.

    Args:
        architecture: depths, width and embedding of the network.
        output_stride: stride of res5 in `forward`: 8, 16 or 32. `encode_image` always runs at CLIP's own 32.
        trainable: names of the submodules that train, e.g. "layer4" or "layer4.2"; ("all",) for everything, () for
            nothing. The others are frozen: no gradients, and batch norm keeps CLIP's statistics whatever `train` says.
        with_attention_pool: keep the attention pool, which only `encode_image` needs.

    Raises:
        ConfigError: an output stride or a submodule that does not exist.
    """

    def __init__(
        self,
        architecture: CLIPArchitecture,
        output_stride: int = 16,
        *,
        trainable: Sequence[str] = ("all",),
        with_attention_pool: bool = True,
    ) -> None:
        super().__init__()
        self.architecture = architecture
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
        if with_attention_pool:
            side = architecture.input_resolution // CLIP_STRIDE
            self.attnpool = AttentionPool2d(side, in_channels, architecture.heads, architecture.embed_dim)
        self._dense_plan = plan_blocks(architecture.layers, output_stride)
        self._clip_plan = plan_blocks(architecture.layers, CLIP_STRIDE)
        self._taps: dict[str, Callable[[Tensor], Tensor]] = {}
        self.trainable = tuple(trainable)
        freeze_except(self, self.trainable)

    @classmethod
    def from_state_dict(
        cls,
        sd: Mapping[str, Tensor],
        output_stride: int = 16,
        *,
        trainable: Sequence[str] = ("all",),
        with_attention_pool: bool = True,
    ) -> "CLIPResNet":
        """Build the network that a CLIP state_dict describes, with its weights.

        Args:
            sd: a CLIP state_dict; the entries "visual.*" are read. Any width and depth.
            output_stride: see the class.
            trainable: see the class.
            with_attention_pool: see the class.

        Returns:
            The backbone, in eval mode as pretrained networks come.

        Raises:
            WeightsError: the entries do not describe a CLIP ResNet.
        """
        model = cls(
            CLIPArchitecture.from_state_dict(sd),
            output_stride,
            trainable=trainable,
            with_attention_pool=with_attention_pool,
        )
        model.load_visual(sd)
        return model.eval()

    def load_visual(self, sd: Mapping[str, Tensor]) -> None:
        """Copy the weights of a CLIP state_dict ("visual.*") of this architecture."""
        visual = {name.removeprefix(_VISUAL): value for name, value in sd.items() if name.startswith(_VISUAL)}
        if self.attnpool is None:
            visual = {name: value for name, value in visual.items() if not name.startswith("attnpool.")}
        self.load_state_dict(visual)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Dense features.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            {"res2": (B, 4 * width, H / 4, W / 4), ..., "res5": (B, 32 * width, H / s, W / s)} for output stride s.
        """
        features = {}
        x = self._stem(images)
        for stage in STAGES:
            x = self._run(stage, x, self._dense_plan)
            if stage in self._taps:
                x = self._taps[stage](x)
            features[stage] = x
        return features

    @contextmanager
    def transform_stage(self, stage: str, transform: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While the context is open, `forward` replaces a stage's output by what `transform` makes of it.

        Later stages and the returned features both see the new map. The tap is gone when the context closes, however
        it closes.

        Args:
            stage: one of STAGES.
            transform: maps (B, C, H, W) to the same shape.

        Raises:
            ConfigError: an unknown stage, or one that is being transformed already.
        """
        check_stage(stage)
        if stage in self._taps:
            raise ConfigError(f"{stage} is being transformed already; taps of one stage do not nest")
        self._taps[stage] = transform
        try:
            yield
        finally:
            del self._taps[stage]

    def encode_image(self, x: Tensor) -> Tensor:
        """CLIP's image embedding, at its own stride 32. Taps do not apply.

        Args:
            x: (N, 3, H, W), normalised; CLIP's input size, or any other with as many cells at stride 32.

        Returns:
            (N, D), of any length.

        Raises:
            ConfigError: another input size, or a network without attention pool.
        """
        x = self._run("res2", self._stem(x), self._clip_plan)
        return self.encode_from("res2", x)

    def encode_from(self, stage: str, features: Tensor) -> Tensor:
        """CLIP's image embedding from the output of a stage on, at CLIP's own stride 32.

        Args:
            stage: one of STAGES.
            features: (N, C, h, w), the output of that stage at CLIP's own stride.

        Returns:
            (N, D), of any length.

        Raises:
            ConfigError: an unknown stage, features of another size, or a network without attention pool.
        """
        check_stage(stage)
        features = _channels_last(features)
        for later in STAGES[STAGES.index(stage) + 1 :]:
            features = self._run(later, features, self._clip_plan)
        if self.attnpool is None:
            raise ConfigError("this CLIPResNet was built without its attention pool, which an image embedding needs")
        cells, expected = features.shape[-2] * features.shape[-1], len(self.attnpool.positional_embedding) - 1
        if cells != expected:
            side = self.architecture.input_resolution
            raise ConfigError(
                f"CLIP's attention pool takes {expected} cells at stride {CLIP_STRIDE}, got {tuple(features.shape[-2:])}"
                f": the input must have CLIP's own size of {side} x {side} pixels"
            )
        return self.attnpool(features)

    def features_at(self, stage: str, images: Tensor) -> Tensor:
        """Output of one stage at CLIP's own stride; the later stages are not run and taps do not apply.

        Args:
            stage: one of STAGES.
            images: (B, 3, H, W), normalised.

        Returns:
            (B, C, H / s, W / s) for the stage's stride s of 4, 8, 16 or 32.
        """
        check_stage(stage)
        x = self._stem(images)
        for earlier in STAGES[: STAGES.index(stage) + 1]:
            x = self._run(earlier, x, self._clip_plan)
        return x

    def input_side(self, stage: str) -> int:
        """Side in cells of a stage's output, at CLIP's own stride and input size."""
        check_stage(stage)
        return self.architecture.input_resolution // (4 * 2 ** STAGES.index(stage))

    def train(self, mode: bool = True) -> "CLIPResNet":
        """Switch the trainable submodules; the frozen ones stay in eval mode, so batch norm keeps CLIP's statistics."""
        super().train(mode)
        train_only(self, self.trainable, mode)
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every stage that `forward` returns."""
        shapes, stride = {}, 4
        for index, (stage, plan) in enumerate(zip(STAGES, self._dense_plan, strict=True)):
            stride *= plan[0].stride
            shapes[stage] = ShapeSpec(channels=self.architecture.channels(index), stride=stride)
        return shapes

    @property
    def smallest_side(self) -> int:
        """Pixels along a side with which `forward` leaves a cell at res5; the first convolution rounds up."""
        return self.output_shape()["res5"].stride - 1

    def _stem(self, x: Tensor) -> Tensor:
        x = _channels_last(x)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(conv_norm(x, conv, norm), inplace=True)
        return F.avg_pool2d(x, 2)

    def _run(self, stage: str, x: Tensor, plan: Sequence[Sequence[BlockGeometry]]) -> Tensor:
        index = STAGES.index(stage)
        layer = self.get_submodule(f"layer{index + 1}")
        for block, geometry in zip(layer.children(), plan[index], strict=True):
            x = block(x, geometry)
        return x


def _channels_last(x: Tensor) -> Tensor:
    # The order of memory in which convolutions are fastest on most devices; every layer behind keeps it.
    return x if torch.compiler.is_compiling() else x.contiguous(memory_format=torch.channels_last)


def check_stage(stage: str) -> None:
    """Raise ConfigError unless `stage` is one of STAGES."""
    if stage not in STAGES:
        raise ConfigError(f"the stages of a CLIP ResNet are {', '.join(STAGES)}; got {stage!r}")


def _make_stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    out_channels = channels * _EXPANSION
    first = Bottleneck(in_channels, channels, has_shortcut=True)
    return nn.Sequential(first, *(Bottleneck(out_channels, channels, has_shortcut=False) for _ in range(blocks - 1)))
