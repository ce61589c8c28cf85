"""Weights of the classes in the training loss, from MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS."""

import math

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from famix.data.sampling.pixel_counts import count_pixels
from famix.data.sampling.rare_classes import class_frequencies
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.messages import shown

FREQUENCY = "frequency"
_OFFSET = 1.02  # bounds the ratio of two weights by 35


def read_class_weights(cfg: CfgNode) -> list[float] | None:
    """Return the weights of the K classes, or None if all classes count the same.

    Frequencies are unknown before the labels are read (see `with_class_weights`). Until then, the weights are NaN, and so is
    every loss computed with them.

    Raises:
        ConfigError: the number of weights differs from the number of classes, a weight is negative or not finite, or all
            are 0.
    """
    weights, num_classes = cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not weights:
        return None
    if list(weights) == [FREQUENCY]:
        return [math.nan] * num_classes
    valid = len(weights) == num_classes and all(_is_weight(weight) for weight in weights) and any(weights)
    if not valid:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS must be [], ['{FREQUENCY}'] or one non-negative number for each of the "
            f"{num_classes} classes, not all 0, got {shown(list(weights))}. Set it to [] to weight all classes equally."
        )
    return [float(weight) for weight in weights]


def with_class_weights(cfg: CfgNode) -> CfgNode:
    """Return a config in which weights by frequency are replaced with numbers, from the training labels or their cache.

    Call this function in all processes, before building a model for training.

    Raises:
        DatasetError: a dataset is unknown or incomplete, a label cannot be read, or no label contains a class.
    """
    if list(cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS) != [FREQUENCY]:
        return cfg
    numbered = cfg.clone()
    numbered.defrost()
    numbered.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS = frequency_weights(count_pixels(cfg))
    return numbered


def frequency_weights(pixels: NDArray[np.int64]) -> list[float]:
    """Compute weights that fall with the frequency f of a class, its share of all labeled pixels.

    As in ENet (Paszke et al., 2016), they are proportional to 1 / log(1.02 + f). Classes without pixels get 0, and the mean
    of the others is 1.

    Args:
        pixels: (N, K), number of pixels of each class in each image.

    Raises:
        DatasetError: no image contains any class.
    """
    if not pixels.any():
        raise DatasetError(
            "The training labels contain only ignored pixels, so classes have no frequency. Check the datasets with "
            "datasets/check.py."
        )
    frequencies = class_frequencies(pixels)
    weights = np.where(frequencies > 0, 1 / np.log(_OFFSET + frequencies), 0)
    scaled: list[float] = (weights / weights[weights > 0].mean()).tolist()
    return scaled


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
