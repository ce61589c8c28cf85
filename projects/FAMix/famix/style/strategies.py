"""Where the new statistics of a patch come from. Each strategy draws; none touches a feature map.

Shapes: B images, C channels, a grid of (rows, cols) patches. Everything is drawn on the generator's device, so that a
CPU generator gives the same styles whatever device trains.
"""

from typing import Protocol

import torch
from torch import Tensor

from famix.style.bank import StyleBank
from famix.style.statistics import EPS, Statistics

__all__ = ["BankStyles", "MixStyle", "NoiseStyles", "StyleStrategy"]


class StyleStrategy(Protocol):
    """Draws statistics for every patch of a batch."""

    def sample(self, own: Statistics, patch_labels: Tensor, generator: torch.Generator) -> Statistics:
        """Draw new statistics.

        Args:
            own: the patches' own statistics, (B, C, rows, cols).
            patch_labels: (B, rows, cols) int64, class ids.
            generator: source of all randomness.

        Returns:
            Statistics of shape (B, C, rows, cols).
        """
        ...


class BankStyles:
    """Styles mined with prompts, drawn by the patch's class (FAMix).

    Args:
        bank: the styles. A patch whose class finds none in it keeps its own statistics.
    """

    def __init__(self, bank: StyleBank) -> None:
        self.bank = bank

    def sample(self, own: Statistics, patch_labels: Tensor, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        if not len(self.bank):
            return own
        if self.bank.mean.device != own.mean.device:
            self.bank = self.bank.to(own.mean.device)
        mean, std = (drawn.movedim(-1, 1) for drawn in self.bank.sample(patch_labels, generator))
        found = self.bank.has_style(patch_labels)[:, None]
        return Statistics(torch.where(found, mean, own.mean), torch.where(found, std, own.std))


class NoiseStyles:
    """A patch's own statistics, each perturbed by Gaussian noise: the control without language.

    Args:
        scale: standard deviation of the noise, relative to the size of the statistic, >= 0.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def sample(self, own: Statistics, patch_labels: Tensor, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        mean = own.mean * (1 + self._noise(own.mean, generator))
        std = own.std * (1 + self._noise(own.std, generator))
        return Statistics(mean, std.clamp(min=EPS**0.5))  # the least value that a standard deviation can have

    def _noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        normal = torch.randn(like.shape, generator=generator, device=generator.device)
        return self.scale * normal.to(like.device)


class MixStyle:
    """The statistics of the same patch in another image of the batch (Zhou et al., ICLR 2021; there with one patch)."""

    def sample(self, own: Statistics, patch_labels: Tensor, generator: torch.Generator) -> Statistics:
        """See StyleStrategy."""
        order = torch.randperm(len(own.mean), generator=generator, device=generator.device).to(own.mean.device)
        return Statistics(own.mean[order], own.std[order])
