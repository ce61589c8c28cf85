"""Style strategies: each draws new statistics for the patches of a batch; none touches a feature map.

All draws happen on the generator's device, so that a CPU generator gives the same styles on every training device.
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
Registry of style strategies, by their names in MODEL.STYLE.STRATEGY. Registered classes inherit from `StyleStrategy`.
"""


class StyleStrategy(ABC):
    """Base class of strategies, which draw statistics for each patch of a batch.

    Attributes:
        needs: any of "bank" (a style bank, passed to `use_bank` before training) and "labels" (the classes of the
            patches; without it, training images need no "sem_seg" labels).
        defaults: keys and default values of the config node MODEL.STYLE.<NAME>, the registered name in upper case. The
            node exists in configs made after the registration.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "StyleStrategy":
        """Build the strategy from the whole config; raise ConfigError if a setting is out of range."""
        return cls()

    def use_bank(self, bank: StyleBank) -> None:
        """Receive the style bank; called if `needs` contains "bank"."""
        raise NotImplementedError(f"{type(self).__name__} needs a bank and must define use_bank")

    @abstractmethod
    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """Draw new statistics.

        Args:
            own: (B, C, rows, cols), statistics of the patches, or those drawn by the previous strategy.
            patch_labels: (B, rows, cols) int64 class ids, 255 for unlabeled patches; None unless `needs` contains
                "labels".
            generator: the only source of randomness.

        Returns:
            Statistics of shape (B, C, rows, cols).
        """


class BankStyles(StyleStrategy):
    """Styles of a bank, drawn by the class of the patch (FAMix). Registered as "bank".

    A patch keeps its own statistics if the bank has styles neither of its class nor of unlabeled patches.
    """

    needs = frozenset({"bank", "labels"})

    def __init__(self, bank: StyleBank | None = None) -> None:
        self.bank = bank

    def use_bank(self, bank: StyleBank) -> None:
        """Draw from `bank` and warn about classes without styles."""
        self.bank = bank
        counts = bank.counts()
        missing = [name for i, name in enumerate(bank.class_names()) if i not in counts]
        if missing:
            fallback = "the styles of unlabeled patches (255)" if IGNORE_CLASS in counts else "their own statistics"
            logging.getLogger(__name__).warning(
                "The style bank has no styles of: %s. Patches of these classes use %s.", ", ".join(missing), fallback
            )

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        if self.bank is None or patch_labels is None:
            raise ConfigError(
                "MODEL.STYLE.STRATEGY bank needs a style bank and labels before the first batch. Call use_bank, and pass labels."
            )
        if not len(self.bank):
            return own
        if self.bank.mean.device != own.mean.device:
            self.bank = self.bank.to(own.mean.device)
        mean, std = (drawn.movedim(-1, 1) for drawn in self.bank.sample(patch_labels, generator))
        found = self.bank.has_style(patch_labels)[:, None]
        return Statistics(torch.where(found, mean, own.mean), torch.where(found, std, own.std))


class NoiseStyles(StyleStrategy):
    """The patch's own statistics with Gaussian noise, a control without language. Registered as "noise".

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

        def perturb(values: Tensor) -> Tensor:
            normal = torch.randn(values.shape, generator=generator, device=generator.device).to(values.device)
            return values * (1 + self.scale * normal)

        mean, std = perturb(own.mean), perturb(own.std)
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
    """Add the config node of each registered strategy with settings to MODEL.STYLE, in place."""
    for name, strategy in STYLE_STRATEGY_REGISTRY:
        if strategy.defaults:
            style[name.upper()] = CfgNode(dict(strategy.defaults))


def build_strategies(cfg: CfgNode) -> list[StyleStrategy]:
    """Build the strategies named by MODEL.STYLE.STRATEGY in order; [] for "none".

    Raises:
        ConfigError: a name is not registered, "none" is combined with other names, or a setting is out of range.
    """
    return [strategy.from_config(cfg) for strategy in _strategies(cfg.MODEL.STYLE.STRATEGY)]


def needs_bank(cfg: CfgNode) -> bool:
    """Return whether a strategy of MODEL.STYLE.STRATEGY draws from a style bank."""
    return any("bank" in strategy.needs for strategy in _strategies(cfg.MODEL.STYLE.STRATEGY))


def _strategies(value: str | Sequence[str]) -> list[type[StyleStrategy]]:
    names = [name.strip() for name in (value.split(",") if isinstance(value, str) else value)]
    if names == ["none"]:
        return []
    known = dict(STYLE_STRATEGY_REGISTRY)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"MODEL.STYLE.STRATEGY must be one or several of {', '.join(known)}, or none alone, got {name!r}."
                f"{did_you_mean(name, known) or ' Import the module that registers it before the config is made.'}"
            )
    return [known[name] for name in names]
