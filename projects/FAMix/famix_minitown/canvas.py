"""Camera and canvas: metres projected to pixels, and the colors, classes, depths and objects painted there.

World coordinates are in metres: x to the right, y up from the ground, z forwards. The horizon is level.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["FAR", "FIXED_POINT_BITS", "FOCAL_LENGTH", "Camera", "Canvas", "Color", "Light", "Points", "TrainId"]

FAR = 120.0
"""Distance in metres of the sky."""

FIXED_POINT_BITS = 4
"""Fractional bits of pixel positions in OpenCV: integers, so that every machine draws the same."""

FOCAL_LENGTH = 0.72
"""Relative to the width of the image: about 70 degrees across."""

Points = NDArray[np.int32]
Color = tuple[int, int, int]


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
        return FOCAL_LENGTH * self.width

    def columns(self) -> NDArray[np.float64]:
        """Return the offset of each column's center to the right of the vanishing point, (width,)."""
        return np.arange(self.width, dtype=np.float64) + (0.5 - self.center)

    def rows(self) -> NDArray[np.float64]:
        """Return the offset of each row's center below the horizon, (height,)."""
        return np.arange(self.height, dtype=np.float64) + (0.5 - self.horizon)

    def pixels(self, meters: float, z: float) -> float:
        """Return the length in pixels of an object at distance z."""
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
        for (x, y), depth in zip(points, depths, strict=True):  # few points: faster than arrays
            share = self.focal / depth
            column = self.center + x * share - 0.5
            row = self.horizon + (self.elevation - y) * share - 0.5
            projected.append((round(column * unit), round(row * unit)))
        return np.array(projected, np.int32)


class TrainId:
    """Cityscapes' train ids of the town's classes."""

    ROAD = 0
    SIDEWALK = 1
    BUILDING = 2
    WALL = 3
    POLE = 5
    TRAFFIC_SIGN = 7
    VEGETATION = 8
    SKY = 10
    PERSON = 11
    CAR = 13


@dataclass(frozen=True)
class Light:
    """A lamp that is lit at night.

    Attributes:
        column, row: in pixels.
        radius: in pixels.
        color: RGB.
        reach: radius of its light, in pixels.
        item: number of its object; another object in front hides it.
        ground: row of its pool of light on the ground; None without one.
    """

    column: float
    row: float
    radius: float
    color: Color
    reach: float
    item: int
    ground: float | None = None


@dataclass
class Canvas:
    """Pixels under construction.

    Attributes:
        camera: projects metres to pixels.
        image: (H, W, 3) uint8, RGB.
        items: (H, W) uint8, number of the object at a pixel; 0 for street and houses.
        classes, depths: of objects 0, 1, 2, ...; 0 is a placeholder.
        lights: of all objects.
        windows: (H, W) uint8, 255 in windows that are lit at night.
    """

    camera: Camera
    image: NDArray[np.uint8]
    items: NDArray[np.uint8]
    windows: NDArray[np.uint8]
    classes: list[int] = field(default_factory=lambda: [0])
    depths: list[float] = field(default_factory=lambda: [0.0])
    lights: list[Light] = field(default_factory=list)

    def begin(self, class_id: int, depth: float) -> int:
        """Start an object, nearer than all before; returns its number."""
        self.classes.append(class_id)
        self.depths.append(depth)
        return len(self.classes) - 1

    def polygon(self, points: Points, color: Color, *, part_of: int = 0) -> None:
        """Fill a polygon; with `part_of` it extends the object of that number, otherwise it only changes colors."""
        cv2.fillPoly(self.image, [points], color, shift=FIXED_POINT_BITS)
        if part_of:
            cv2.fillPoly(self.items, [points], part_of, shift=FIXED_POINT_BITS)

    def ellipse(self, center: Points, radii: tuple[float, float], color: Color, *, part_of: int = 0) -> None:
        """Fill an upright ellipse: center in fixed-point pixels, radii in pixels."""
        unit = 1 << FIXED_POINT_BITS
        axes = (max(int(radii[0] * unit), unit // 2), max(int(radii[1] * unit), unit // 2))
        middle = (int(center[0]), int(center[1]))
        cv2.ellipse(self.image, middle, axes, 0, 0, 360, color, -1, cv2.LINE_8, FIXED_POINT_BITS)
        if part_of:
            cv2.ellipse(self.items, middle, axes, 0, 0, 360, part_of, -1, cv2.LINE_8, FIXED_POINT_BITS)

    def light(
        self, center: Points, radius: float, color: Color, reach: float, item: int, ground: float | None = None
    ) -> None:
        """Add a lamp: center in fixed-point pixels, radius and reach in pixels."""
        unit = 1 << FIXED_POINT_BITS
        self.lights.append(Light(center[0] / unit, center[1] / unit, radius, color, reach, item, ground))
