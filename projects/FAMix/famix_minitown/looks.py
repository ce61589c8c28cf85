"""Looks of images on the web, with strengths in between: their phrases, their effects, and the weather they resemble.

All arithmetic is in integers, so that every machine draws the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean
from famix_minitown.canvas import FAR, FOCAL_LENGTH
from famix_minitown.conditions import apply_condition
from famix_minitown.scene import Scene
from famix_minitown.texture import Image, add, blend, grain, patches, scale, to_gray

__all__ = [
    "FAMILIES", "LOOKS", "NO_CLASS", "STRICT_LOOKS", "WEATHER", "Look", "Operation", "apply_look", "apply_looks",
    "scene_of_image",
]  # fmt: skip

Operation = Callable[[Image, int, np.random.Generator], Image]
"""Maps image (H, W, 3), strength in [0, 256] and generator to an image of the same shape."""

WEATHER = "weather"

FAMILIES = (WEATHER, "contrast", "exposure", "saturation", "cast", "sharpness", "medium")
"""Kinds of looks in the order of application; an image has at most one look of each."""

NO_CLASS = 255
"""Label of pixels without a class."""

_HORIZON = 0.45  # of the height, as for a camera in a car
_CAMERA_HEIGHT = 1.6  # metres

_FULL = 256
_RAMP = np.arange(256, dtype=np.int32)


@dataclass(frozen=True)
class Look:
    """A look.

    Attributes:
        name: unique.
        family: one of FAMILIES.
        phrases: words for it before a noun, the usual ones first.
        operation: its effect; None for weather, which needs the scene.
        resembles: the most similar condition; None without one.
        hides: families that are invisible under it, so that captions omit them.
    """

    name: str
    family: str
    phrases: tuple[str, ...]
    operation: Operation | None
    resembles: str | None = None
    hides: frozenset[str] = frozenset()


def _curve(values: NDArray[np.int32]) -> NDArray[np.uint8]:
    return values.clip(0, 255).astype(np.uint8)


def _bright(image: Image, strength: int, rng: np.random.Generator) -> Image:
    return cv2.LUT(image, _curve((_RAMP * (_FULL + strength) >> 8) + strength // 6))


def _dim(image: Image, strength: int, rng: np.random.Generator) -> Image:
    return scale(image, _FULL - strength * 200 // _FULL)


def _faded(image: Image, strength: int, rng: np.random.Generator) -> Image:
    return blend(image, (160, 160, 160), _FULL - strength * 170 // _FULL)


def _harsh(image: Image, strength: int, rng: np.random.Generator) -> Image:
    steep = _RAMP
    for _ in range(2):  # a smooth step, twice
        steep = steep * steep * (765 - 2 * steep) // (255 * 255)
    return cv2.LUT(image, _curve((steep * strength + _RAMP * (_FULL - strength)) >> 8))


def _gray(image: Image) -> Image:
    return cv2.cvtColor(to_gray(image), cv2.COLOR_GRAY2RGB)


def _monochrome(image: Image, strength: int, rng: np.random.Generator) -> Image:
    return blend(image, _gray(image), _FULL - strength)


def _vivid(image: Image, strength: int, rng: np.random.Generator) -> Image:
    away = image.astype(np.int16) - to_gray(image)[..., None].astype(np.int16)
    return add(image, (away * (strength // 2)) >> 6)


def _pastel(image: Image, strength: int, rng: np.random.Generator) -> Image:
    pale = blend(_gray(image), image, 120)
    return blend(pale, (255, 250, 250), _FULL - strength * 130 // _FULL)


def _cast(red: int, green: int, blue: int) -> Operation:
    """Make a cast with gains in 1/256 at full strength, partly over gray, as in toned photos."""
    gains = np.array([red, green, blue], np.int32)

    def apply(image: Image, strength: int, rng: np.random.Generator) -> Image:
        toned = blend(image, _gray(image), _FULL - strength * 90 // _FULL)
        applied = _FULL + ((gains - _FULL) * strength >> 8)
        return cv2.LUT(toned, _curve(_RAMP[None, :, None] * applied >> 8))

    return apply


def _sepia(image: Image, strength: int, rng: np.random.Generator) -> Image:
    toned = cv2.LUT(_gray(image), _curve(_RAMP[None, :, None] * np.array([272, 228, 172]) // _FULL + [14, 6, 0]))
    return blend(image, toned, _FULL - strength)


def _blurry(image: Image, strength: int, rng: np.random.Generator) -> Image:
    side = 5 + 2 * (strength * 5 // _FULL)
    return cv2.GaussianBlur(image, (side, side), 0)


def _motion_blurred(image: Image, strength: int, rng: np.random.Generator) -> Image:
    return cv2.blur(image, (3 + 2 * (strength * 10 // _FULL), 1))


def _grainy(image: Image, strength: int, rng: np.random.Generator) -> Image:
    noise = grain(image.shape[:2], rng).astype(np.int32) * strength
    return add(image, (noise * 5 >> 11).astype(np.int16))


def _crisp(image: Image, strength: int, rng: np.random.Generator) -> Image:
    detail = np.subtract(image, cv2.GaussianBlur(image, (5, 5), 0), dtype=np.int16)
    return add(image, (detail * (strength // 4)) >> 4)


def _mostly(strength: int, least: int) -> int:
    """Return the weight of the original in [0, 256], for looks with a minimum share: a half negative is plain gray."""
    return _FULL - least - strength * (_FULL - least) // _FULL


def _edges(gray: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the difference of each pixel to its brighter surroundings, (H, W)."""
    return cv2.GaussianBlur(gray, (9, 9), 0).astype(np.int16) - gray


