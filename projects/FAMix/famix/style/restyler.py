"""The feature-level mapper of training: draws styles for a batch's patches and applies them."""

import logging
from collections.abc import Sequence
from typing import Any

import scipy.special
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS, patch_classes
from famix.style.patches import Grid
from famix.style.restyle import mix_statistics, transfer_statistics
from famix.style.statistics import Statistics, patch_mean_std
from famix.style.strategies import BankStyles, MixStyle, NoiseStyles, StyleStrategy
from famix.utils.errors import ConfigError

__all__ = ["PatchRestyler", "sample_alpha"]

_STRATEGIES = ("bank", "noise", "mixstyle", "none")


class PatchRestyler:
    """Randomises the style of every patch of a feature map, once per call.

    It holds no parameters and is no module, so that neither styles nor random state enter a checkpoint.

    Args:
        strategy: "bank" (a bank must be given before the first batch, see `use_bank`), "noise", "mixstyle" or "none".
        grid: (rows, cols) of patches.
        beta: alpha ~ Beta(beta, beta) weighs a patch's own statistics; > 0.
        mix: False gives a patch the drawn style unmixed, as if alpha were 0.
        probability: share of images that are restyled, in [0, 1]; the others keep their own statistics.
        stage: name of the backbone stage whose output is restyled, e.g. "res2".
        noise_scale: of strategy "noise".
        ignore_label: label id of pixels without a class.

    Raises:
        ConfigError: a value out of its range.
    """

    @configurable
    def __init__(
        self,
        *,
        strategy: str,
        grid: Grid,
        beta: float,
        mix: bool = True,
        probability: float = 1.0,
        stage: str = "res2",
        noise_scale: float = 0.5,
        ignore_label: int = 255,
    ) -> None:
        if strategy not in _STRATEGIES:
            raise ConfigError(f"MODEL.STYLE.STRATEGY must be one of {', '.join(_STRATEGIES)}; got {strategy!r}")
        if beta <= 0 or noise_scale < 0:
            raise ConfigError(
                f"MODEL.STYLE.BETA must be > 0 and NOISE_SCALE >= 0; got BETA {beta} and NOISE_SCALE {noise_scale}"
            )
        if not 0 <= probability <= 1:
            raise ConfigError(f"MODEL.STYLE.PROBABILITY must be from 0 to 1; got {probability}")
        if len(grid) != 2 or min(grid) < 1:
            raise ConfigError(f"MODEL.STYLE.GRID must be (rows, cols), each at least 1; got {tuple(grid)}")
        self.strategy = strategy
        self.grid: Grid = (int(grid[0]), int(grid[1]))
        self.beta = beta
        self.mix = mix
        self.probability = probability
        self.stage = stage
        self.ignore_label = ignore_label
        self.generator = torch.Generator()
        self._source: StyleStrategy | None = None
        if strategy == "noise":
            self._source = NoiseStyles(noise_scale)
        elif strategy == "mixstyle":
            self._source = MixStyle()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from MODEL.STYLE."""
        style = cfg.MODEL.STYLE
        return {
            "strategy": style.STRATEGY,
            "grid": tuple(style.GRID),
            "beta": style.BETA,
            "mix": style.MIX,
            "probability": style.PROBABILITY,
            "stage": style.STAGE,
            "noise_scale": style.NOISE_SCALE,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    @property
    def needs_bank(self) -> bool:
        """Whether the strategy draws from a style bank."""
        return self.strategy == "bank"

    @property
    def active(self) -> bool:
        """Whether calls change features at all."""
        return self.strategy != "none"

    def use_bank(self, bank: StyleBank) -> None:
        """Draw from a bank from now on; says once which classes have no style of their own in it."""
        self._source = BankStyles(bank)
        counts = bank.counts()
        missing = [name for i, name in enumerate(bank.class_names()) if i not in counts]
        if missing:
            fallback = "the styles of unlabelled patches (255)" if IGNORE_CLASS in counts else "their own statistics"
            logging.getLogger(__name__).warning(
                "The style bank has no style of: %s. Patches of these classes use %s.", ", ".join(missing), fallback
            )

    def reseed(self, seed: int) -> None:
        """Make the following draws a function of `seed`, >= 0."""
        self.generator.manual_seed(seed)

    def sample(self, own: Statistics, labels: Tensor) -> Statistics:
        """Draw the new statistics of every patch, already mixed with its own where `mix` asks for it.

        Args:
            own: the patches' own statistics, (B, C, rows, cols).
            labels: (B, H, W) int, ground truth at any resolution.

        Returns:
            Statistics of shape (B, C, rows, cols).
        """
        if self._source is None:
            raise ConfigError("MODEL.STYLE.STRATEGY bank has no bank yet: call use_bank before training")
        patch_labels = patch_classes(labels, self.grid, self.ignore_label)
        drawn = self._source.sample(own, patch_labels, self.generator)
        shape = own.mean.shape[:2]
        alpha = sample_alpha(shape, self.beta, self.generator) if self.mix else torch.zeros(*shape, 1, 1)
        if self.probability < 1:
            kept = torch.rand(len(alpha), 1, 1, 1, generator=self.generator) >= self.probability
            alpha = alpha.masked_fill(kept, 1.0)  # all of its own statistics: the image comes through unchanged
        return mix_statistics(own, drawn, alpha)

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        """Restyle a feature map.

        Args:
            features: (B, C, H, W).
            labels: (B, H', W') int, ground truth of the same images at any resolution.

        Returns:
            (B, C, H, W).
        """
        if not self.active:
            return features
        own = patch_mean_std(features, self.grid)
        return transfer_statistics(features, own, self.sample(own, labels), self.grid)


def sample_alpha(shape: Sequence[int], beta: float, generator: torch.Generator) -> Tensor:
    """Draw weights from Beta(beta, beta), one per image and channel.

    Args:
        shape: (B, C).
        beta: both parameters of the distribution, > 0.
        generator: source of the randomness.

    Returns:
        (B, C, 1, 1) float64 in [0, 1], on the CPU.
    """
    # torch's own Beta takes no generator: the distribution's quantile function maps uniform draws to it instead.
    uniform = torch.rand(*shape, 1, 1, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.from_numpy(scipy.special.betaincinv(beta, beta, uniform.cpu().numpy()))
