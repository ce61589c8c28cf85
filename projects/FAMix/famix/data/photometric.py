"""Random changes in the colors of training images, which keep the labels: color jitter, and policies of torchvision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from famix.utils.errors import ConfigError

_ADJUSTMENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
}


@dataclass(frozen=True)
class ColorJitter:
    """Random changes in brightness, contrast and saturation."""

    strengths: tuple[float, float, float]  # v >= 0 for each; the factor is drawn from [max(0, 1 - v), 1 + v]
    probability: float = 1.0  # probability of jittering an image

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draw (name, factor) pairs for one image in random order. An empty list leaves the image unchanged."""
        strengths = np.asarray(self.strengths, dtype=float)
        factors = rng.uniform(np.maximum(0, 1 - strengths), 1 + strengths)
        names = list(_ADJUSTMENTS)
        order = rng.permutation(len(names))
        # The decision is drawn last so that it does not affect the other draws.
        if self.probability < 1 and rng.random() >= self.probability:
            return []
        return [(names[place], float(factors[place])) for place in order]


def adjust_colors(image: Tensor, changes: list[tuple[str, float]]) -> Tensor:
    """Return an RGB image (3, H, W) uint8 with the changes drawn by `ColorJitter.draw`."""
    for name, factor in changes:
        if factor != 1:
            image = _ADJUSTMENTS[name](image, factor)
    return image


def _without_geometric(operations: Mapping[str, Any]) -> dict[str, Any]:
    geometric = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    return {name: ranges for name, ranges in operations.items() if name not in geometric}


class _RandAugment(v2.RandAugment):
    _AUGMENTATION_SPACE = _without_geometric(v2.RandAugment._AUGMENTATION_SPACE)


class _AugMix(v2.AugMix):
    _AUGMENTATION_SPACE = _without_geometric(v2.AugMix._AUGMENTATION_SPACE)


class _Policy(NamedTuple):
    make: Callable[..., Callable[[Tensor], Tensor]]
    strength: str  # keyword of `make`
    limits: tuple[int, int]  # lowest and highest strength


_POLICIES = {
    "RandAugment": _Policy(_RandAugment, "magnitude", (0, 30)),
    "AugMix": _Policy(_AugMix, "severity", (1, 10)),
}


class AutoAugment:
    """A policy of torchvision without its geometric operations.

    RandAugment (https://arxiv.org/abs/1909.13719) applies two random operations. AugMix
    (https://arxiv.org/abs/1912.02781) mixes the image with three chains of one to three random operations. The
    operations are brightness, color, contrast, sharpness, posterize, solarize, autocontrast and equalize.

    Args:
        name: "RandAugment" or "AugMix".
        magnitude: strength of the operations, from 0 to 30 for RandAugment and from 1 to 10 for AugMix.
        probability: fraction of changed images, in [0, 1].
    """

    def __init__(self, name: str, magnitude: int, probability: float = 1.0) -> None:
        policy = _POLICIES[name]
        self.probability = probability
        self._change = policy.make(**{policy.strength: magnitude})

    @classmethod
    def from_config(cls, options: CfgNode) -> "AutoAugment":
        """Create the policy from INPUT.AUTO_AUGMENT, whose NAME is not empty.

        Raises:
            ConfigError: a value is invalid.
        """
        key = "INPUT.AUTO_AUGMENT"
        if options.NAME not in _POLICIES:
            raise ConfigError(f"{key}.NAME must be one of {', '.join(_POLICIES)}, or empty, got {options.NAME!r}.")
        lowest, highest = _POLICIES[options.NAME].limits
        if not (isinstance(options.MAGNITUDE, int) and lowest <= options.MAGNITUDE <= highest):
            message = f"an integer from {lowest} to {highest} for {options.NAME}, got {options.MAGNITUDE!r}"
            raise ConfigError(f"{key}.MAGNITUDE must be {message}.")
        if not 0 <= options.PROBABILITY <= 1:
            raise ConfigError(f"{key}.PROBABILITY must be a number from 0 to 1, got {options.PROBABILITY!r}.")
        return cls(options.NAME, options.MAGNITUDE, options.PROBABILITY)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Return an RGB image (3, H, W) uint8 with random changes, or `image` itself."""
        seed, is_changed = int(rng.integers(1 << 62)), rng.random() < self.probability
        if not is_changed:
            return image
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(seed)
            return self._change(image)
