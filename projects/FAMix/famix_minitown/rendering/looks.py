"""Looks of images on the web: their phrases, their effects of continuous strength, and the weather they resemble.

All arithmetic uses integers, so every machine renders the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean
from famix_minitown.rendering.canvas import FAR, FOCAL_LENGTH, Color, Image, add, blend, grain, patches, scale, to_gray
from famix_minitown.rendering.conditions import apply_condition
from famix_minitown.rendering.scene import Scene

Operation = Callable[[Image, int, np.random.Generator], Image]  # image, strength in [0, 256], generator -> image
Looks = Sequence[tuple[str, float]]  # names and strengths in [0, 1]

WEATHER = "weather"
FAMILIES = (WEATHER, "contrast", "exposure", "saturation", "cast", "sharpness", "medium")
"""Families of looks in the order of application. An image has at most one look of each family."""

NO_CLASS = 255  # label of pixels without a class

_HORIZON = 0.45  # relative to the image height, as for a camera in a car
_CAMERA_HEIGHT = 1.6  # meters
_FULL = 256
_RAMP = np.arange(256, dtype=np.int32)


@dataclass(frozen=True)
class Look:
    """Look that belongs to one of FAMILIES."""

    name: str
    family: str
    phrases: tuple[str, ...]  # phrases that describe it before a noun; the first is the usual one
    resembles: str | None = None  # the most similar condition
    hides: frozenset[str] = frozenset()  # families that are invisible under it, so that captions omit them


def _curve(values: NDArray[np.int32]) -> NDArray[np.uint8]:
    return values.clip(0, 255).astype(np.uint8)


def _gray(image: Image) -> Image:
    return cv2.cvtColor(to_gray(image), cv2.COLOR_GRAY2RGB)


def _blurred(image: Image, side: int) -> Image:
    return cv2.GaussianBlur(image, (side, side), 0)


def _edges(gray: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return how much brighter the surroundings of each pixel are than the pixel, (H, W)."""
    return _blurred(gray, 9).astype(np.int16) - gray


def _harsh(image: Image, strength: int, rng: np.random.Generator) -> Image:
    steep = _RAMP
    for _ in range(2):  # smoothstep, applied twice
        steep = steep * steep * (765 - 2 * steep) // (255 * 255)
    return cv2.LUT(image, _curve((steep * strength + _RAMP * (_FULL - strength)) >> 8))


