"""Style strategies: each draws new statistics for the patches of a batch; none touches a feature map.

Shapes: B images, C channels, a grid of (rows, cols) patches. All draws happen on the generator's device, so that a CPU
generator gives the same styles on every training device.
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

__all__ = [
    "STYLE_STRATEGY_REGISTRY",
    "BankStyles",
    "MixStyle",
    "NoiseStyles",
    "StyleStrategy",
    "add_strategy_nodes",
    "build_strategies",
    "needs_bank",
]

STYLE_STRATEGY_REGISTRY = Registry("STYLE_STRATEGY")
STYLE_STRATEGY_REGISTRY.__doc__ = """
Registry of style strategies, the names that MODEL.STYLE.STRATEGY takes. A registered class inherits from `StyleStrategy`.
"""


class StyleStrategy(ABC):
    """Draws statistics for every patch of a batch.

    Attributes:
        needs: any of "bank" (a style bank, which `use_bank` receives before training) and "labels" (the classes of the
            patches; without it `sample` gets None, and training images need no "sem_seg" labels).
        defaults: keys and default values of the strategy's config node, MODEL.STYLE.<NAME> for the registered name in
            upper case; empty for a strategy without settings. The node exists in configs made after the registration.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "StyleStrategy":
        """Build the strategy.

        Args:
            cfg: the whole config.

        Raises:
            ConfigError: a setting of the strategy is out of range.
        """
        return cls()

    def use_bank(self, bank: StyleBank) -> None:
        """Receive the style bank; called if `needs` contains "bank"."""
        raise NotImplementedError(f"{type(self).__name__} needs a bank and must define use_bank")

    @abstractmethod
    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """Draw new statistics.

        Args:
            own: (B, C, rows, cols), statistics of the patches, or those that the strategy before this one drew.
            patch_labels: (B, rows, cols) int64 class ids, 255 for unlabelled patches; None unless `needs` contains
                "labels".
            generator: the only source of randomness.

        Returns:
            Statistics of shape (B, C, rows, cols).
        """


class BankStyles(StyleStrategy):
    """Styles mined with prompts, drawn by the class of the patch (FAMix). Registered as "bank".

    Args:
        bank: the styles. A patch keeps its own statistics if the bank has styles neither of its class nor of
            unlabelled patches.
    """

    needs = frozenset({"bank", "labels"})

    def __init__(self, bank: StyleBank | None = None) -> None:
        self.bank = bank

    def use_bank(self, bank: StyleBank) -> None:
        """Draw from `bank` from now on; warn once of the classes without styles."""
        self.bank = bank
        counts = bank.counts()
        missing = [name for i, name in enumerate(bank.class_names()) if i not in counts]
        if missing:
            fallback = "the styles of unlabelled patches (255)" if IGNORE_CLASS in counts else "their own statistics"
            logging.getLogger(__name__).warning(
                "The style bank has no styles of: %s. Patches of these classes use %s.", ", ".join(missing), fallback
            )

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        if self.bank is None or patch_labels is None:
            raise ConfigError(
                "MODEL.STYLE.STRATEGY bank must have a style bank and labels before the first batch, got none. Call use_bank."
            )
        if not len(self.bank):
            return own
        if self.bank.mean.device != own.mean.device:
            self.bank = self.bank.to(own.mean.device)
        mean, std = (drawn.movedim(-1, 1) for drawn in self.bank.sample(patch_labels, generator))
        found = self.bank.has_style(patch_labels)[:, None]
        return Statistics(torch.where(found, mean, own.mean), torch.where(found, std, own.std))


class NoiseStyles(StyleStrategy):
    """The patch's own statistics with Gaussian noise: the control without language. Registered as "noise".

    Args:
        scale: standard deviation of the noise relative to the statistic, >= 0 (MODEL.STYLE.NOISE_SCALE).
    """

    def __init__(self, scale: float) -> None:
        if not scale >= 0:
            raise ConfigError(
                f"MODEL.STYLE.NOISE_SCALE must be a number of at least 0, got {scale}. The default is 0.5."
            )
        self.scale = scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "NoiseStyles":
        """See StyleStrategy."""
        return cls(cfg.MODEL.STYLE.NOISE_SCALE)

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        mean, std = (
            own_values * (1 + self.scale * _normal(own_values, generator)) for own_values in (own.mean, own.std)
        )
        return Statistics(mean, std.clamp(min=EPS**0.5))  # the smallest possible standard deviation


class MixStyle(StyleStrategy):
    """The statistics of the same patch in another image of the batch. Registered as "mixstyle".

    Zhou et al., Domain Generalization with MixStyle, ICLR 2021, with one patch.
    """

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        order = torch.randperm(len(own.mean), generator=generator, device=generator.device).to(own.mean.device)
        return Statistics(own.mean[order], own.std[order])


for _name, _strategy in (("bank", BankStyles), ("noise", NoiseStyles), ("mixstyle", MixStyle)):
    STYLE_STRATEGY_REGISTRY._do_register(_name, _strategy)


def add_strategy_nodes(style: CfgNode) -> None:
    """Add the config node of every registered strategy with settings to MODEL.STYLE, in place."""
    for name, strategy in STYLE_STRATEGY_REGISTRY:
        if strategy.defaults:
            style[name.upper()] = CfgNode(dict(strategy.defaults))


def build_strategies(cfg: CfgNode) -> list[StyleStrategy]:
    """Build the strategies that MODEL.STYLE.STRATEGY names, in their order; [] for "none".

    Raises:
        ConfigError: a name is not registered, "none" has company, or a setting of a strategy is out of range.
    """
    return [STYLE_STRATEGY_REGISTRY.get(name).from_config(cfg) for name in _names(cfg.MODEL.STYLE.STRATEGY)]


def needs_bank(cfg: CfgNode) -> bool:
    """Whether a strategy of MODEL.STYLE.STRATEGY draws from a style bank."""
    return any("bank" in STYLE_STRATEGY_REGISTRY.get(name).needs for name in _names(cfg.MODEL.STYLE.STRATEGY))


def _names(value: str | Sequence[str]) -> list[str]:
    names = [name.strip() for name in (value.split(",") if isinstance(value, str) else value)]
    if names == ["none"]:
        return []
    known = [name for name, _ in STYLE_STRATEGY_REGISTRY]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"MODEL.STYLE.STRATEGY must be one or several of {', '.join(known)}, or none alone, got {name!r}."
                f"{did_you_mean(name, known) or ' Import the module that registers it before the config is made.'}"
            )
    return names


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)
