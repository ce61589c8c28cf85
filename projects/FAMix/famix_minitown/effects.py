"""Effects of light and weather that depend on depth, lamps and surfaces."""

import cv2
import numpy as np

from famix_minitown.canvas import Color, TrainId
from famix_minitown.scene import Scene
from famix_minitown.texture import Image, Plane, add, blend, grain, patches, scale, to_gray

__all__ = [
    "cover_with_snow",
    "desaturate",
    "draw_flakes",
    "draw_streaks",
    "mist",
    "paint_sky",
    "sensor_noise",
    "switch_on_lamps",
    "wet_ground",
]

_STEPS_A_METER = 2  # of the table of transmissions: 256 steps exceed FAR
_COARSE = 4  # resolution divisor of light fields, which are smooth
_WINDOW_LIGHT: Color = (255, 206, 128)
_SNOW: Color = (236, 239, 244)


def desaturate(image: Image, share: int) -> Image:
    """Move colors towards gray by share / 256."""
    gray = to_gray(image)
    return blend(image, cv2.merge([gray, gray, gray]), 256 - share)


def mist(image: Image, scene: Scene, visibility: float, airlight: Color) -> Image:
    """Scatter light: 5% of it passes a distance of `visibility` metres (Koschmieder's law)."""
    table = np.rint(256 * np.exp(np.arange(256) * (-3.0 / _STEPS_A_METER / visibility))).astype(np.uint16)
    steps = (scene.depth * _STEPS_A_METER).astype(np.uint8)
    return blend(image, airlight, table[steps])