def _sketch(image: Image, strength: int, rng: np.random.Generator) -> Image:
    gray = to_gray(cv2.GaussianBlur(image, (3, 3), 0))
    lines = np.maximum(_edges(gray), 0) * 9 + ((255 - gray.astype(np.int16)) >> 3) + (grain(gray.shape, rng) >> 3)
    paper = (248 - lines).clip(20, 255).astype(np.uint8)
    return blend(image, cv2.cvtColor(paper, cv2.COLOR_GRAY2RGB), _mostly(strength, 100))


def _poster(image: Image, strength: int, rng: np.random.Generator) -> Image:
    flat = cv2.LUT(cv2.medianBlur(image, 5), _curve((_RAMP >> 6) * 80 + 8))
    return blend(image, flat, _mostly(strength, 60))


def _oil(image: Image, strength: int, rng: np.random.Generator) -> Image:
    flat = cv2.LUT(cv2.medianBlur(cv2.medianBlur(image, 7), 5), _curve(_RAMP // 24 * 24 + 12))
    strokes = patches(image.shape[:2], 4, rng)
    strokes = (strokes - np.roll(strokes, (1, 2), (0, 1))) // 3
    return blend(image, add(flat, strokes), _mostly(strength, 80))


def _neon(image: Image, strength: int, rng: np.random.Generator) -> Image:
    wide = cv2.GaussianBlur(image, (5, 5), 0)
    change = cv2.morphologyEx(wide, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(np.uint16) * 5
    return blend(image, np.minimum(change, 255).astype(np.uint8), _mostly(strength, 100))


def _negative(image: Image, strength: int, rng: np.random.Generator) -> Image:
    return blend(image, 255 - image, _mostly(strength, 180))


def _mosaic(image: Image, strength: int, rng: np.random.Generator) -> Image:
    side, (height, width) = 3 + strength * 6 // _FULL, image.shape[:2]
    size = (max(width // side, 1), max(height // side, 1))
    small = cv2.resize(cv2.blur(image, (side, side)), size, interpolation=cv2.INTER_LINEAR_EXACT)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


# Order in which a 4 x 4 cell fills with ink: a dot that grows from its center.
_DOT = np.array([[1, 6, 9, 3], [8, 14, 15, 11], [5, 13, 16, 12], [2, 10, 7, 4]], np.uint8)


def _halftone(image: Image, strength: int, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    threshold = np.tile(_DOT * 15, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
    dots = np.where(image > threshold, np.uint8(250), np.uint8(10))
    return blend(image, dots, _mostly(strength, 40))


def _embossed(image: Image, strength: int, rng: np.random.Generator) -> Image:
    gray = to_gray(cv2.GaussianBlur(image, (3, 3), 0)).astype(np.int16)
    relief = (128 + (gray - np.roll(gray, (2, 2), (0, 1))) * 3).clip(0, 255).astype(np.uint8)
    return blend(image, cv2.cvtColor(relief, cv2.COLOR_GRAY2RGB), _mostly(strength, 100))


def _watercolor(image: Image, strength: int, rng: np.random.Generator) -> Image:
    washed = blend(cv2.medianBlur(cv2.medianBlur(image, 7), 7), (255, 252, 244), 165)
    rims = np.maximum(_edges(to_gray(washed)), 0) * 3
    pigment = patches(image.shape[:2], 16, rng) // 5 + patches(image.shape[:2], 2, rng) // 10
    return blend(image, add(washed, pigment - rims), _mostly(strength, 80))


def _xray(image: Image, strength: int, rng: np.random.Generator) -> Image:
    inverted = 255 - _gray(cv2.GaussianBlur(image, (5, 5), 0))
    glow = cv2.LUT(inverted, _curve(_RAMP[None, :, None] * np.array([150, 220, 257]) >> 8))
    return blend(image, glow, _mostly(strength, 180))


_COLORS = frozenset({"cast", "saturation"})
_LINES_ONLY = frozenset({"cast", "saturation", "exposure", "contrast", "sharpness", WEATHER})
_TURNED = frozenset({"cast", "exposure", WEATHER})
_SMOOTHED = frozenset({"sharpness"})

_TABLE = (
    Look("bright", "exposure", ("overexposed", "bright", "glaring"), _bright, "snow"),
    Look("dim", "exposure", ("underexposed", "dim", "dark"), _dim, "dusk"),
    Look("faded", "contrast", ("faded", "low contrast", "hazy"), _faded, "fog"),
    Look("harsh", "contrast", ("high contrast", "harsh"), _harsh),
    Look("monochrome", "saturation", ("black and white", "monochrome", "colorless"), _monochrome),
    Look("vivid", "saturation", ("vivid", "saturated", "colorful"), _vivid),
    Look("pastel", "saturation", ("pastel", "washed out"), _pastel, "fog"),
    Look("sepia", "cast", ("sepia", "old brownish", "vintage"), _sepia, "dusk"),
    Look("golden", "cast", ("golden", "warm", "orange"), _cast(300, 236, 130), "dusk"),
    Look("blue", "cast", ("blue", "cold", "bluish"), _cast(130, 205, 310)),
    Look("green", "cast", ("green tinted", "greenish"), _cast(150, 300, 150)),
    Look("purple", "cast", ("purple", "violet"), _cast(230, 130, 300)),
    Look("red", "cast", ("red tinted", "reddish"), _cast(320, 130, 120), "dusk"),
    Look("pink", "cast", ("pink", "rosy"), _cast(320, 190, 250)),
    Look("teal", "cast", ("teal", "turquoise"), _cast(120, 270, 260)),
    Look("yellow", "cast", ("yellow", "yellowish"), _cast(280, 276, 90), "dusk"),
    Look("blurry", "sharpness", ("blurry", "out of focus"), _blurry),
    Look("motion", "sharpness", ("motion blurred", "shaky"), _motion_blurred),
    Look("grainy", "sharpness", ("grainy", "noisy"), _grainy),
    Look("crisp", "sharpness", ("crisp", "sharpened"), _crisp),
    Look("sketch", "medium", ("sketched", "pencil drawn"), _sketch, "snow", _LINES_ONLY),
    Look("poster", "medium", ("poster style", "cartoon"), _poster, hides=_SMOOTHED),
    Look("oil", "medium", ("oil painted", "painted"), _oil, hides=_SMOOTHED),
    Look("neon", "medium", ("neon", "glowing"), _neon, "night", _LINES_ONLY),
    Look("negative", "medium", ("negative", "inverted"), _negative, hides=_TURNED),
    Look("mosaic", "medium", ("pixelated", "mosaic"), _mosaic, hides=_SMOOTHED),
    Look("halftone", "medium", ("halftone", "comic"), _halftone, hides=_SMOOTHED),
    Look("embossed", "medium", ("embossed", "relief"), _embossed, hides=_LINES_ONLY),
    Look("watercolor", "medium", ("watercolor", "aquarelle"), _watercolor, "fog", _SMOOTHED),
    Look("xray", "medium", ("x-ray", "radiograph"), _xray, hides=_COLORS | _TURNED),
    Look("night", WEATHER, ("night", "nighttime", "nocturnal"), None, "night"),
    Look("fog", WEATHER, ("foggy", "misty"), None, "fog"),
    Look("rain", WEATHER, ("rainy", "wet"), None, "rain"),
    Look("snow", WEATHER, ("snowy", "snow covered"), None, "snow"),
    Look("dusk", WEATHER, ("dusk", "sunset"), None, "dusk"),
)

LOOKS: dict[str, Look] = {look.name: look for look in _TABLE}
"""All looks by name, in a fixed order."""

STRICT_LOOKS: tuple[str, ...] = tuple(look.name for look in _TABLE if look.resembles is None)
"""Names of the looks that resemble no condition."""


def apply_look(picture: Scene | Image, name: str, strength: float, rng: np.random.Generator) -> Image:
    """Apply a look.

    Args:
        picture: a clear scene, or an image (H, W, 3), for which weather guesses distances by row.
        name: of the look.
        strength: in [0, 1]; 0 leaves the image unchanged.
        rng: draws random parts of the look, such as grain.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ConfigError: the look is unknown, or the strength out of range.
    """
    look = LOOKS.get(name)
    if look is None or not 0 <= strength <= 1:
        raise ConfigError(
            f"A look must be one of {', '.join(LOOKS)} with a strength in [0, 1], got {name!r} with {strength}."
            f"{did_you_mean(name, LOOKS)}"
        )
    share = round(strength * _FULL)
    if look.operation is not None:
        return look.operation(picture.image if isinstance(picture, Scene) else picture, share, rng)
    scene = picture if isinstance(picture, Scene) else scene_of_image(picture)
    return blend(scene.image, apply_condition(scene, look.name, rng), _FULL - share)


def apply_looks(picture: Scene | Image, looks: Sequence[tuple[str, float]], rng: np.random.Generator) -> Image:
    """Apply several looks, (name, strength) pairs, in the order of their families; see `apply_look`."""
    ranks = {look.name: FAMILIES.index(look.family) for look in LOOKS.values()}
    for name, strength in sorted(looks, key=lambda item: ranks.get(item[0], 0)):
        picture = apply_look(picture, name, strength, rng)
    return picture.image if isinstance(picture, Scene) else picture


def scene_of_image(image: Image) -> Scene:
    """Guess the scene of an image (H, W, 3) without depth, taken from a car: flat ground and upright objects."""
    height, width = image.shape[:2]
    horizon, focal = height * _HORIZON, width * FOCAL_LENGTH
    below = np.arange(height) + 0.5 - horizon
    ground = _CAMERA_HEIGHT * focal / np.maximum(below, 1.0)
    # Above the horizon mostly buildings and trees; the higher, the nearer, so that fog does not hide them.
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
