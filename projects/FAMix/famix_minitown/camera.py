"""The camera of the town: a pinhole that looks down the street.

World coordinates are in metres: x to the right, y up from the ground, z forwards. The horizon is level.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAR", "FIXED_POINT_BITS", "Camera", "Points"]

FAR = 120.0
"""Distance in metres behind which there is only sky."""

FIXED_POINT_BITS = 4
"""Fractional bits of the pixel positions that OpenCV draws: whole numbers, so that every machine draws the same."""

Points = NDArray[np.int32]

_FOCAL_LENGTH = 0.72  # of the image's width: about 70 degrees across


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        height, width: of the image in pixels.
        horizon: row of the horizon.
        center: column of the vanishing point.
        elevation: height of the camera above the ground in metres.
    """

    height: int
    width: int
    horizon: float
    center: float
    elevation: float

    @classmethod
    def random(cls, size: tuple[int, int], rng: np.random.Generator) -> "Camera":
        """Draw a camera for images of size (height, width)."""
        height, width = size
        return cls(
            height=height,
            width=width,
            horizon=height * rng.uniform(0.42, 0.52),
            center=width * rng.uniform(0.42, 0.58),
            elevation=rng.uniform(1.5, 2.1),
        )

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return _FOCAL_LENGTH * self.width

    def columns(self) -> NDArray[np.float64]:
        """(width,), how far the centre of each column is to the right of the vanishing point."""
        return np.arange(self.width, dtype=np.float64) + (0.5 - self.center)

    def rows(self) -> NDArray[np.float64]:
        """(height,), how far the centre of each row is below the horizon."""
        return np.arange(self.height, dtype=np.float64) + (0.5 - self.horizon)

    def pixels(self, meters: float, z: float) -> float:
        """Length on the image of something at distance z."""
        return meters * self.focal / z

    def project(self, points: list[tuple[float, float]], z: float | list[float]) -> Points:
        """Project world points.

        Args:
            points: of (x, y).
            z: their distances, > 0.

        Returns:
            (N, 2) columns and rows, in units of 2**-FIXED_POINT_BITS pixels.
        """
        unit = 1 << FIXED_POINT_BITS
        depths = z if isinstance(z, list) else [z] * len(points)
        projected = []
        for (x, y), depth in zip(points, depths, strict=True):  # a handful of points: faster than arrays
            share = self.focal / depth
            column = self.center + x * share - 0.5
            row = self.horizon + (self.elevation - y) * share - 0.5
            projected.append((round(column * unit), round(row * unit)))
        return np.array(projected, np.int32)
