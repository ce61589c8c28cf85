"""Conditions of a scene: the source domain, the tested ones, and those for tuning."""

import zlib
from collections.abc import Callable, Mapping

import numpy as np

from famix_minitown import effects
from famix_minitown.scene import Scene
from famix_minitown.texture import Image, scale

__all__ = ["CONDITIONS", "DEVELOPMENT_CONDITIONS", "apply_condition"]


def apply_condition(scene: Scene, condition: str, rng: np.random.Generator | None = None) -> Image:
    """Render a scene in other light and weather.

    Args:
        scene: on a clear day.
        condition: one of CONDITIONS or DEVELOPMENT_CONDITIONS.
        rng: draws severity and details; by default it is seeded by the scene's seed and the condition.

    Returns:
        (H, W, 3) uint8, RGB. Labels, instances and depth are those of the scene.

    Raises:
        ValueError: the condition is unknown.
    """
    if condition not in _CONDITIONS:
        raise ValueError(
            f"A condition must be one of {', '.join(_CONDITIONS)}, got {condition!r}. Choose one of these."
        )
    if rng is None:
        rng = np.random.default_rng((scene.seed, zlib.crc32(condition.encode())))
    return _CONDITIONS[condition](scene, rng)


def _clear(scene: Scene, rng: np.random.Generator) -> Image:
    return effects.sensor_noise(scale(scene.image, int(rng.integers(226, 258))), rng, 2)


def _night(scene: Scene, rng: np.random.Generator) -> Image:
    level = int(rng.integers(52, 92))
    image = effects.paint_sky(scene.image, scene, (70, 86, 140), (150, 130, 150))
    image = effects.switch_on_lamps(image, scene, (level * 7 // 8, level, level * 5 // 4), 256)
    return effects.sensor_noise(image, rng, rng.uniform(5, 9))


def _fog(scene: Scene, rng: np.random.Generator) -> Image:
    gray = int(rng.integers(178, 212))
    image = effects.desaturate(scene.image, 70)
    image = effects.mist(image, scene, rng.uniform(32, 70), (gray, gray + 2, gray + 5))
    return effects.sensor_noise(image, rng, 2)


def _overcast_light(scene: Scene, low: int, high: int, rng: np.random.Generator) -> Image:
    gray = int(rng.integers(150, 190))
    image = effects.paint_sky(scene.image, scene, (gray - 20, gray - 16, gray - 8), (gray, gray, gray + 4), 230)
    return scale(effects.desaturate(image, int(rng.integers(90, 140))), int(rng.integers(low, high)))


def _rain(scene: Scene, rng: np.random.Generator) -> Image:
    image = _overcast_light(scene, 160, 208, rng)
    image = effects.wet_ground(image, scene, rng, int(rng.integers(130, 200)))
    image = effects.mist(image, scene, rng.uniform(90, 200), (140, 144, 150))
    image = effects.draw_streaks(image, rng, int(rng.integers(110, 260)), int(rng.integers(120, 190)))
    return effects.sensor_noise(image, rng, 3)


def _snow(scene: Scene, rng: np.random.Generator) -> Image:
    gray = int(rng.integers(196, 222))
    image = effects.paint_sky(scene.image, scene, (gray - 14, gray - 10, gray - 4), (gray, gray, gray + 4))
    image = effects.cover_with_snow(effects.desaturate(image, 80), scene, rng, int(rng.integers(110, 190)))
    image = effects.mist(image, scene, rng.uniform(80, 160), (gray, gray, gray + 4))
    return effects.sensor_noise(effects.draw_flakes(image, rng, int(rng.integers(160, 420))), rng, 2)


def _dusk(scene: Scene, rng: np.random.Generator) -> Image:
    level = int(rng.integers(112, 156))
    image = effects.paint_sky(scene.image, scene, (140, 130, 200), (255, 180, 110))
    image = effects.mist(image, scene, rng.uniform(240, 420), (236, 168, 124))
    image = effects.switch_on_lamps(image, scene, (level * 9 // 8, level * 15 // 16, level * 7 // 8), 110)
    return effects.sensor_noise(image, rng, 3)


def _haze(scene: Scene, rng: np.random.Generator) -> Image:
    image = effects.mist(scene.image, scene, rng.uniform(80, 140), (214, 204, 186))
    return effects.sensor_noise(image, rng, 2)


def _overcast(scene: Scene, rng: np.random.Generator) -> Image:
    return effects.sensor_noise(_overcast_light(scene, 180, 236, rng), rng, 2)


def _evening(scene: Scene, rng: np.random.Generator) -> Image:
    level = int(rng.integers(86, 124))
    image = effects.paint_sky(scene.image, scene, (80, 100, 190), (190, 170, 200))
    image = effects.switch_on_lamps(image, scene, (level * 7 // 8, level, level * 11 // 8), 170)
    return effects.sensor_noise(image, rng, 4)


def _drizzle(scene: Scene, rng: np.random.Generator) -> Image:
    image = effects.mist(_overcast_light(scene, 180, 220, rng), scene, rng.uniform(70, 140), (166, 170, 176))
    image = effects.wet_ground(image, scene, rng, 90)
    return effects.sensor_noise(effects.draw_streaks(image, rng, 90, 90), rng, 3)


_CONDITIONS: Mapping[str, Callable[[Scene, np.random.Generator], Image]] = {
    "clear": _clear,
    "night": _night,
    "fog": _fog,
    "rain": _rain,
    "snow": _snow,
    "dusk": _dusk,
    "haze": _haze,
    "overcast": _overcast,
    "evening": _evening,
    "drizzle": _drizzle,
}

CONDITIONS = ("clear", "night", "fog", "rain", "snow", "dusk")
"""The source domain and the five tested conditions."""

DEVELOPMENT_CONDITIONS = ("haze", "overcast", "evening", "drizzle")
"""Conditions for tuning, so that the tested ones stay unseen."""
