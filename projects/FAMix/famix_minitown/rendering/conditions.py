"""Conditions of a scene, composed of effects: the source domain, the test conditions, and conditions for tuning.

Effects depend on depth, lamps and surfaces. Shares, levels and amounts are in units of 1/256; colors are RGB.
"""

import zlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from famix_minitown.rendering.canvas import Color, Image, Plane, TrainId, add, blend, grain, patches, scale, to_gray
from famix_minitown.rendering.scene import Scene

_STEPS_A_METER = 2  # resolution of the transmission table; 256 steps exceed FAR
_COARSE = 4  # resolution divisor of light fields, which are smooth
_WINDOW_LIGHT: Color = (255, 206, 128)
_SNOW: Color = (236, 239, 244)


def desaturate(image: Image, share: int) -> Image:
    """Move colors toward gray."""
    gray = to_gray(image)
    return blend(image, cv2.merge([gray, gray, gray]), 256 - share)


def mist(image: Image, scene: Scene, visibility: float, airlight: Color) -> Image:
    """Scatter light so that 5% of it travels a distance of `visibility` meters (Koschmieder's law)."""
    table = np.rint(256 * np.exp(np.arange(256) * (-3.0 / _STEPS_A_METER / visibility))).astype(np.uint16)
    steps = (scene.depth * _STEPS_A_METER).astype(np.uint8)
    return blend(image, airlight, table[steps])


def paint_sky(image: Image, scene: Scene, top: Color, low: Color, share: int = 256) -> Image:
    """Replace the sky, or a share of it, with a gradient between two colors."""
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


