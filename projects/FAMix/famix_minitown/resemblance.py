"""How much a look of the web resembles a tested condition: whether both change the statistics of an image alike."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.utils.seeding import derive_seed
from famix_minitown.conditions import CONDITIONS, apply_condition
from famix_minitown.look_table import LOOKS, WEATHER
from famix_minitown.looks import apply_look
from famix_minitown.scene import Scene
from famix_minitown.texture import Image, to_gray

__all__ = ["RESEMBLING", "image_statistics", "look_resemblance"]

RESEMBLING = 0.6
"""From this cosine on, a look counts as one that resembles a condition."""

_SOURCE = "clear"
_STRENGTH = 0.85
_GRID = (3, 6)  # of square patches of a scene


def image_statistics(image: Image) -> NDArray[np.float32]:
    """Mean and standard deviation of red, green, blue and detail in every patch of an image.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (3 * 6 * 8,). Detail is the size of the grey image's Laplacian.
    """
    detail = np.abs(cv2.Laplacian(to_gray(image), cv2.CV_32F))
    channels = np.dstack([image.astype(np.float32), detail])
    rows, cols = _GRID
    height, width = image.shape[0] // rows, image.shape[1] // cols
    patches = channels[: rows * height, : cols * width].reshape(rows, height, cols, width, -1)
    return np.stack([patches.mean((1, 3)), patches.std((1, 3))]).ravel()


def look_resemblance(scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """Mean cosine between what a look and what a condition change in the statistics of a clear scene.

    Args:
        scenes: of the town.

    Returns:
        Look, but no weather -> tested condition -> cosine in [-1, 1].
    """
    looks = [look.name for look in LOOKS.values() if look.family != WEATHER]
    conditions = [name for name in CONDITIONS if name != _SOURCE]
    cosines = np.zeros((len(scenes), len(looks), len(conditions)))
    for index, scene in enumerate(scenes):
        clear, rng = image_statistics(scene.image), np.random.default_rng(derive_seed(scene.seed))
        under_looks = [image_statistics(apply_look(scene, name, _STRENGTH, rng)) - clear for name in looks]
        in_conditions = [image_statistics(apply_condition(scene, name, rng)) - clear for name in conditions]
        cosines[index] = _unit(under_looks) @ _unit(in_conditions).T
    mean = cosines.mean(0)
    return {
        look: {condition: float(value) for condition, value in zip(conditions, row, strict=True)}
        for look, row in zip(looks, mean, strict=True)
    }


def _unit(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    stacked = np.stack(vectors)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