def paint_sky(image: Image, scene: Scene, top: Color, low: Color, share: int = 256) -> Image:
    """Replace the sky by a gradient between two colors, share / 256 of it."""
    sky = scene.labels == TrainId.SKY
    if not sky.any():
        return image.copy()
    rows = int(np.flatnonzero(sky.any(1)).max()) + 1
    share_of_low = (np.arange(rows) * 256 // max(round(scene.horizon), 1)).clip(0, 256)[:, None]
    colors = (np.array(low, np.int64) * share_of_low + np.array(top, np.int64) * (256 - share_of_low)) >> 8
    full = np.broadcast_to(colors[:, None].astype(np.uint8), (rows, *image.shape[1:]))
    painted = image.copy()
    painted[:rows] = blend(image[:rows], full, np.where(sky[:rows], np.uint16(256 - share), np.uint16(256)))
    return painted


def switch_on_lamps(image: Image, scene: Scene, ambient: Color, power: int) -> Image:
    """Light a scene by the remaining daylight and by its lamps.

    Args:
        image: as by day.
        scene: of the image.
        ambient: remaining daylight in 1/256, for red, green and blue.
        power: of the lamps, in [0, 256].
    """
    field = _light_field(scene, power)
    wide = field.astype(np.uint16)
    gain = np.minimum(cv2.add(wide + (wide >> 1), np.array((*ambient, 0), np.float64)), np.uint16(257))
    lit = scale(image, gain)
    lit = add(lit, (field >> 2).astype(np.int16))  # stray light, in the air and in the lens
    windows = scene.windows.astype(np.uint16) * power >> 8
    lit = blend(lit, _WINDOW_LIGHT, 256 - windows)
    for light in scene.lights:
        center = (round(light.column * 16), round(light.row * 16))
        color = tuple(value * (power + 256) >> 9 for value in light.color)
        cv2.circle(lit, center, max(round(light.radius * 16), 8), color, -1, cv2.LINE_8, 4)
    return lit


def _light_field(scene: Scene, power: int) -> Image:
    """Return the light of lamps (H, W, 3): pools on the ground, halos in the air, and the camera car's headlights."""
    height, width = scene.labels.shape
    field = np.zeros((-(-height // _COARSE), -(-width // _COARSE), 3), np.uint8)

    def pool(column: float, row: float, radii: tuple[float, float], color: Color, share: float) -> None:
        center = (round(column * 16 / _COARSE), round(row * 16 / _COARSE))
        axes = (max(round(radii[0] * 16 / _COARSE), 8), max(round(radii[1] * 16 / _COARSE), 8))
        dimmed = tuple(int(value * share * power) >> 8 for value in color)
        cv2.ellipse(field, center, axes, 0, 0, 360, dimmed, -1, cv2.LINE_8, 4)

    pool(width / 2, height * 1.02, (width * 0.42, (height - scene.horizon) * 0.8), (255, 246, 222), 0.42)
    for light in sorted(scene.lights, key=lambda item: item.reach):
        if light.ground is not None:
            pool(light.column, light.ground, (light.reach, light.reach * 0.32), light.color, 0.5)
        pool(light.column, light.row, (light.reach * 0.3, light.reach * 0.3), light.color, 0.62)
    size = max(3, width // (_COARSE * 12) | 1)
    field = cv2.blur(cv2.blur(field, (size, size)), (size, size))
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)


def wet_ground(image: Image, scene: Scene, rng: np.random.Generator, share: int) -> Image:
    """Mirror the scene in the ground, more in puddles; share / 256 at most."""
    height, width = scene.labels.shape
    ground = scene.labels <= TrainId.SIDEWALK
    foot = scene.horizon + scene.focal * 1.6 / 14  # mirrors objects about 14 m away
    rows = np.rint(2 * foot - np.arange(height)).clip(0, height - 1).astype(np.int64)
    mirrored = cv2.blur(image[rows], (3, max(height // 12, 3)))
    puddles = (patches((height, width), max(8, 1 << (width // 12).bit_length() - 1), rng) + 128).astype(np.uint16)
    weight = np.where(ground, 256 - (puddles * share >> 8), 256).astype(np.uint16)
    return blend(scale(image, np.where(ground, 176, 256).astype(np.uint16)), mirrored, weight)


def draw_streaks(image: Image, rng: np.random.Generator, count: int, strength: int) -> Image:
    """Draw falling rain: `count` streaks per image of 192 x 384, strength / 256 of white."""
    height, width = image.shape[:2]
    thickness = max(width // 384, 1)
    count = count * width // (384 * thickness)  # length and thickness grow with the image instead of the number
    layer: Plane = np.zeros((height, width), np.uint8)
    start = np.stack([rng.integers(-width // 16, width, count), rng.integers(-height // 8, height, count)], 1)
    length = rng.integers(height // 24, height // 9, count)
    slant = int(rng.integers(-3, 4))
    end = start + np.stack([length * slant // 10, length], 1)
    cv2.polylines(layer, list(np.stack([start, end], 1).astype(np.int32)), False, 255, thickness)
    layer = cv2.blur(layer, (2, 3))
    return blend(image, (214, 218, 224), 256 - (layer.astype(np.uint16) * strength >> 8))


def draw_flakes(image: Image, rng: np.random.Generator, count: int) -> Image:
    """Draw falling snow: `count` flakes of three sizes per image of 192 x 384."""
    height, width = image.shape[:2]
    unit = max(height // 192, 1)  # of the flakes, in pixels
    count = count * height * width // (192 * 384 * unit * unit)
    layer: Plane = np.zeros((height, width), np.uint8)
    for size, share in ((5, 0.06), (3, 0.3), (1, 0.64)):
        amount = int(count * share)
        layer[rng.integers(0, height, amount), rng.integers(0, width, amount)] = 255
        if size > 1:
            layer = cv2.dilate(layer, _disc(2 * unit + 1))
    layer = cv2.dilate(layer, _disc(unit)) if unit > 1 else layer
    layer = cv2.blur(layer, (2, 2))
    return blend(image, (248, 249, 252), 256 - (layer.astype(np.uint16) * 3 >> 2))


def _disc(side: int) -> Plane:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def cover_with_snow(image: Image, scene: Scene, rng: np.random.Generator, amount: int) -> Image:
    """Lay snow on the ground, on the tops of objects and in the trees; amount in [0, 256]."""
    shape = scene.labels.shape
    unit = 1 << max(shape[0] // 192, 1).bit_length() - 1  # a power of two, as patches are
    drift = patches(shape, 16 * unit, rng) + patches(shape, 4 * unit, rng) // 3
    share = np.zeros(shape, np.int32)
    ground, leaves = scene.labels <= TrainId.SIDEWALK, scene.labels == TrainId.VEGETATION
    sidewalk = np.where(scene.labels == TrainId.SIDEWALK, 40, 0)
    np.copyto(share, (drift * 2 + amount + sidewalk).clip(30, 236), where=ground)
    np.copyto(share, (grain(shape, rng) * 2 + amount - 60).clip(0, 200), where=leaves)
    reach = max(shape[0] // 64, 1)
    exposed = np.zeros(shape, bool)
    exposed[reach:] = scene.depth[:-reach] - scene.depth[reach:] > 1.5  # the pixel above is far away
    thin = (scene.labels == TrainId.POLE) | (scene.labels == TrainId.PERSON)
    np.copyto(share, 210, where=exposed & ~ground & ~thin)
    return blend(image, _SNOW, (256 - share).astype(np.uint16))


def sensor_noise(image: Image, rng: np.random.Generator, sigma: float) -> Image:
    """Add noise of the sensor; sigma in gray levels."""
    return add(image, grain(image.shape[:2], rng) * np.int16(round(sigma * 4)) >> 8)
