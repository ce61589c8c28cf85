"""Giving an image a look, or several, with strengths in between: a smooth space of styles."""

from collections.abc import Sequence

import numpy as np

from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean
from famix_minitown.camera import FAR
from famix_minitown.conditions import apply_condition
from famix_minitown.look_table import FAMILIES, LOOKS, STRICT_LOOKS, Look
from famix_minitown.scene import Scene
from famix_minitown.texture import Image, blend

__all__ = ["FAMILIES", "LOOKS", "STRICT_LOOKS", "apply_look", "apply_looks", "scene_of_image"]

_FULL = 256
_HORIZON = 0.45  # of the height, where a camera in a car has it
_CAMERA_HEIGHT = 1.6  # metres
_FOCAL_LENGTH = 0.72  # of the width
_NO_CLASS = 255


def apply_look(picture: Scene | Image, name: str, strength: float, rng: np.random.Generator) -> Image:
    """Give a look to a picture.

    Args:
        picture: a scene, whose clear image is taken; or an image (H, W, 3), for which weather guesses distances by row.
        name: of a look.
        strength: 0 (unchanged) to 1.
        rng: of what is random in the look, such as grain.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ConfigError: there is no such look, or the strength is out of range.
    """
    look = LOOKS.get(name)
    if look is None or not 0 <= strength <= 1:
        raise ConfigError(
            f"Got the look {name!r} with strength {strength}, expected one of {', '.join(LOOKS)} with 0 .. 1."
            f"{did_you_mean(name, LOOKS)}"
        )
    share = round(strength * _FULL)
    if look.operation is None:
        return _apply_weather(picture, look, share, rng)
    return look.operation(_image_of(picture), share, rng)


def apply_looks(picture: Scene | Image, looks: Sequence[tuple[str, float]], rng: np.random.Generator) -> Image:
    """Give several looks to a picture, in the order of their families.

    Args:
        picture: see `apply_look`.
        looks: names and strengths.
        rng: of what is random in the looks.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ConfigError: there is no such look, or a strength is out of range.
    """
    for name, strength in sorted(looks, key=lambda item: _rank(item[0])):
        picture = apply_look(picture, name, strength, rng)
    return _image_of(picture)


def scene_of_image(image: Image) -> Scene:
    """Guess the scene of an image without depth: a flat ground below a horizon, and what stands on it.

    Args:
        image: (H, W, 3) uint8, taken from a car.
    """
    height, width = image.shape[:2]
    horizon, focal = height * _HORIZON, width * _FOCAL_LENGTH
    below = np.arange(height) + 0.5 - horizon
    ground = _CAMERA_HEIGHT * focal / np.maximum(below, 1.0)
    # Above the horizon mostly buildings and trees, the higher the nearer, so that fog does not swallow them whole.
    upright = 40.0 - 25.0 * np.clip(-below / horizon, 0.0, 1.0)
    rows = np.where(below > 0, np.minimum(ground, 40.0), upright).clip(1.0, FAR)
    return Scene(
        image=image,
        labels=np.full((height, width), _NO_CLASS, np.uint8),
        instances=np.zeros((height, width), np.uint16),
        depth=np.repeat(rows.astype(np.float32)[:, None], width, axis=1),
        windows=np.zeros((height, width), np.uint8),
        lights=(),
        horizon=horizon,
        focal=focal,
        seed=0,
    )


def _rank(name: str) -> int:
    return FAMILIES.index(LOOKS[name].family) if name in LOOKS else 0


def _image_of(picture: Scene | Image) -> Image:
    return picture.image if isinstance(picture, Scene) else picture


def _apply_weather(picture: Scene | Image, look: Look, share: int, rng: np.random.Generator) -> Image:
    scene = picture if isinstance(picture, Scene) else scene_of_image(picture)
    return blend(scene.image, apply_condition(scene, look.name, rng), _FULL - share)
