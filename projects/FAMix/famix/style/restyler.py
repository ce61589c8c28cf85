"""Restyling during training: the random half of style mixing."""

import math
from collections.abc import Sequence
from typing import Any

import scipy.special
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from famix.style.bank import StyleBank
from famix.style.dominant import patch_classes
from famix.style.patches import Grid
from famix.style.restyle import restyle_patches
from famix.style.statistics import patch_mean_std
from famix.style.strategies import StyleStrategy, build_strategies
from famix.utils.errors import ConfigError


class PatchRestyler:
    """Callable that randomizes the style of each patch of a feature map.

    It is not an nn.Module, so checkpoints contain neither styles nor random state.

    Args:
        strategies: style strategies, applied in order, each to the statistics drawn by the previous one. The final result
            is mixed with the patch's own statistics. An empty sequence leaves features unchanged.
        grid: number of patches as (rows, cols).
        beta: parameter > 0 of alpha ~ Beta(beta, beta), the weight of a patch's own statistics.
        mix: whether to mix styles; False uses the drawn style alone (alpha = 0).
        probability: probability of restyling an image, in [0, 1].
        stage: backbone stage to restyle, e.g. "res2".
        ignore_label: label id of unlabeled pixels.

    Raises:
        ConfigError: a value is out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        strategies: Sequence[StyleStrategy],
        grid: Grid,
        beta: float,
        mix: bool = True,
        probability: float = 1.0,
        stage: str = "res2",
        ignore_label: int = 255,
    ) -> None:
        if not 0 < beta < math.inf:
            raise ConfigError(f"MODEL.STYLE.BETA must be a number greater than 0, got {beta}. The paper uses 0.1.")
        if not 0 <= probability <= 1:
            raise ConfigError(f"MODEL.STYLE.PROBABILITY must be in [0, 1], got {probability}. The default is 1.0.")
        if len(grid) != 2 or min(grid) < 1:
            raise ConfigError(
                f"MODEL.STYLE.GRID must be (rows, cols), each at least 1, got {tuple(grid)}. Use, for example, [3, 3]."
            )
        self.strategies = tuple(strategies)
        self.grid: Grid = (int(grid[0]), int(grid[1]))
        self.beta = beta
        self.mix = mix
        self.probability = probability
        self.stage = stage
        self.ignore_label = ignore_label
        self.generator = torch.Generator()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.STYLE and the head's ignore label."""
        style, ignore_label = cfg.MODEL.STYLE, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        same_names = {name: style[name.upper()] for name in ("grid", "beta", "mix", "probability", "stage")}
        return {"strategies": build_strategies(cfg), "ignore_label": ignore_label, **same_names}

    @property
    def active(self) -> bool:
        """Whether calls change features."""
        return bool(self.strategies)

    def needs(self, what: str) -> bool:
        """Return whether any strategy needs `what`: "bank" or "labels"."""
        return any(what in strategy.needs for strategy in self.strategies)

    def use_bank(self, bank: StyleBank) -> None:
        """Pass a style bank to the strategies that need one."""
        for strategy in self.strategies:
            if "bank" in strategy.needs:
                strategy.use_bank(bank)

    def reseed(self, seed: int) -> None:
        """Seed all subsequent draws."""
        self.generator.manual_seed(seed)

    def __call__(self, features: Tensor, labels: Tensor | None, rectify: bool = True) -> Tensor:
        """Draw new statistics for each patch, mix them with its own and apply them.

        Args:
            features: (B, C, H, W).
            labels: (B, H', W') integers, ground truth at any resolution. May be None if no strategy needs labels.
            rectify: whether to apply a ReLU to the result (see `restyle_patches`).

        Returns:
            (B, C, H, W).
        """
        if not self.active:
            return features
        patch_labels = None
        if labels is not None and self.needs("labels"):
            patch_labels = patch_classes(labels, self.grid, self.ignore_label)
        drawn = own = patch_mean_std(features, self.grid)
        for strategy in self.strategies:
            drawn = strategy.sample(drawn, patch_labels, self.generator)
        shape = features.shape[:2]
        alpha = sample_alpha(shape, self.beta, self.generator) if self.mix else torch.zeros(*shape, 1, 1)
        if self.probability < 1:
            kept = torch.rand(len(alpha), 1, 1, 1, generator=self.generator) >= self.probability
            alpha = alpha.masked_fill(kept, 1.0)  # full weight on its own statistics leaves the image unchanged
        return restyle_patches(features, drawn.mean, drawn.std, alpha, self.grid, rectify, own)


def sample_alpha(shape: Sequence[int], beta: float, generator: torch.Generator) -> Tensor:
    """Draw a weight from Beta(beta, beta) for each image and channel, where `shape` is (B, C).

    Returns:
        (B, C, 1, 1) float64 in [0, 1], on the CPU.
    """
    # torch's Beta accepts no generator, so uniform draws are mapped through the quantile function.
    uniform = torch.rand(*shape, 1, 1, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.from_numpy(scipy.special.betaincinv(beta, beta, uniform.cpu().numpy()))
