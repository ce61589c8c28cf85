#!/usr/bin/env python
"""Train with a style strategy defined outside the package.

    python projects/FAMix/examples/extending/style_strategy.py --config-file CONFIG MODEL.STYLE.STRATEGY DSU

It accepts the same options as train_net.py. `MODEL.STYLE.DSU.SCALE 0.5` halves the noise; `MODEL.STYLE.STRATEGY "[bank, DSU]"`
adds it to styles from the bank.
"""

import sys
from pathlib import Path
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # projects/FAMix, the folder of train_net.py

from famix.style import STYLE_STRATEGY_REGISTRY, Statistics, StyleStrategy
from famix.utils.errors import ConfigError


@STYLE_STRATEGY_REGISTRY.register()
class DSU(StyleStrategy):
    """Strategy that perturbs the statistics of a patch in proportion to their spread across the batch.

    Li et al., Uncertainty Modeling for Out-of-Distribution Generalization, ICLR 2022.

    Args:
        scale: scale of the noise, >= 0.
    """

    needs = frozenset()  # neither a "bank" nor "labels"
    defaults: ClassVar = {"SCALE": 1.0}  # adds the config key MODEL.STYLE.DSU.SCALE

    def __init__(self, scale: float) -> None:
        if not scale >= 0:
            raise ConfigError(f"MODEL.STYLE.DSU.SCALE must be at least 0, got {scale}. The paper uses 1.0.")
        self.scale = scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "DSU":
        """Read MODEL.STYLE.DSU."""
        return cls(cfg.MODEL.STYLE.DSU.SCALE)

    def sample(self, own: Statistics, patch_labels: Tensor | None, generator: torch.Generator) -> Statistics:
        """Draw statistics of shape (B, C, rows, cols)."""
        mean, std = (self._perturb(values, generator) for values in (own.mean, own.std))
        return Statistics(mean, std.clamp(min=1e-3))

    def _perturb(self, values: Tensor, generator: torch.Generator) -> Tensor:
        # Drawn on the generator's device, so a seed gives the same styles on every device.
        noise = torch.randn(values.shape, generator=generator, device=generator.device).to(values.device)
        return values + self.scale * noise * values.std(0, correction=0, keepdim=True)


if __name__ == "__main__":
    from train_net import launch_from_command_line

    launch_from_command_line()
