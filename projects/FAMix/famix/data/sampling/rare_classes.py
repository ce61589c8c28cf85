"""Rare class sampling of DAFormer (Hoyer et al., CVPR 2022): draw a class first, and then an image that shows it.

The probability of class c with frequency f_c, its share of all labeled pixels, is

    P(c) = exp((1 - f_c) / T) / sum over all classes k of exp((1 - f_k) / T),

so a low temperature T favors rare classes, and a high one draws all classes equally often. All images that contain at least
N pixels of the class are equally likely.
"""

import math
from operator import attrgetter

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from famix.utils.errors import ConfigError, DatasetError

RARE_CLASS, RARE_CLASS_SAMPLER = "rare_class", "RareClassSampler"
"""Entry of a sample with the class drawn for it, and value of DATALOADER.SAMPLER_TRAIN."""

_SAMPLERS = ("TrainingSampler", RARE_CLASS_SAMPLER)


class RareClassSampler:
    """Distribution over classes and images.

    Args:
        pixels: (N, K), number of pixels of each class in each image.
        temperature: temperature T of the distribution over classes, > 0.
        min_pixels: least number of pixels of the class in an image, >= 1. A class without such an image is never drawn.

    Raises:
        ConfigError: no image contains `min_pixels` pixels of any class.
        DatasetError: no image contains any class.
    """

    def __init__(self, pixels: NDArray[np.int64], temperature: float, min_pixels: int) -> None:
        most = int(pixels.max(initial=0))
        if most == 0:
            raise DatasetError(
                "The training labels contain only ignored pixels, so no class can be drawn. Check the datasets with "
                "datasets/check.py."
            )
        if most < min_pixels:
            raise ConfigError(
                f"DATALOADER.RARE_CLASS.MIN_PIXELS must be at most {most}, the largest number of pixels of a class in an "
                f"image, got {min_pixels}. Decrease it."
            )
        images, classes = np.nonzero(min_pixels <= pixels.T)[::-1]
        ends = np.bincount(classes, minlength=pixels.shape[1]).cumsum()
        self._images = np.split(images, ends[:-1])  # class -> images that contain enough of it
        exponents = (1 - class_frequencies(pixels)) / temperature
        exponents[[len(found) == 0 for found in self._images]] = -np.inf
        weights = np.exp(exponents - exponents.max())
        self.probabilities: NDArray[np.float64] = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw a class and an image that contains it, as (train id, index of the image)."""
        train_id = int(rng.choice(len(self.probabilities), p=self.probabilities))
        return train_id, int(rng.choice(self._images[train_id]))


def class_frequencies(pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share (K,) of each class in all labeled pixels, given the counts (N, K) of at least one pixel."""
    totals: NDArray[np.float64] = pixels.sum(axis=0).astype(np.float64)
    return totals / totals.sum()


def check_sampler(cfg: CfgNode) -> None:
    """Raise a ConfigError if DATALOADER.SAMPLER_TRAIN or, with RareClassSampler, another setting is invalid."""
    loader, rare = cfg.DATALOADER, cfg.DATALOADER.RARE_CLASS
    rules = [("SAMPLER_TRAIN", loader.SAMPLER_TRAIN in _SAMPLERS, f"one of {', '.join(_SAMPLERS)}", _SAMPLERS[0])]
    if loader.SAMPLER_TRAIN == RARE_CLASS_SAMPLER:
        rules += [
            ("RARE_CLASS.TEMPERATURE", 0 < rare.TEMPERATURE < math.inf, "a finite positive number", "0.01"),
            ("RARE_CLASS.MIN_PIXELS", rare.MIN_PIXELS >= 1, "at least 1", "3000"),
        ]
        if cfg.DATASETS.BALANCED:
            raise ConfigError(
                f"DATASETS.BALANCED must be False with DATALOADER.SAMPLER_TRAIN {RARE_CLASS_SAMPLER}, got True. Set one of "
                "the two to its default."
            )
    for key, valid, constraint, default in rules:
        if not valid:
            got = attrgetter(key)(loader)
            raise ConfigError(f"DATALOADER.{key} must be {constraint}, got {got!r}. The default is {default}.")
