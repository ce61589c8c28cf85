"""Styles: patch statistics, optimization toward prompts, style banks, strategies, and mixing into feature maps."""

from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS, dominant_labels, patch_classes
from famix.style.optimize import OptimizedStyles, optimize_styles, source_basis
from famix.style.restyle import restyle_patches
from famix.style.restyler import PatchRestyler
from famix.style.statistics import Statistics, channel_mean_std, patch_mean_std
from famix.style.strategies import (
    STYLE_STRATEGY_REGISTRY,
    BankStyles,
    MixStyle,
    NoiseStyles,
    StyleStrategy,
    build_strategies,
    needs_bank,
)

__all__ = [
    "IGNORE_CLASS",
    "STYLE_STRATEGY_REGISTRY",
    "BankStyles",
    "MixStyle",
    "NoiseStyles",
    "OptimizedStyles",
    "PatchRestyler",
    "Statistics",
    "StyleBank",
    "StyleStrategy",
    "build_strategies",
    "channel_mean_std",
    "dominant_labels",
    "needs_bank",
    "optimize_styles",
    "patch_classes",
    "patch_mean_std",
    "restyle_patches",
    "source_basis",
]
