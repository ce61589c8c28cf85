"""Unoptimized versions of the project's fast paths, for comparison.

Mining runs OpenAI's implementation of CLIP with unfolded layers, channels-first memory, prompts padded to 77 tokens and
no prompt cache. The segmentor keeps the project's modules, but runs each convolution and each norm separately, in
channels-first memory, and keeps all maps that the backward pass reads. Restyling loops over patches and normalizes before
it rescales, as the reference implementation does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from famix.clip import resnet as clip_resnet
from famix.clip.openai import CLIP, tokenize
from famix.clip.text.prompts import fill_template
from famix.modeling import deeplab_head
from famix.style import restyler


def plain_features(clip: CLIP, images: Tensor) -> Tensor:
    """Return the output (B, C, H / 4, W / 4) of the first stage for normalized images (B, 3, H, W)."""
    tower = clip.visual
    x = tower.relu1(tower.bn1(tower.conv1(images)))
    x = tower.relu2(tower.bn2(tower.conv2(x)))
    x = tower.avgpool(tower.relu3(tower.bn3(tower.conv3(x))))
    return tower.layer1(x)


def plain_tail(clip: CLIP, patches: Tensor) -> Tensor:
    """Return embeddings (N, D) of patches (N, C, h, w) at the first stage."""
    tower = clip.visual
    x = F.adaptive_avg_pool2d(patches, tower.input_resolution // 4)
    return tower.attnpool(tower.layer4(tower.layer3(tower.layer2(x))))


def plain_prompts(clip: CLIP, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return unit-length embeddings (N, D), encoding each sentence as 77 tokens."""
    device = clip.visual.conv1.weight.device
    means = []
    with torch.no_grad():
        for text in texts:
            tokens = tokenize([fill_template(template, text) for template in templates]).to(device)
            means.append(clip.encode_text(tokens).mean(dim=0))
    return F.normalize(torch.stack(means), dim=1)


def plain_class_patches(features: Tensor, labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the first patch of each class (N, C, h, w) in ascending order, looping over grid cells and images.

    Features are (B, C, H, W), labels are (B, H', W') int64, and the grid is (rows, cols).
    """
    found: dict[int, Tensor] = {}
    for feature_rows, label_rows in zip(features.chunk(grid[0], 2), labels.chunk(grid[0], 1), strict=True):
        for cell, cell_labels in zip(feature_rows.chunk(grid[1], 3), label_rows.chunk(grid[1], 2), strict=True):
            for patch, patch_labels in zip(cell, cell_labels, strict=True):
                found.setdefault(int(patch_labels.flatten().bincount().argmax()), patch)
    return torch.stack([found[class_id] for class_id in sorted(found)])


class PlainSteps:
    """Optimization of the styles of patches (N, C, h, w) toward texts (N, D) with autograd and torch's SGD."""

    def __init__(self, clip: CLIP, patches: Tensor, texts: Tensor, **sgd: Any) -> None:
        patches = patches.contiguous()
        mean = patches.mean((2, 3), keepdim=True)
        std = (patches.var((2, 3), keepdim=True) + 1e-5).sqrt()
        self.clip, self.texts = clip, texts
        self.normalized = (patches - mean) / std
        self.mean, self.std = mean.requires_grad_(), std.requires_grad_()
        self.optimizer = torch.optim.SGD([self.mean, self.std], **sgd)

    def loss(self) -> Tensor:
        """Return the mean of 1 - cosine similarity."""
        restyled = F.relu(self.normalized * self.std + self.mean)
        return (1 - F.cosine_similarity(plain_tail(self.clip, restyled), self.texts)).mean()

    def step(self) -> None:
        """Run one step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


@contextmanager
def plain_layers() -> Iterator[None]:
    """While the context is open, run the project's networks with unfolded layers in channels-first memory.

    The decoder keeps its concatenated maps for the backward pass.
    """

    def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, dilation: int = 1) -> Tensor:
        padding = [dilation * int(side) for side in conv.padding]
        return norm(F.conv2d(x, conv.weight, None, conv.stride, padding, dilation))

    @contextmanager
    def kept(build: Callable[[], Tensor]) -> Iterator[Tensor]:
        yield build()

    with (
        mock.patch.object(clip_resnet, "conv_norm", conv_norm),
        mock.patch.object(clip_resnet, "_channels_last", Tensor.contiguous),
        mock.patch.object(deeplab_head, "rebuilt_in_backward", kept),
    ):
        yield


@contextmanager
def plain_restyling() -> Iterator[None]:
    """While the context is open, restyle with loops over patches."""
    with (
        mock.patch.object(restyler, "patch_classes", plain_patch_classes),
        mock.patch.object(restyler, "restyle_patches", plain_restyle),
    ):
        yield


def plain_patch_classes(labels: Tensor, grid: tuple[int, int], ignore_label: int) -> Tensor:
    """Return the most frequent label (B, rows, cols) of each patch of labels (B, H, W), looping over patches and images."""
    rows = [
        [[int(patch.flatten().bincount().argmax()) for patch in cell] for cell in band.chunk(grid[1], 2)]
        for band in labels.chunk(grid[0], 1)
    ]
    return torch.tensor(rows).permute(2, 0, 1)


def plain_restyle(
    features: Tensor,
    mean: Tensor,
    std: Tensor,
    alpha: Tensor,
    grid: tuple[int, int],
    rectify: bool = True,
    own: object = None,
) -> Tensor:
    """Compute `famix.style.restyle_patches` for sides that the grid divides, looping over patches. `own` is not used."""
    mean, std, alpha = (x.to(features) for x in (mean, std, alpha))
    bands = []
    for row, band in enumerate(features.chunk(grid[0], 2)):
        cells = []
        for col, cell in enumerate(band.chunk(grid[1], 3)):
            own_mean, own_std = cell.mean((2, 3), keepdim=True), (cell.var((2, 3), keepdim=True) + 1e-5).sqrt()
            new_mean, new_std = (
                alpha * before + (1 - alpha) * drawn[:, :, row, col, None, None]
                for before, drawn in ((own_mean, mean), (own_std, std))
            )
            cells.append((cell - own_mean) / own_std * new_std + new_mean)
        bands.append(torch.cat(cells, dim=3))
    restyled = torch.cat(bands, dim=2)
    return F.relu(restyled) if rectify else restyled
