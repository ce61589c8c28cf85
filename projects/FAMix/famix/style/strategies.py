"""Style strategies, which draw new statistics for the patches of a batch and never modify a feature map.

All draws happen on the generator's device, so a CPU generator gives the same styles on every training device.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor

from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.style.statistics import EPS, Statistics
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

STYLE_STRATEGY_REGISTRY = Registry("STYLE_STRATEGY")
STYLE_STRATEGY_REGISTRY.__doc__ = """
Registry of style strategies, keyed by their names in MODEL.STYLE.STRATEGY. Registered classes inherit from `StyleStrategy`.
"""


class StyleStrategy(ABC):
    """Base class for style strategies, which draw statistics for each patch of a batch.

    Attributes:
        needs: required inputs, any of "bank" (a style bank, passed to `use_bank` before training) and "labels" (the patch
            classes, which require "sem_seg" labels for the training images).
        defaults: keys and default values of the config node MODEL.STYLE.<NAME>, where <NAME> is the registered name in
            upper case. Only configs created after the registration contain the node.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "StyleStrategy":
        """Build the strategy from the full config. Raises ConfigError if a setting is out of range."""
        return cls()

    def use_bank(self, bank: StyleBank) -> None:
        """Receive the style bank. Called only if `needs` contains "bank"."""
        raise NotImplementedError(f"{type(self).__name__} needs a bank and must define use_bank")

    @abstractmethod
    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """Draw new statistics for each patch.

        Args:
            own: (B, C, rows, cols), statistics of the patches, or those drawn by the previous strategy.
            patch_labels: (B, rows, cols) int64 class ids, with 255 for unlabeled patches. It is None unless `needs` contains
                "labels".
            generator: the only source of randomness.

        Returns:
            Statistics of shape (B, C, rows, cols).
        """


def warn_of_missing_classes(bank: StyleBank) -> None:
    """Log a warning that names the classes without styles, if there are any."""
    counts = bank.counts()
    missing = [name for i, name in enumerate(bank.class_names()) if i not in counts]
    if missing:
        fallback = "the styles of unlabeled patches (255)" if IGNORE_CLASS in counts else "their own statistics"
        logging.getLogger(__name__).warning(
            "The style bank has no styles for: %s. Patches of these classes use %s.", ", ".join(missing), fallback
        )


class BankStyles(StyleStrategy):
    """Strategy that draws styles from a bank by patch class (FAMix), registered as "bank".

    A patch keeps its own statistics if the bank has no styles for its class or for unlabeled patches.
    """

    needs = frozenset({"bank", "labels"})

    def __init__(self, bank: StyleBank | None = None) -> None:
        self.bank = bank

    def use_bank(self, bank: StyleBank) -> None:
        """Draw from `bank` and warn about classes without styles."""
        self.bank = bank
        warn_of_missing_classes(bank)

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        if self.bank is None or patch_labels is None:
            raise ConfigError(
                "MODEL.STYLE.STRATEGY 'bank' requires a style bank and labels. Call use_bank before the first batch, and pass labels."
            )
        if not len(self.bank):
            return own
        if self.bank.mean.device != own.mean.device:
            self.bank = self.bank.to(own.mean.device)
        mean, std = (drawn.movedim(-1, 1) for drawn in self.bank.sample(patch_labels, generator))
        found = self.bank.has_style(patch_labels)[:, None]
        return Statistics(torch.where(found, mean, own.mean), torch.where(found, std, own.std))


class NoiseStyles(StyleStrategy):
    """Strategy that adds Gaussian noise to a patch's own statistics, a control without language, registered as "noise".

    Args:
        scale: standard deviation of the noise relative to the statistic, >= 0 (MODEL.STYLE.NOISE_SCALE).
    """

    def __init__(self, scale: float) -> None:
        if not scale >= 0:
            raise ConfigError(f"MODEL.STYLE.NOISE_SCALE must be at least 0, got {scale}. The default is 0.5.")
        self.scale = scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "NoiseStyles":
        """See StyleStrategy."""
        return cls(cfg.MODEL.STYLE.NOISE_SCALE)

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""

        def perturb(values: Tensor) -> Tensor:
            normal = torch.randn(values.shape, generator=generator, device=generator.device).to(values.device)
            return values * (1 + self.scale * normal)

        mean, std = perturb(own.mean), perturb(own.std)
        return Statistics(mean, std.clamp(min=EPS**0.5))  # the smallest possible standard deviation


class MixStyle(StyleStrategy):
    """Strategy that uses the statistics of the same patch in another image of the batch, registered as "mixstyle".

    The original method (Domain Generalization with MixStyle, Zhou et al., ICLR 2021) treats an image as a single patch.
    """

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        order = torch.randperm(len(own.mean), generator=generator, device=generator.device).to(own.mean.device)
        return Statistics(own.mean[order], own.std[order])


for _name, _strategy in (("bank", BankStyles), ("noise", NoiseStyles), ("mixstyle", MixStyle)):
    STYLE_STRATEGY_REGISTRY._do_register(_name, _strategy)


def add_strategy_nodes(style: CfgNode) -> None:
    """Add a config node to MODEL.STYLE, in place, for each registered strategy with settings."""
    for name, strategy in STYLE_STRATEGY_REGISTRY:
        if strategy.defaults:
            style[name.upper()] = CfgNode(dict(strategy.defaults))


def build_strategies(cfg: CfgNode) -> list[StyleStrategy]:
    """Build the strategies in MODEL.STYLE.STRATEGY, in order. Returns [] for "none".

    Raises:
        ConfigError: a name is not registered, "none" is combined with other names, or a setting is out of range.
    """
    return [strategy.from_config(cfg) for strategy in _strategies(cfg.MODEL.STYLE.STRATEGY)]


def needs_bank(cfg: CfgNode) -> bool:
    """Return whether any strategy in MODEL.STYLE.STRATEGY draws from a style bank."""
    return any("bank" in strategy.needs for strategy in _strategies(cfg.MODEL.STYLE.STRATEGY))


def _strategies(value: str | Sequence[str]) -> list[type[StyleStrategy]]:
    names = [name.strip() for name in (value.split(",") if isinstance(value, str) else value)]
    if names == ["none"]:
        return []
    known = dict(STYLE_STRATEGY_REGISTRY)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"MODEL.STYLE.STRATEGY must be none, or one or more of {', '.join(known)}, got {name!r}."
                f"{did_you_mean(name, [*known, 'none']) or ' Import the module that registers it before creating the config.'}"
            )
    return [known[name] for name in names]
