"""Files of the reference implementation, from its names and shapes, and its network as plain formulas.

Nothing here uses the project's own modules, so that tests can compare the two.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RELEASED_NAMES = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "255",
]  # fmt: skip
RN50_LAYERS, RN101_LAYERS = (3, 4, 6, 3), (3, 4, 23, 3)
SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 8, "decoder": 8, "low": 4}  # sizes of tiny_segmentor
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

State = dict[str, Tensor]


def released_shapes(
    layers: Sequence[int] = RN50_LAYERS, width: int = 64, decoder: int = 256, low: int = 48, classes: int = 19
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of "model_state"."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out_channels, in_channels, kernel, kernel)

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{entry}": (channels,) for entry in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    stem = [(width // 2, 3), (width // 2, width // 2), (width, width // 2)]
    for index, (out_channels, in_channels) in enumerate(stem, start=1):
        conv(f"backbone.conv{index}", out_channels, in_channels, 3)
        norm(f"backbone.bn{index}", out_channels)
    inputs = width
    for stage, blocks in enumerate(layers):
        channels = width * 2**stage
        for block in range(blocks):
            prefix = f"backbone.layer{stage + 1}.{block}"
            for index, (out, in_, kernel) in enumerate(
                [(channels, inputs, 1), (channels, channels, 3), (4 * channels, channels, 1)], start=1
            ):
                conv(f"{prefix}.conv{index}", out, in_, kernel)
                norm(f"{prefix}.bn{index}", out)
            if block == 0:
                conv(f"{prefix}.downsample.0", 4 * channels, inputs, 1)
                norm(f"{prefix}.downsample.1", 4 * channels)
            inputs = 4 * channels
    high = 32 * width
    branches = [("aspp.convs.0", 0, high, decoder, 1)] + [(f"aspp.convs.{i}", 0, high, decoder, 3) for i in (1, 2, 3)]
    branches += [
        ("aspp.convs.4", 1, high, decoder, 1),
        ("aspp.project", 0, 5 * decoder, decoder, 1),
        ("project", 0, 4 * width, low, 1),
        ("classifier", 0, decoder + low, decoder, 3),
    ]
    for name, place, in_channels, out_channels, kernel in branches:
        conv(f"classifier.{name}.{place}", out_channels, in_channels, kernel)
        norm(f"classifier.{name}.{place + 1}", out_channels)
    conv("classifier.classifier.3", classes, decoder, 1)
    shapes["classifier.classifier.3.bias"] = (classes,)
    return shapes


def released_state(seed: int = 0, **sizes: Any) -> State:
    """Return a "model_state" of random values that preserve the scale of features."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in released_shapes(**sizes).items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(40_000)
    if len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        return torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    if name.endswith(("running_var", "weight")):
        return torch.rand(shape, generator=generator) + 0.5
    return torch.randn(shape, generator=generator) * 0.1


def write_checkpoint(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint with the other entries that the reference implementation saves."""
    content = {
        "cur_itrs": 40_000,
        "model_state": dict(state),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "scheduler_state": {"last_epoch": 40_000, "base_lrs": [0.01, 0.1]},
        "best_score": np.float64(0.4851),
    }
    torch.save(content, path)
    return path


def released_styles(count: int = 2, channels: int = 256, seed: int = 0) -> dict[str, Any]:
    """Return the content of saved_params.pkl: "<class>_mu" and "<class>_std", lists of tensors (channels, 1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}_{kind}": [torch.rand(channels, 1, 1, generator=generator) for _ in range(count)]
        for name in RELEASED_NAMES
        for kind in ("mu", "std")
    }


def write_bank(path: Path, content: Any) -> Path:
    """Write a saved_params.pkl."""
    path.write_bytes(pickle.dumps(content))
    return path


def released_logits(state: Mapping[str, Tensor], image: Tensor, layers: Sequence[int] = RN50_LAYERS) -> Tensor:
    """Compute the logits (K, H, W) of the reference network in eval mode at output stride 16.

    Args:
        state: a "model_state".
        image: (3, H, W) in 0-255, H and W multiples of 32.
        layers: blocks of the four stages.
    """
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    x = (image[None].float() / 255 - mean) / std
    for index, stride in ((1, 2), (2, 1), (3, 1)):
        x = _conv_norm(state, f"backbone.conv{index}", f"backbone.bn{index}", x, padding=1, stride=stride).relu()
    x = F.avg_pool2d(x, 2)
    features = []
    for stage, blocks in enumerate(layers):
        for block in range(blocks):
            last = stage == 3 and block == blocks - 1
            pool = 2 if stage in (1, 2) and block == 0 else 1
            x = _block(state, f"backbone.layer{stage + 1}.{block}", x, pool, dilation=2 if last else 1)
        features.append(x)
    return _decoder(state, features[0], features[3], image.shape[-2:])


def _block(state: Mapping[str, Tensor], name: str, x: Tensor, pool: int, dilation: int) -> Tensor:
    out = _conv_norm(state, f"{name}.conv1", f"{name}.bn1", x).relu()
    out = _conv_norm(state, f"{name}.conv2", f"{name}.bn2", out, padding=dilation, dilation=dilation).relu()
    out = _conv_norm(state, f"{name}.conv3", f"{name}.bn3", F.avg_pool2d(out, pool))
    if f"{name}.downsample.0.weight" in state:
        x = _conv_norm(state, f"{name}.downsample.0", f"{name}.downsample.1", F.avg_pool2d(x, pool))
    return (out + x).relu()


def _decoder(state: Mapping[str, Tensor], low: Tensor, high: Tensor, size: Sequence[int]) -> Tensor:
    def layer(name: str, x: Tensor, place: int = 0, dilation: int = 0) -> Tensor:
        name = f"classifier.{name}"
        dilation = {"padding": dilation, "dilation": dilation} if dilation else {}
        return _conv_norm(state, f"{name}.{place}", f"{name}.{place + 1}", x, **dilation).relu()

    low = layer("project", low)
    branches = [layer("aspp.convs.0", high)]
    branches += [layer(f"aspp.convs.{index}", high, dilation=6 * index) for index in (1, 2, 3)]
    branches += [layer("aspp.convs.4", high.mean((2, 3), keepdim=True), place=1).expand_as(branches[0])]
    high = layer("aspp.project", torch.cat(branches, dim=1))
    high = F.interpolate(high, low.shape[-2:], mode="bilinear", align_corners=False)
    fused = layer("classifier", torch.cat([low, high], dim=1), dilation=1)
    logits = F.conv2d(fused, state["classifier.classifier.3.weight"], state["classifier.classifier.3.bias"])
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)[0]


def _conv_norm(state: Mapping[str, Tensor], conv: str, norm: str, x: Tensor, **kwargs: Any) -> Tensor:
    x = F.conv2d(x, state[f"{conv}.weight"], **kwargs)
    entries = (state[f"{norm}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *entries)