def _vivid(image: Image, strength: int, rng: np.random.Generator) -> Image:
    away = image.astype(np.int16) - to_gray(image)[..., None].astype(np.int16)
    return add(image, (away * (strength // 2)) >> 6)


def _cast(red: int, green: int, blue: int) -> Operation:
    """Return a color cast with gains in units of 1/256 at full strength, over partly gray images as in toned photos."""
    gains = np.array([red, green, blue], np.int32)

    def apply(image: Image, strength: int, rng: np.random.Generator) -> Image:
        toned = blend(image, _gray(image), _FULL - strength * 90 // _FULL)
        applied = _FULL + ((gains - _FULL) * strength >> 8)
        return cv2.LUT(toned, _curve(_RAMP[None, :, None] * applied >> 8))

    return apply


def _grainy(image: Image, strength: int, rng: np.random.Generator) -> Image:
    noise = grain(image.shape[:2], rng).astype(np.int32) * strength
    return add(image, (noise * 5 >> 11).astype(np.int16))


def _crisp(image: Image, strength: int, rng: np.random.Generator) -> Image:
    detail = np.subtract(image, _blurred(image, 5), dtype=np.int16)
    return add(image, (detail * (strength // 4)) >> 4)


def _mosaic(image: Image, strength: int, rng: np.random.Generator) -> Image:
    side, (height, width) = 3 + strength * 6 // _FULL, image.shape[:2]
    size = (max(width // side, 1), max(height // side, 1))
    small = cv2.resize(cv2.blur(image, (side, side)), size, interpolation=cv2.INTER_LINEAR_EXACT)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _over(least: int, effect: Callable[[Image, np.random.Generator], Image]) -> Operation:
    """Blend an effect over the image with a weight of at least `least` / 256. Half a negative would be plain gray."""

    def apply(image: Image, strength: int, rng: np.random.Generator) -> Image:
        return blend(image, effect(image, rng), _FULL - least - strength * (_FULL - least) // _FULL)

    return apply


def _sketch(image: Image, rng: np.random.Generator) -> Image:
    gray = to_gray(_blurred(image, 3))
    lines = np.maximum(_edges(gray), 0) * 9 + ((255 - gray.astype(np.int16)) >> 3) + (grain(gray.shape, rng) >> 3)
    return cv2.cvtColor((248 - lines).clip(20, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def _oil(image: Image, rng: np.random.Generator) -> Image:
    flat = cv2.LUT(cv2.medianBlur(cv2.medianBlur(image, 7), 5), _curve(_RAMP // 24 * 24 + 12))
    strokes = patches(image.shape[:2], 4, rng)
    return add(flat, (strokes - np.roll(strokes, (1, 2), (0, 1))) // 3)


def _neon(image: Image, rng: np.random.Generator) -> Image:
    change = cv2.morphologyEx(_blurred(image, 5), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return np.minimum(change.astype(np.uint16) * 5, 255).astype(np.uint8)


# Order in which a 4 x 4 cell fills with ink: a dot that grows from its center.
_DOT = np.array([[1, 6, 9, 3], [8, 14, 15, 11], [5, 13, 16, 12], [2, 10, 7, 4]], np.uint8)


def _halftone(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    threshold = np.tile(_DOT * 15, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
    return np.where(image > threshold, np.uint8(250), np.uint8(10))


def _embossed(image: Image, rng: np.random.Generator) -> Image:
    gray = to_gray(_blurred(image, 3)).astype(np.int16)
    relief = (128 + (gray - np.roll(gray, (2, 2), (0, 1))) * 3).clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(relief, cv2.COLOR_GRAY2RGB)


def _watercolor(image: Image, rng: np.random.Generator) -> Image:
    washed = blend(cv2.medianBlur(cv2.medianBlur(image, 7), 7), (255, 252, 244), 165)
    rims = np.maximum(_edges(to_gray(washed)), 0) * 3
    pigment = patches(image.shape[:2], 16, rng) // 5 + patches(image.shape[:2], 2, rng) // 10
    return add(washed, pigment - rims)


def _tinted(gray: Image, gains: Color, offset: Color = (0, 0, 0)) -> Image:
    return cv2.LUT(gray, _curve((_RAMP[None, :, None] * np.array(gains) >> 8) + np.array(offset)))


_COLORS = frozenset({"cast", "saturation"})
_LINES_ONLY = frozenset({"cast", "saturation", "exposure", "contrast", "sharpness", WEATHER})
_TURNED = frozenset({"cast", "exposure", WEATHER})
_SMOOTHED = frozenset({"sharpness"})

_TABLE = (
    Look("bright", "exposure", ("overexposed", "bright", "glaring"), "snow"),
    Look("dim", "exposure", ("underexposed", "dim", "dark"), "dusk"),
    Look("faded", "contrast", ("faded", "low contrast", "hazy"), "fog"),
    Look("harsh", "contrast", ("high contrast", "harsh")),
    Look("monochrome", "saturation", ("black and white", "monochrome", "colorless")),
    Look("vivid", "saturation", ("vivid", "saturated", "colorful")),
    Look("pastel", "saturation", ("pastel", "washed out"), "fog"),
    Look("sepia", "cast", ("sepia", "old brownish", "vintage"), "dusk"),
    Look("golden", "cast", ("golden", "warm", "orange"), "dusk"),
    Look("blue", "cast", ("blue", "cold", "bluish")),
    Look("green", "cast", ("green tinted", "greenish")),
    Look("purple", "cast", ("purple", "violet")),
    Look("red", "cast", ("red tinted", "reddish"), "dusk"),
    Look("pink", "cast", ("pink", "rosy")),
    Look("teal", "cast", ("teal", "turquoise")),
    Look("yellow", "cast", ("yellow", "yellowish"), "dusk"),
    Look("blurry", "sharpness", ("blurry", "out of focus")),
    Look("motion", "sharpness", ("motion blurred", "shaky")),
    Look("grainy", "sharpness", ("grainy", "noisy")),
    Look("crisp", "sharpness", ("crisp", "sharpened")),
    Look("sketch", "medium", ("sketched", "pencil drawn"), "snow", _LINES_ONLY),
    Look("poster", "medium", ("poster style", "cartoon"), hides=_SMOOTHED),
    Look("oil", "medium", ("oil painted", "painted"), hides=_SMOOTHED),
    Look("neon", "medium", ("neon", "glowing"), "night", _LINES_ONLY),
    Look("negative", "medium", ("negative", "inverted"), hides=_TURNED),
    Look("mosaic", "medium", ("pixelated", "mosaic"), hides=_SMOOTHED),
    Look("halftone", "medium", ("halftone", "comic"), hides=_SMOOTHED),
    Look("embossed", "medium", ("embossed", "relief"), hides=_LINES_ONLY),
    Look("watercolor", "medium", ("watercolor", "aquarelle"), "fog", _SMOOTHED),
    Look("xray", "medium", ("x-ray", "radiograph"), hides=_COLORS | _TURNED),
    Look("night", WEATHER, ("night", "nighttime", "nocturnal"), "night"),
    Look("fog", WEATHER, ("foggy", "misty"), "fog"),
    Look("rain", WEATHER, ("rainy", "wet"), "rain"),
    Look("snow", WEATHER, ("snowy", "snow covered"), "snow"),
    Look("dusk", WEATHER, ("dusk", "sunset"), "dusk"),
)
_OPERATIONS: dict[str, Operation] = {
    "bright": lambda image, share, rng: cv2.LUT(image, _curve((_RAMP * (_FULL + share) >> 8) + share // 6)),
    "dim": lambda image, share, rng: scale(image, _FULL - share * 200 // _FULL),
    "faded": lambda image, share, rng: blend(image, (160, 160, 160), _FULL - share * 170 // _FULL),
    "harsh": _harsh,
    "monochrome": _over(0, lambda image, rng: _gray(image)),
    "vivid": _vivid,
    "pastel": lambda image, share, rng: blend(
        blend(_gray(image), image, 120), (255, 250, 250), _FULL - share * 130 // _FULL
    ),
    "sepia": _over(0, lambda image, rng: _tinted(_gray(image), (272, 228, 172), (14, 6, 0))),
    "golden": _cast(300, 236, 130),
    "blue": _cast(130, 205, 310),
    "green": _cast(150, 300, 150),
    "purple": _cast(230, 130, 300),
    "red": _cast(320, 130, 120),
    "pink": _cast(320, 190, 250),
    "teal": _cast(120, 270, 260),
    "yellow": _cast(280, 276, 90),
    "blurry": lambda image, share, rng: _blurred(image, 5 + 2 * (share * 5 // _FULL)),
    "motion": lambda image, share, rng: cv2.blur(image, (3 + 2 * (share * 10 // _FULL), 1)),
    "grainy": _grainy,
    "crisp": _crisp,
    "sketch": _over(100, _sketch),
    "poster": _over(60, lambda image, rng: cv2.LUT(cv2.medianBlur(image, 5), _curve((_RAMP >> 6) * 80 + 8))),
    "oil": _over(80, _oil),
    "neon": _over(100, _neon),
    "negative": _over(180, lambda image, rng: 255 - image),
    "mosaic": _mosaic,
    "halftone": _over(40, _halftone),
    "embossed": _over(100, _embossed),
    "watercolor": _over(80, _watercolor),
    "xray": _over(180, lambda image, rng: _tinted(255 - _gray(_blurred(image, 5)), (150, 220, 257))),
}

LOOKS: dict[str, Look] = {look.name: look for look in _TABLE}
STRICT_LOOKS: tuple[str, ...] = tuple(look.name for look in _TABLE if look.resembles is None)
"""Names of the looks that resemble no condition."""


def apply_looks(picture: Scene | Image, looks: Looks, rng: np.random.Generator) -> Image:
    """Apply looks in the order of their families.

    Args:
        picture: scene in clear weather, or an image (H, W, 3), whose distances are guessed by row for weather looks.
        looks: (name, strength) pairs. A strength of 0 leaves the image unchanged.
        rng: generator for random parts of the looks, such as grain.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ConfigError: a look is unknown, or its strength is not in [0, 1].
    """
    for name, strength in looks:
        if name not in LOOKS or not 0 <= strength <= 1:
            raise ConfigError(
                f"A look must be one of {', '.join(LOOKS)} with a strength in [0, 1], got {name!r} with {strength}."
                f"{did_you_mean(name, LOOKS)}"
            )
    for name, strength in sorted(looks, key=lambda item: FAMILIES.index(LOOKS[item[0]].family)):
        share = round(strength * _FULL)
        if name in _OPERATIONS:
            picture = _OPERATIONS[name](picture.image if isinstance(picture, Scene) else picture, share, rng)
        else:  # weather, which needs the scene
            scene = picture if isinstance(picture, Scene) else scene_of_image(picture)
            picture = blend(scene.image, apply_condition(scene, name, rng), _FULL - share)
    return picture.image if isinstance(picture, Scene) else picture


def scene_of_image(image: Image) -> Scene:
    """Guess the scene of an image (H, W, 3) taken from a car, assuming flat ground and upright objects."""
    height, width = image.shape[:2]
    horizon, focal = height * _HORIZON, width * FOCAL_LENGTH
    below = np.arange(height) + 0.5 - horizon
    ground = _CAMERA_HEIGHT * focal / np.maximum(below, 1.0)
    # Above the horizon are mostly buildings and trees; higher means nearer, so that fog does not hide them.
    upright = 40.0 - 25.0 * np.clip(-below / horizon, 0.0, 1.0)
    rows = np.where(below > 0, np.minimum(ground, 40.0), upright).clip(1.0, FAR)
    return Scene(
        image=image,
        labels=np.full((height, width), NO_CLASS, np.uint8),
        instances=np.zeros((height, width), np.uint16),
        depth=np.repeat(rows.astype(np.float32)[:, None], width, axis=1),
        windows=np.zeros((height, width), np.uint8),
        lights=(),
        horizon=horizon,
        focal=focal,
        seed=0,
    )
