"""Ground, houses and sky, by intersecting the ray of every pixel with a few planes.

The facades of a side are a vertical plane along the street, so that a column of pixels has one distance.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from famix_minitown.canvas import FAR, Camera, TrainId
from famix_minitown.layout import Facade, Street
from famix_minitown.texture import Image, patches

__all__ = ["Backdrop", "paint_backdrop"]

_ROAD, _LIGHT_PAVING, _DARK_PAVING, _KERB, _MARK = range(5)
_GROUND = np.zeros((1, 256, 3), np.uint8)
_GROUND[0, :5] = (96, 96, 100), (160, 150, 142), (152, 143, 135), (196, 192, 186), (226, 226, 220)
_SURFACE_CLASS = {"building": TrainId.BUILDING, "wall": TrainId.WALL, "hedge": TrainId.VEGETATION}
_HASH = np.random.default_rng(7).integers(0, 256, 1024, dtype=np.uint8)


@dataclass
class Backdrop:
    """The town without objects.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) uint8, train ids.
        depth: (H, W) float32 in metres, FAR in the sky.
        windows: (H, W) uint8, 255 in windows that are lit at night.
    """

    image: Image
    labels: NDArray[np.uint8]
    depth: NDArray[np.float32]
    windows: NDArray[np.uint8]


def paint_backdrop(camera: Camera, street: Street, rng: np.random.Generator) -> Backdrop:
    """Paint sky and ground, then the facades, the nearer row first."""
    shape = (camera.height, camera.width)
    backdrop = Backdrop(
        image=_paint_sky(camera, rng),
        labels=np.full(shape, TrainId.SKY, np.uint8),
        depth=np.full(shape, FAR, np.float32),
        windows=np.zeros(shape, np.uint8),
    )
    _paint_ground(backdrop, camera, street)
    for side in (0, 1):
        shade = 256 if side == int(rng.integers(2)) else 208
        _paint_facades(backdrop, camera, street.front[side], street.sides[side], shade)
        _paint_facades(backdrop, camera, street.back[side], street.sides[side] * 2.2, shade - 16)
    return backdrop


def _paint_sky(camera: Camera, rng: np.random.Generator) -> Image:
    """Return an image (H, W, 3) with sky in the rows above the horizon."""
    zenith = np.array((70, 130, 205)) + rng.integers(-22, 23, 3)
    low = np.array((188, 212, 232)) + rng.integers(-14, 15, 3)
    seen = min(round(camera.horizon) + 8, camera.height)
    share = np.clip((camera.rows()[:seen] + camera.horizon) / camera.horizon, 0, 1).astype(np.float32)[:, None]
    size = max(8, 1 << int(camera.width // 6).bit_length() - 1)
    shape = (seen, camera.width)
    clouds = patches(shape, size, rng) + patches(shape, max(size // 4, 2), rng) // 3
    cover = ((clouds - np.float32(rng.uniform(0, 60))) / np.float32(90)).clip(0, 0.85).astype(np.float32)
    image = np.zeros((camera.height, camera.width, 3), np.uint8)
    for channel in range(3):
        color = np.float32(zenith[channel]) * (1 - share) + np.float32(low[channel]) * share
        image[:seen, :, channel] = color + (244 - color) * cover
    return image


def _paint_ground(backdrop: Backdrop, camera: Camera, street: Street) -> None:
    rows = camera.rows()
    first = int(np.argmax(rows > camera.focal * camera.elevation / FAR))
    depth = (camera.focal * camera.elevation / rows[first:, None]).astype(np.float32)
    across = camera.columns().astype(np.float32) * (depth / np.float32(camera.focal))
    left, right = street.road
    road = (across > left) & (across < right)
    kerb = np.minimum(abs(across - left), abs(across - right)) < 0.14
    dashes = (abs(across - street.middle) < 0.09) & ((depth / 3).astype(np.int32) % 3 == 0)
    edges = abs(abs(across - street.middle) - (right - left) / 2 + 0.45) < 0.06
    light = ((across * np.float32(1.1)).astype(np.int32) + (depth * np.float32(1.1)).astype(np.int32)) & 1 > 0
    parts = np.where(light & (depth < 18), np.uint8(_LIGHT_PAVING), np.uint8(_DARK_PAVING))
    parts[road] = _ROAD
    parts[kerb] = _KERB
    parts[dashes | (edges & road)] = _MARK
    backdrop.image[first:] = cv2.LUT(cv2.merge([parts, parts, parts]), _GROUND)
    backdrop.labels[first:] = np.where(road, TrainId.ROAD, TrainId.SIDEWALK)
    backdrop.depth[first:] = depth


def _paint_facades(backdrop: Backdrop, camera: Camera, facades: tuple[Facade, ...], x: float, shade: int) -> None:
    """Paint the facades of one side where nothing nearer is painted yet."""
    side = _columns_on_side(camera, x)
    depth = np.minimum(camera.focal * abs(x) / abs(camera.columns()[side]), FAR * 0.97).astype(np.float32)
    index = np.searchsorted([facade.start for facade in facades], depth, side="right") - 1
    above = np.float32(camera.elevation) - camera.rows().astype(np.float32)[:, None] * (
        depth / np.float32(camera.focal)
    )
    height = np.array([facade.height for facade in facades], np.float32)[index]
    free = (backdrop.labels[:, side] == TrainId.SKY) | (backdrop.depth[:, side] > depth)
    rows, columns = np.nonzero((above >= 0) & (above < height) & free)
    variant, lit = _facade_details(facades, index, depth, columns, above[rows, columns])
    facade, palettes = index[columns], _palettes(facades, shade)
    surfaces = np.array([_SURFACE_CLASS[facade.surface] for facade in facades], np.uint8)
    places = rows * camera.width + (columns + side.start)
    _pixels(backdrop.image)[places] = _pixels(palettes)[facade * palettes.shape[1] + variant]
    backdrop.windows.reshape(-1)[places] = lit
    backdrop.labels.reshape(-1)[places] = surfaces[facade]
    backdrop.depth.reshape(-1)[places] = depth[columns]


def _columns_on_side(camera: Camera, x: float) -> slice:
    """Return the columns on the side of x of the vanishing point."""
    columns = camera.columns()
    if x > 0:
        return slice(int(np.argmax(columns > 0)), camera.width)
    return slice(0, int(np.argmax(columns >= 0)))


def _pixels(colors: Image) -> NDArray[np.void]:
    """View pixels (..., 3) uint8 as a row of single items, which numpy moves faster than three bytes."""
    return colors.reshape(-1, 3).view("V3")[:, 0]


_PLAIN, _COURSE, _CORNICE, _GLASS = 0, 1, 2, 3
_GLASS_SHADES = 32


def _palettes(facades: tuple[Facade, ...], shade: int) -> NDArray[np.uint8]:
    """Return the colors of every facade, (F, _GLASS + _GLASS_SHADES, 3): plain, course, cornice, and shades of panes."""
    base = np.array([facade.color for facade in facades])[:, None] * np.array([256, 220, 184])[None, :, None]
    reflecting = 200 + np.arange(_GLASS_SHADES) * (128 // _GLASS_SHADES)
    glass = np.array([facade.glass for facade in facades])[:, None] * reflecting[None, :, None]
    return ((np.concatenate([base, glass], 1) >> 8) * shade >> 8).astype(np.uint8)


def _facade_details(
    facades: tuple[Facade, ...],
    index: NDArray[np.int64],
    depth: NDArray[np.float32],
    columns: NDArray[np.int64],
    above: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the surface of P pixels of facades.

    Args:
        facades: of the plane.
        index, depth: (W,), facade and distance of every column of the image.
        columns: (P,), column of each pixel.
        above: (P,), its height above the ground in metres.

    Returns:
        Index in the facade's palette, and brightness as a lit window, each (P,).
    """

    def property_of(name: str) -> NDArray[np.float32]:
        return np.array([getattr(facade, name) for facade in facades], np.float32)[index]

    house = np.array([facade.surface == "building" for facade in facades])[index]
    along = depth / property_of("pitch")
    number = np.floor(along)
    beside_frame = house & (abs(along - number - np.float32(0.5)) < 0.29)
    start = (number * 7 + property_of("pattern")).astype(np.int32)
    rim = property_of("height") - np.where(house, np.float32(0.45), np.float32(0.22))
    up = above / property_of("floor")[columns]
    floor = np.floor(up)
    panes = beside_frame[columns] & (abs(up - floor - np.float32(0.55)) < 0.24) & (above < rim[columns] - 0.25)
    luck = _HASH[(start[columns] + floor.astype(np.int32) * 131) % len(_HASH)]
    course = ~house[columns] & (up * np.float32(2.8) % 1 < 0.12)
    variant = np.where(course, np.uint8(_COURSE), np.uint8(_PLAIN))
    variant[above > rim[columns]] = _CORNICE
    variant = np.where(panes, luck // np.uint8(256 // _GLASS_SHADES) + np.uint8(_GLASS), variant)
    lit = np.where(panes & (luck < 110), luck + np.uint8(145), np.uint8(0))
    return variant, lit
