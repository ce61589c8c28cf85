"""What is painted on: the colours, classes, depths and objects of every pixel, kept in step."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from famix_minitown.camera import FIXED_POINT_BITS, Camera, Points

__all__ = ["Canvas", "Light", "TrainId"]

Color = tuple[int, int, int]


class TrainId:
    """Cityscapes' train ids of what the town has."""

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
    """A lamp that is switched on in the dark.

    Attributes:
        column, row: in pixels.
        radius: in pixels.
        color: RGB.
        reach: radius of what it lights up, in pixels.
        item: number of the object that it belongs to; where another object covers it, it is not seen.
        ground: row of the ground below it, where its pool of light lies; None for lights without one.
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
        camera: what projects metres to pixels.
        image: (H, W, 3) uint8, RGB.
        items: (H, W) uint8, number of the object that a pixel shows; 0 for street and houses.
        classes, depths: of objects 1, 2, ..., the first entry stands for 0.
        lights: of all objects.
        windows: (H, W) uint8, 255 where a lit window would be.
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
        """Fill a polygon; with `part_of` it belongs to the object's outline, otherwise it is a marking on something."""
        cv2.fillPoly(self.image, [points], color, shift=FIXED_POINT_BITS)
        if part_of:
            cv2.fillPoly(self.items, [points], part_of, shift=FIXED_POINT_BITS)

    def ellipse(self, center: Points, radii: tuple[float, float], color: Color, *, part_of: int = 0) -> None:
        """Fill an upright ellipse: centre in fixed-point pixels, radii in pixels."""
        unit = 1 << FIXED_POINT_BITS
        axes = (max(int(radii[0] * unit), unit // 2), max(int(radii[1] * unit), unit // 2))
        middle = (int(center[0]), int(center[1]))
        cv2.ellipse(self.image, middle, axes, 0, 0, 360, color, -1, cv2.LINE_8, FIXED_POINT_BITS)
        if part_of:
            cv2.ellipse(self.items, middle, axes, 0, 0, 360, part_of, -1, cv2.LINE_8, FIXED_POINT_BITS)

    def light(
        self, center: Points, radius: float, color: Color, reach: float, item: int, ground: float | None = None
    ) -> None:
        """Add a lamp: centre in fixed-point pixels, radius and reach in pixels."""
        unit = 1 << FIXED_POINT_BITS
        self.lights.append(Light(center[0] / unit, center[1] / unit, radius, color, reach, item, ground))
