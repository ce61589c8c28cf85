"""Camera, canvas and textures of the town.

World coordinates are in meters: x to the right, y up from the ground, z forward; the horizon is level. Positions and
pixels are computed in integers, so every machine renders the same bytes.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FAR = 120.0  # distance of the sky in meters
FIXED_POINT_BITS = 4  # fractional bits of pixel positions in OpenCV
FOCAL_LENGTH = 0.72  # relative to the image width: a field of view of about 70 degrees
_TILE, _SEED = 1024, 20240617  # side and seed of the noise fields

Points = NDArray[np.int32]
Color = tuple[int, int, int]
Image = NDArray[Any]  # (H, W, 3) uint8, RGB; OpenCV's types do not guarantee uint8
Plane = NDArray[Any]  # (H, W) uint8


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
class Camera:
    """Pinhole camera. All positions are in pixels."""

    height: int
    width: int
    horizon: float  # row
    center: float  # column of the vanishing point
    elevation: float  # height above the ground in meters

    @classmethod
    def random(cls, size: tuple[int, int], rng: np.random.Generator) -> "Camera":
        """Draw a camera for images of size (height, width)."""
        height, width = size
        horizon, center = height * rng.uniform(0.42, 0.52), width * rng.uniform(0.42, 0.58)
        return cls(height, width, horizon, center, elevation=rng.uniform(1.5, 2.1))

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
        """Return the length in pixels of an object at distance z, given its length in meters."""
        return meters * self.focal / z

    def project(self, points: list[tuple[float, float]], depths: list[float]) -> Points:
        """Project world points (x, y) at positive distances to columns and rows, (N, 2), in fixed-point pixels."""
        unit = 1 << FIXED_POINT_BITS
        projected = []
        for (x, y), depth in zip(points, depths, strict=True):  # few points: faster than arrays
            share = self.focal / depth
            column = self.center + x * share - 0.5
            row = self.horizon + (self.elevation - y) * share - 0.5
            projected.append((round(column * unit), round(row * unit)))
        return np.array(projected, np.int32)


@dataclass(frozen=True)
class Light:
    """Lamp that is lit at night. Positions and lengths are in pixels."""

    column: float
    row: float
    radius: float
    color: Color
    reach: float  # radius of its light
    item: int  # number of its object; an object in front of it hides the lamp
    ground: float | None = None  # row of its pool of light on the ground


@dataclass
class Canvas:
    """Image under construction, with its objects."""

    camera: Camera
    image: Image
    items: NDArray[np.uint8]  # (H, W), number of the object at each pixel; 0 for the backdrop
    classes: list[int] = field(default_factory=lambda: [0])  # class of each object; 0 is a placeholder
    depths: list[float] = field(default_factory=lambda: [0.0])
    lights: list[Light] = field(default_factory=list)

    def begin(self, class_id: int, depth: float) -> int:
        """Start an object that is nearer than all previous ones, and return its number."""
        self.classes.append(class_id)
        self.depths.append(depth)
        return len(self.classes) - 1

    def polygon(self, points: Points, color: Color, part_of: int) -> None:
        """Fill a polygon and add it to the object `part_of`, or only change colors if `part_of` is 0."""
        cv2.fillPoly(self.image, [points], color, shift=FIXED_POINT_BITS)
        if part_of:
            cv2.fillPoly(self.items, [points], part_of, shift=FIXED_POINT_BITS)

    def ellipse(self, center: Points, radii: tuple[float, float], color: Color, part_of: int) -> None:
        """Fill an upright ellipse with its center in fixed-point pixels and its radii in pixels (see `polygon`)."""
        unit = 1 << FIXED_POINT_BITS
        axes = (max(int(radii[0] * unit), unit // 2), max(int(radii[1] * unit), unit // 2))
        middle = (int(center[0]), int(center[1]))
        cv2.ellipse(self.image, middle, axes, 0, 0, 360, color, -1, cv2.LINE_8, FIXED_POINT_BITS)
        if part_of:
            cv2.ellipse(self.items, middle, axes, 0, 0, 360, part_of, -1, cv2.LINE_8, FIXED_POINT_BITS)


@cache
def _grain_tile() -> NDArray[np.int16]:
    values = np.random.default_rng(_SEED).integers(0, 111, (4, _TILE, _TILE), dtype=np.int16)
    return (values.sum(0) - 220).astype(np.int16)  # the sum of four uniform draws is approximately Gaussian


@cache
def _patches_tile(size: int) -> NDArray[np.int16]:
    small = np.random.default_rng(_SEED + size).integers(0, 256, (_TILE // size, _TILE // size), dtype=np.uint8)
    wide = cv2.resize(small, (_TILE, _TILE), interpolation=cv2.INTER_LINEAR_EXACT)
    return wide.astype(np.int16) - 128


def grain(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int16]:
    """Return white noise (H, W) with standard deviation 64. `rng` selects a window of a fixed noise field."""
    return _window(_grain_tile(), shape, rng)


def patches(shape: tuple[int, int], size: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return smooth noise (H, W) in [-128, 127] with features of `size` pixels, a power of two. See `grain`."""
    return _window(_patches_tile(size), shape, rng)


def _window(tile: NDArray[np.int16], shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int16]:
    height, width = shape
    if height > _TILE or width > _TILE:
        more = [(0, -(-side // _TILE) * _TILE) for side in shape]
        tile = np.pad(tile, more, mode="symmetric")  # mirrored, since opposite edges do not match
    y = int(rng.integers(tile.shape[0] - height + 1))
    x = int(rng.integers(tile.shape[1] - width + 1))
    return tile[y : y + height, x : x + width]


def blend(image: Image, other: Image | Color, share: Plane | int) -> Image:
    """Blend an image (H, W, 3) with another image or a color.

    Args:
        image: (H, W, 3) uint8.
        other: image of the same shape, or a single color.
        share: weight of `image` in units of 1/256: (H, W), or a single number.
    """
    weight = _for_channels(share)
    mixed: Plane = image.astype(np.uint16)  # one conversion: numpy is slow with mixed types
    mixed *= weight
    rest = 256 - weight
    if isinstance(other, np.ndarray) or rest.ndim < 3:
        product: Plane = np.array(other, np.uint16)
        mixed += np.multiply(product, rest, out=product if product.ndim == 3 else None)
    else:
        plane = np.ascontiguousarray(rest[..., 0])
        mixed += cv2.merge([plane * np.uint16(value) for value in other])
    mixed += 128
    mixed >>= 8
    return mixed.astype(np.uint8)


def _for_channels(plane: Plane | int) -> Plane:
    """Repeat a plane for three channels in 16 bits, since numpy is slow at broadcasting a short axis."""
    if isinstance(plane, np.ndarray) and plane.ndim == 2:
        plane = plane.astype(np.uint16)
        return cv2.merge([plane, plane, plane])
    return np.asarray(plane, np.uint16)


def scale(image: Image, gain: Plane | int) -> Image:
    """Multiply by gain / 256. Gains up to 257 fit in 16 bits."""
    product = image.astype(np.uint16)
    product *= _for_channels(gain)
    product >>= 8
    return product.astype(np.uint8)


def add(image: Image, offset: NDArray[np.int16]) -> Image:
    """Add an offset (H, W) or (H, W, 3) and clip to [0, 255]."""
    full = cv2.merge([offset, offset, offset]) if offset.ndim == 2 else offset
    return cv2.add(image, full, dtype=cv2.CV_8U)


def to_gray(image: Image) -> Plane:
    """Return the luminance (H, W)."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