def switch_on_lamps(image: Image, scene: Scene, daylight: Color, power: int) -> Image:
    """Light a scene with its lamps and the remaining daylight, which has one level per channel."""
    field = _light_field(scene, power)
    wide = field.astype(np.uint16)
    gain = np.minimum(cv2.add(wide + (wide >> 1), np.array((*daylight, 0), np.float64)), np.uint16(257))
    lit = add(
        scale(image, gain), (field >> 2).astype(np.int16)
    )  # the added term is stray light in the air and the lens
    lit = blend(lit, _WINDOW_LIGHT, 256 - (scene.windows.astype(np.uint16) * power >> 8))
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
    """Mirror the scene in the ground, most strongly in puddles, with a weight of at most `share`."""
    height, width = scene.labels.shape
    ground = scene.labels <= TrainId.SIDEWALK
    foot = scene.horizon + scene.focal * 1.6 / 14  # mirrors objects about 14 m away
    rows = np.rint(2 * foot - np.arange(height)).clip(0, height - 1).astype(np.int64)
    mirrored = cv2.blur(image[rows], (3, max(height // 12, 3)))
    puddles = (patches((height, width), max(8, 1 << (width // 12).bit_length() - 1), rng) + 128).astype(np.uint16)
    weight = np.where(ground, 256 - (puddles * share >> 8), 256).astype(np.uint16)
    return blend(scale(image, np.where(ground, 176, 256).astype(np.uint16)), mirrored, weight)


def draw_streaks(image: Image, rng: np.random.Generator, count: int, strength: int) -> Image:
    """Draw falling rain: `count` streaks per image of 192 x 384, blended with weight `strength` / 256."""
    height, width = image.shape[:2]
    thickness = max(width // 384, 1)
    count = count * width // (384 * thickness)  # length and thickness grow with the image; the number does not
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

    def disc(side: int) -> Plane:
        return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))

    height, width = image.shape[:2]
    unit = max(height // 192, 1)  # flake size, in pixels
    count = count * height * width // (192 * 384 * unit * unit)
    layer: Plane = np.zeros((height, width), np.uint8)
    for size, share in ((5, 0.06), (3, 0.3), (1, 0.64)):
        amount = int(count * share)
        layer[rng.integers(0, height, amount), rng.integers(0, width, amount)] = 255
        if size > 1:
            layer = cv2.dilate(layer, disc(2 * unit + 1))
    layer = cv2.dilate(layer, disc(unit)) if unit > 1 else layer
    layer = cv2.blur(layer, (2, 2))
    return blend(image, (248, 249, 252), 256 - (layer.astype(np.uint16) * 3 >> 2))


def cover_with_snow(image: Image, scene: Scene, rng: np.random.Generator, amount: int) -> Image:
    """Cover the ground, the tops of objects and the trees with snow."""
    shape = scene.labels.shape
    unit = 1 << max(shape[0] // 192, 1).bit_length() - 1  # a power of two, as `patches` requires
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


def _overcast_light(scene: Scene, low: int, high: int, rng: np.random.Generator) -> Image:
    gray = int(rng.integers(150, 190))
    image = paint_sky(scene.image, scene, (gray - 20, gray - 16, gray - 8), (gray, gray, gray + 4), 230)
    return scale(desaturate(image, int(rng.integers(90, 140))), int(rng.integers(low, high)))


# Each condition returns the image and the standard deviation of the sensor noise in gray levels.
_Condition = Callable[[Scene, np.random.Generator], tuple[Image, float]]


def _night(scene: Scene, rng: np.random.Generator) -> tuple[Image, float]:
    level = int(rng.integers(52, 92))
    image = paint_sky(scene.image, scene, (70, 86, 140), (150, 130, 150))
    image = switch_on_lamps(image, scene, (level * 7 // 8, level, level * 5 // 4), 256)
    return image, rng.uniform(5, 9)


def _fog(scene: Scene, rng: np.random.Generator) -> tuple[Image, float]:
    gray = int(rng.integers(178, 212))
    return mist(desaturate(scene.image, 70), scene, rng.uniform(32, 70), (gray, gray + 2, gray + 5)), 2


def _rain(scene: Scene, rng: np.random.Generator) -> tuple[Image, float]:
    image = _overcast_light(scene, 160, 208, rng)
    image = wet_ground(image, scene, rng, int(rng.integers(130, 200)))
    image = mist(image, scene, rng.uniform(90, 200), (140, 144, 150))
    return draw_streaks(image, rng, int(rng.integers(110, 260)), int(rng.integers(120, 190))), 3


def _snow(scene: Scene, rng: np.random.Generator) -> tuple[Image, float]:
    gray = int(rng.integers(196, 222))
    image = paint_sky(scene.image, scene, (gray - 14, gray - 10, gray - 4), (gray, gray, gray + 4))
    image = cover_with_snow(desaturate(image, 80), scene, rng, int(rng.integers(110, 190)))
    image = mist(image, scene, rng.uniform(80, 160), (gray, gray, gray + 4))
    return draw_flakes(image, rng, int(rng.integers(160, 420))), 2


def _dusk(scene: Scene, rng: np.random.Generator) -> tuple[Image, float]:
    level = int(rng.integers(112, 156))
    image = paint_sky(scene.image, scene, (140, 130, 200), (255, 180, 110))
    image = mist(image, scene, rng.uniform(240, 420), (236, 168, 124))
    return switch_on_lamps(image, scene, (level * 9 // 8, level * 15 // 16, level * 7 // 8), 110), 3


def _evening(scene: Scene, rng: np.random.Generator) -> tuple[Image, float]:
    level = int(rng.integers(86, 124))
    image = paint_sky(scene.image, scene, (80, 100, 190), (190, 170, 200))
    return switch_on_lamps(image, scene, (level * 7 // 8, level, level * 11 // 8), 170), 4


def _drizzle(scene: Scene, rng: np.random.Generator) -> tuple[Image, float]:
    image = mist(_overcast_light(scene, 180, 220, rng), scene, rng.uniform(70, 140), (166, 170, 176))
    return draw_streaks(wet_ground(image, scene, rng, 90), rng, 90, 90), 3


_CONDITIONS: Mapping[str, _Condition] = {
    "clear": lambda scene, rng: (scale(scene.image, int(rng.integers(226, 258))), 2),
    "night": _night,
    "fog": _fog,
    "rain": _rain,
    "snow": _snow,
    "dusk": _dusk,
    "haze": lambda scene, rng: (mist(scene.image, scene, rng.uniform(80, 140), (214, 204, 186)), 2),
    "overcast": lambda scene, rng: (_overcast_light(scene, 180, 236, rng), 2),
    "evening": _evening,
    "drizzle": _drizzle,
}
CONDITIONS = ("clear", "night", "fog", "rain", "snow", "dusk")  # the source domain and the five test conditions
DEVELOPMENT_CONDITIONS = (
    "haze",
    "overcast",
    "evening",
    "drizzle",
)  # for tuning, so that the test conditions stay unseen


def apply_condition(scene: Scene, condition: str, rng: np.random.Generator | None = None) -> Image:
    """Render a scene in different light and weather.

    Args:
        scene: scene on a clear day.
        condition: one of CONDITIONS or DEVELOPMENT_CONDITIONS.
        rng: generator for severity and details; seeded by default from the scene's seed and the condition.

    Returns:
        (H, W, 3) uint8, RGB. Labels, instances and depth of the scene remain valid.

    Raises:
        ValueError: the condition is unknown.
    """
    if condition not in _CONDITIONS:
        raise ValueError(f"condition must be one of {', '.join(_CONDITIONS)}, got {condition!r}. Choose one of these.")
    if rng is None:
        rng = np.random.default_rng((scene.seed, zlib.crc32(condition.encode())))
    image, sigma = _CONDITIONS[condition](scene, rng)
    return add(image, grain(image.shape[:2], rng) * np.int16(round(sigma * 4)) >> 8)
