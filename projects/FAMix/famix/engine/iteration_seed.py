"""A hook that makes every iteration's randomness a function of the seed, the process and the iteration."""

from collections.abc import Callable

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from famix.utils.seeding import derive_seed

__all__ = ["IterationSeed"]

_TORCH, _STYLES = range(2)  # names of the streams


class IterationSeed(HookBase):
    """Seeds dropout and the draw of styles before every step.

    Random state thus need not be saved: a run that is resumed at iteration i draws what an undisturbed one draws.

    Args:
        seed: of the run, >= 0.
        reseed_styles: takes the seed of an iteration's styles.
    """

    def __init__(self, seed: int, reseed_styles: Callable[[int], None]) -> None:
        self.seed = seed
        self.reseed_styles = reseed_styles

    def before_step(self) -> None:
        """Seed the coming iteration."""
        keys = (self.seed, comm.get_rank(), self.trainer.iter)
        torch.manual_seed(derive_seed(_TORCH, *keys))  # nn.Dropout knows no other generator than the global one
        self.reseed_styles(derive_seed(_STYLES, *keys))
