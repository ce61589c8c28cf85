"""Scenes: random streets, rendered for a camera on a clear day.

Ground, houses and sky are found by intersecting each pixel's ray with a few planes. The facades of one side form a
vertical plane along the street, so all facade pixels in a column have the same distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix_minitown.rendering.canvas import FAR, Camera, Canvas, Image, Light, TrainId, add, grain, patches
from famix_minitown.rendering.street import Facade, Street, draw_street, paint_object

SIZE = (192, 384)  # usual (height, width) of the town's images in pixels

_GRAIN = {
    TrainId.ROAD: 22, TrainId.SIDEWALK: 20, TrainId.BUILDING: 18, TrainId.WALL: 30, TrainId.POLE: 6,
    TrainId.TRAFFIC_SIGN: 4, TrainId.VEGETATION: 58, TrainId.SKY: 3, TrainId.PERSON: 8, TrainId.CAR: 5,
}  # fmt: skip
_WITH_INSTANCES = (TrainId.PERSON, TrainId.CAR)
_ROAD, _LIGHT_PAVING, _DARK_PAVING, _KERB, _MARK = range(5)
_GROUND = np.zeros((1, 256, 3), np.uint8)
_GROUND[0, :5] = (96, 96, 100), (160, 150, 142), (152, 143, 135), (196, 192, 186), (226, 226, 220)
_SURFACE_CLASS = {"building": TrainId.BUILDING, "wall": TrainId.WALL, "hedge": TrainId.VEGETATION}
_HASH = np.random.default_rng(7).integers(0, 256, 1024, dtype=np.uint8)
_PLAIN, _COURSE, _CORNICE, _GLASS = range(4)  # parts of a facade; _GLASS and above are shades of panes
_GLASS_SHADES = 32


@dataclass(frozen=True)
class Scene:
    """A street scene with its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB, on a clear day.
        labels: (H, W) uint8, Cityscapes' train ids.
        instances: (H, W) uint16, numbers of cars and persons, starting at 1; 0 elsewhere.
        depth: (H, W) float32, meters along the optical axis; FAR in the sky.
        windows: (H, W) uint8, brightness of windows that are lit at night; 0 elsewhere.
        lights: visible lamps.
        horizon: row of the horizon.
        focal: focal length in pixels.
        seed: seed of the scene.
    """

    image: Image
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    depth: NDArray[np.float32]
    windows: NDArray[np.uint8]
    lights: tuple[Light, ...]
    horizon: float
    focal: float
    seed: int


def render_scene(seed: int, size: tuple[int, int] = SIZE) -> Scene:
    """Render a scene.

    Args:
        seed: non-negative seed; the same seed and size give the same bytes on every machine.
        size: (height, width) in pixels, at least 32 each.

    Raises:
        ValueError: the size is too small.
    """
    if min(size) < 32:
        raise ValueError(f"A scene must have at least 32 x 32 pixels, got {size[0]} x {size[1]}. Choose a larger size.")
    rng = np.random.default_rng(seed)
    camera, street = Camera.random(size, rng), draw_street(rng)
    backdrop = _Backdrop(camera, street, rng)
    canvas = Canvas(camera, backdrop.image, np.zeros(size, np.uint8))
    for item in street.objects:
        paint_object(canvas, item)
    free = canvas.items == 0
    labels, depth = _look_up(canvas.classes, np.uint8, canvas.items), _look_up(canvas.depths, np.float32, canvas.items)
    np.copyto(labels, backdrop.labels, where=free)
    np.copyto(depth, backdrop.depth, where=free)
    countable = np.isin(canvas.classes, _WITH_INSTANCES)
    countable[0] = False
    numbers = np.where(countable, np.cumsum(countable), 0).astype(np.uint16)
    noise = (grain(size, rng) >> 1) + patches(size, 4, rng) // 2 + patches(size, 16, rng) // 2
    strength = [_GRAIN.get(class_id, 0) for class_id in range(256)]
    textured = add(canvas.image, noise * _look_up(strength, np.int16, labels) >> 7)
    return Scene(
        image=cv2.GaussianBlur(textured, (3, 3), 0.6),  # lens blur
        labels=labels,
        instances=numbers[canvas.items],
        depth=depth,
        windows=np.where(free, backdrop.windows, np.uint8(0)),
        lights=tuple(light for light in canvas.lights if _is_visible(light, canvas.items)),
        horizon=camera.horizon,
        focal=camera.focal,
        seed=seed,
    )


def _look_up(values: Sequence[float], dtype: type[np.generic], places: NDArray[np.uint8]) -> NDArray[Any]:
    """Return values[places], several times faster than with numpy."""
    table = np.zeros(256, dtype)
    table[: len(values)] = values
    return cv2.LUT(places, table)


def _is_visible(light: Light, items: NDArray[np.uint8]) -> bool:
    row, column = round(light.row), round(light.column)
    inside = 0 <= row < items.shape[0] and 0 <= column < items.shape[1]
    return inside and bool(items[row, column] == light.item)


class _Backdrop:
    """Town without objects: sky and ground, then the facades, with the nearer row first."""

    def __init__(self, camera: Camera, street: Street, rng: np.random.Generator) -> None:
        shape = (camera.height, camera.width)
        self.camera = camera
        self.image: Image = np.zeros((*shape, 3), np.uint8)
        self.labels = np.full(shape, TrainId.SKY, np.uint8)
        self.depth = np.full(shape, FAR, np.float32)
        self.windows = np.zeros(shape, np.uint8)
        self.paint_sky(rng)
        self.paint_ground(street)
        for side in (0, 1):
            shade = 256 if side == int(rng.integers(2)) else 208
            self.paint_facades(street.front[side], street.sides[side], shade)
            self.paint_facades(street.back[side], street.sides[side] * 2.2, shade - 16)

    def paint_sky(self, rng: np.random.Generator) -> None:
        camera = self.camera
        zenith = np.array((70, 130, 205)) + rng.integers(-22, 23, 3)
        low = np.array((188, 212, 232)) + rng.integers(-14, 15, 3)
        seen = min(round(camera.horizon) + 8, camera.height)
        share = np.clip((camera.rows()[:seen] + camera.horizon) / camera.horizon, 0, 1).astype(np.float32)[:, None]
        size = max(8, 1 << int(camera.width // 6).bit_length() - 1)
        shape = (seen, camera.width)
        clouds = patches(shape, size, rng) + patches(shape, max(size // 4, 2), rng) // 3
        cover = ((clouds - np.float32(rng.uniform(0, 60))) / np.float32(90)).clip(0, 0.85).astype(np.float32)
        for channel in range(3):
            color = np.float32(zenith[channel]) * (1 - share) + np.float32(low[channel]) * share
            self.image[:seen, :, channel] = color + (244 - color) * cover

    def paint_ground(self, street: Street) -> None:
        camera, rows = self.camera, self.camera.rows()
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
        self.image[first:] = cv2.LUT(cv2.merge([parts, parts, parts]), _GROUND)
        self.labels[first:] = np.where(road, TrainId.ROAD, TrainId.SIDEWALK)
        self.depth[first:] = depth

    def paint_facades(self, facades: tuple[Facade, ...], x: float, shade: int) -> None:
        """Paint the facades at `x` where nothing nearer has been painted yet."""
        camera, offsets = self.camera, self.camera.columns()
        middle = int(np.argmax(offsets > 0 if x > 0 else offsets >= 0))
        side = slice(middle, camera.width) if x > 0 else slice(0, middle)
        depth = np.minimum(camera.focal * abs(x) / abs(offsets[side]), FAR * 0.97).astype(np.float32)
        index = np.searchsorted([facade.start for facade in facades], depth, side="right") - 1
        rays = camera.rows().astype(np.float32)[:, None] * (depth / np.float32(camera.focal))
        above = np.float32(camera.elevation) - rays
        height = np.array([facade.height for facade in facades], np.float32)[index]
        free = (self.labels[:, side] == TrainId.SKY) | (self.depth[:, side] > depth)
        rows, columns = np.nonzero((above >= 0) & (above < height) & free)
        parts, lit = _facade_parts(facades, index, depth, columns, above[rows, columns])
        facade, palettes = index[columns], _palettes(facades, shade)
        surfaces = np.array([_SURFACE_CLASS[facade.surface] for facade in facades], np.uint8)
        places = rows * camera.width + (columns + side.start)
        _pixels(self.image)[places] = _pixels(palettes)[facade * palettes.shape[1] + parts]
        self.windows.reshape(-1)[places] = lit
        self.labels.reshape(-1)[places] = surfaces[facade]
        self.depth.reshape(-1)[places] = depth[columns]


def _pixels(colors: Image) -> NDArray[np.void]:
    """View uint8 pixels (..., 3) as a row of single items, which numpy copies faster than three bytes."""
    return colors.reshape(-1, 3).view("V3")[:, 0]


def _palettes(facades: tuple[Facade, ...], shade: int) -> NDArray[np.uint8]:
    """Return the colors of each facade's parts, (F, parts, 3)."""
    base = np.array([facade.color for facade in facades])[:, None] * np.array([256, 220, 184])[None, :, None]
    reflecting = 200 + np.arange(_GLASS_SHADES) * (128 // _GLASS_SHADES)
    glass = np.array([facade.glass for facade in facades])[:, None] * reflecting[None, :, None]
    return ((np.concatenate([base, glass], 1) >> 8) * shade >> 8).astype(np.uint8)


def _facade_parts(
    facades: tuple[Facade, ...],
    index: NDArray[np.int64],
    depth: NDArray[np.float32],
    columns: NDArray[np.int64],
    above: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the facade part and the brightness as a lit window for P pixels, each of shape (P,).

    `index` and `depth` (W,) are the facade and distance of each image column; `columns` and `above` (P,) are the
    column of each pixel and its height above the ground.
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
    parts = np.where(course, np.uint8(_COURSE), np.uint8(_PLAIN))
    parts[above > rim[columns]] = _CORNICE
    parts = np.where(panes, luck // np.uint8(256 // _GLASS_SHADES) + np.uint8(_GLASS), parts)
    lit = np.where(panes & (luck < 110), luck + np.uint8(145), np.uint8(0))
    return parts, lit
