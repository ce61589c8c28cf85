"""DeepLabV3+ decoder whose parameter names match the checkpoints of the reference implementation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from famix.data.sampling.class_weights import read_class_weights
from famix.modeling.losses import segmentation_loss
from famix.utils.errors import ConfigError


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3 and image-level branches, projected to a single map."""

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int], dropout: float, norm: str) -> None:
        super().__init__()
        branches: list[nn.Module] = [_conv_norm_relu(in_channels, channels, 1, norm)]
        branches += [_conv_norm_relu(in_channels, channels, 3, norm, dilation) for dilation in dilations]
        branches += [_ImagePooling(in_channels, channels, norm)]
        self.convs = nn.ModuleList(branches)
        self.project = _conv_norm_relu(len(branches) * channels, channels, 1, norm).append(nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H, W)."""
        maps = [branch(x) for branch in self.convs]
        return _run_on_rebuilt(lambda: torch.cat(maps, dim=1), self.project)


class _ImagePooling(nn.Sequential):
    """Global average pooling with a 1x1 convolution, norm and ReLU, broadcast to the size of the map."""

    def __init__(self, in_channels: int, channels: int, norm: str) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_conv_norm_relu(in_channels, channels, 1, norm))

    def forward(self, x: Tensor) -> Tensor:
        pool, conv, norm, relu = self
        pooled = conv(pool(x))
        if norm.training and len(x) == 1 and type(norm) is nn.BatchNorm2d:  # SyncBN also sees other processes
            # One image gives one value per channel and thus no variance: use the running statistics.
            pooled = F.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            pooled = norm(pooled)
        # Match the memory format of the other branches; otherwise, concatenation would change it for all later layers.
        return relu(pooled).expand(-1, -1, *x.shape[-2:]).contiguous(memory_format=torch.channels_last)


@SEM_SEG_HEADS_REGISTRY.register()
class CLIPDeepLabV3PlusHead(nn.Module):
    """Decoder of the reference implementation: a 3x3 convolution over the ASPP output and a low-level branch.

    Args:
        input_shape: channels and strides of the backbone's features.
        in_features: names of the low-level and high-level features, e.g. ("res2", "res5").
        num_classes: number of classes K.
        project_channels: number of channels of the low-level branch.
        aspp_channels: number of channels of the ASPP.
        aspp_dilations: dilations of the 3x3 branches of the ASPP.
        aspp_dropout: dropout probability after the ASPP.
        conv_dims: number of channels of the 3x3 convolution before the predictor.
        ignore_value: label id of pixels excluded from the loss.
        label_smoothing: amount of label smoothing in the cross-entropy, in [0, 1).
        loss_weight: weight of the loss.
        class_weights: weights of the K classes in the loss; None for equal weights.
        norm: a name accepted by Detectron2's get_norm.
    """

    class_weights: Tensor | None

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        num_classes: int,
        project_channels: int = 48,
        aspp_channels: int = 256,
        aspp_dilations: Sequence[int] = (6, 12, 18),
        aspp_dropout: float = 0.1,
        conv_dims: int = 256,
        ignore_value: int = 255,
        label_smoothing: float = 0.1,
        loss_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        norm: str = "BN",
    ) -> None:
        super().__init__()
        if len(in_features) != 2:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES must list a low-level and a high-level feature, got {in_features}. Use two "
                "stages of the backbone."
            )
        if unknown := [name for name in in_features if name not in input_shape]:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES must list maps of the backbone, got {unknown[0]!r}. Choose from "
                f"{', '.join(input_shape)}."
            )
        self.low_level, self.high_level = in_features
        low, high = input_shape[self.low_level], input_shape[self.high_level]
        assert low.channels is not None and high.channels is not None and low.stride is not None
        self.common_stride = low.stride
        self.ignore_value = ignore_value
        self.label_smoothing = label_smoothing
        self.loss_weight = loss_weight
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.project = _conv_norm_relu(low.channels, project_channels, 1, norm)
        self.aspp = ASPP(high.channels, aspp_channels, aspp_dilations, aspp_dropout, norm)
        fuse = _conv_norm_relu(aspp_channels + project_channels, conv_dims, 3, norm)
        self.classifier = fuse.append(nn.Conv2d(conv_dims, num_classes, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        # Like the backbone's maps. Otherwise, each step would copy every weight to this order, and its gradient back.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.SEM_SEG_HEAD."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "in_features": head.IN_FEATURES,
            "num_classes": head.NUM_CLASSES,
            "project_channels": head.PROJECT_CHANNELS[0],
            "aspp_channels": head.ASPP_CHANNELS,
            "aspp_dilations": head.ASPP_DILATIONS,
            "aspp_dropout": head.ASPP_DROPOUT,
            "conv_dims": head.CONVS_DIM,
            "ignore_value": head.IGNORE_VALUE,
            "label_smoothing": head.LABEL_SMOOTHING,
            "loss_weight": head.LOSS_WEIGHT,
            "class_weights": read_class_weights(cfg),
            "norm": head.NORM,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Compute losses in training and logits otherwise, like Detectron2's semantic heads.

        Args:
            features: features of the backbone, each (B, C, H, W).
            targets: (B, H, W) int64 labels at the resolution of the images; required in training.

        Returns:
            (None, {"loss_sem_seg": scalar}) in training, and (logits, {}) in inference, with logits (B, K, H, W)
            upsampled by the stride of the low-level feature.
        """
        logits = self.layers(features)
        if self.training:
            assert targets is not None, "targets are required in training"
            return None, self.losses(logits, targets)
        scale = self.common_stride
        return F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Compute logits (B, K, H, W) at the resolution of the low-level feature."""
        low = self.project(features[self.low_level])
        high = self.aspp(features[self.high_level])

        def join() -> Tensor:
            upsampled = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
            return torch.cat([low, upsampled], dim=1)

        logits = _run_on_rebuilt(join, self.classifier)
        return logits.contiguous()  # channels first, which is faster for reductions over classes

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compute the cross-entropy of logits at any resolution, upsampled to the size of the targets (B, H, W)."""
        loss = segmentation_loss(logits, targets, self.ignore_value, self.label_smoothing, self.class_weights)
        return {"loss_sem_seg": loss * self.loss_weight}


def _run_on_rebuilt(build: Callable[[], Tensor], layers: nn.Sequential) -> Tensor:
    """Return `layers(build())`. The first layer does not keep its input for the backward pass."""
    first, *others = layers
    with rebuilt_in_backward(build) as built:
        x: Tensor = first(built)
    del built
    for layer in others:
        x = layer(x)
    return x


@contextmanager
def rebuilt_in_backward(build: Callable[[], Tensor]) -> Iterator[Tensor]:
    """Yield `build()`, which layers in the context do not keep for their backward pass but build again.

    This suits a large tensor that takes little time to build. The gradients are the same.
    """
    built = build()
    if not built.requires_grad or torch.compiler.is_compiling():  # compilers decide themselves what to keep
        yield built
        return
    address, shape = built.data_ptr(), built.shape

    def pack(saved: Tensor) -> Tensor | None:
        return None if saved.data_ptr() == address and saved.shape == shape else saved

    def unpack(packed: Tensor | None) -> Tensor:
        return build() if packed is None else packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield built


def _conv_norm_relu(in_channels: int, channels: int, kernel: int, norm: str, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=not norm)
    return nn.Sequential(conv, get_norm(norm, channels) or nn.Identity(), nn.ReLU(inplace=True))
