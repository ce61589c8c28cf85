"""Many dimensions as two, for maps."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Projection", "principal_plane"]


@dataclass(frozen=True)
class Projection:
    """Points seen from where they spread most.

    Attributes:
        places: (N, 2).
        shares: of the points' variance that either axis shows, 0-1.
    """

    places: Tensor
    shares: tuple[float, float]


def principal_plane(points: Tensor) -> Projection:
    """Principal component analysis: the plane in which points vary most.

    Args:
        points: (N, D) with N >= 1 and D >= 2; distances count as they are, coordinates are not rescaled.

    Returns:
        The same for the same points: of either axis, the coordinate that weighs most points to the positive side.
    """
    centered = (points - points.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centered.t() @ centered)
    axes = vectors[:, -2:].flip(1)
    heaviest = axes.abs().argmax(dim=0)
    axes = axes * axes.gather(0, heaviest[None]).sign()
    total = float(values.clamp(min=0).sum())
    first, second = (float(value) / total if total > 0 else 0.0 for value in values[-2:].clamp(min=0).flip(0))
    return Projection((centered @ axes).float(), (first, second))
