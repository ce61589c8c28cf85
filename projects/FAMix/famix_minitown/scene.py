"""Scenes: random streets, rendered for a camera on a clear day."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix_minitown.backdrop import Backdrop, paint_backdrop
from famix_minitown.canvas import Camera, Canvas, Light, TrainId
from famix_minitown.layout import draw_street
from famix_minitown.objects import paint_object
from famix_minitown.texture import Image, add, grain, patches

__all__ = ["SIZE", "Scene", "render_scene"]

SIZE = (192, 384)
"""Usual (height, width) of the town's images in pixels."""

_GRAIN = {
    TrainId.ROAD: 22, TrainId.SIDEWALK: 20, TrainId.BUILDING: 18, TrainId.WALL: 30, TrainId.POLE: 6,
    TrainId.TRAFFIC_SIGN: 4, TrainId.VEGETATION: 58, TrainId.SKY: 3, TrainId.PERSON: 8, TrainId.CAR: 5,
}  # fmt: skip
_WITH_INSTANCES = (TrainId.PERSON, TrainId.CAR)


@dataclass(frozen=True)
class Scene:
    """A street scene with its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB, on a clear day.
        labels: (H, W) uint8, Cityscapes' train ids.
        instances: (H, W) uint16, number of each car and person from 1; 0 elsewhere.
        depth: (H, W) float32, metres along the optical axis; FAR in the sky.
        windows: (H, W) uint8, brightness of the windows that are lit at night, 0 elsewhere.
        lights: the visible lamps.
        horizon: row of the horizon.
        focal: focal length in pixels.
        seed: of the scene.
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
        seed: >= 0; the same seed and size give the same bytes on every machine.
        size: (height, width) in pixels, at least 32 each.

    Raises:
        ValueError: the size is too small.
    """
    if min(size) < 32:
        raise ValueError(f"A scene must have at least 32 x 32 pixels, got {size[0]} x {size[1]}. Choose a larger size.")
    rng = np.random.default_rng(seed)
    camera, street = Camera.random(size, rng), draw_street(rng)
    backdrop = paint_backdrop(camera, street, rng)
    canvas = Canvas(camera, backdrop.image, np.zeros(size, np.uint8), backdrop.windows)
    for item in street.objects:
        paint_object(canvas, item)
    labels, depth = _flatten(canvas, backdrop)
    return Scene(
        image=_finish(canvas.image, labels, rng),
        labels=labels,
        instances=_number_instances(canvas),
        depth=depth,
        windows=np.where(canvas.items == 0, backdrop.windows, np.uint8(0)),
        lights=_visible_lights(canvas),
        horizon=camera.horizon,
        focal=camera.focal,
        seed=seed,
    )


def _flatten(canvas: Canvas, backdrop: Backdrop) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return labels and depth of the objects in front of the backdrop."""
    free = canvas.items == 0
    labels, depth = _look_up(canvas.classes, np.uint8, canvas.items), _look_up(canvas.depths, np.float32, canvas.items)
    np.copyto(labels, backdrop.labels, where=free)
    np.copyto(depth, backdrop.depth, where=free)
    return labels, depth


def _look_up(values: Sequence[float], dtype: type[np.generic], places: NDArray[np.uint8]) -> NDArray[Any]:
    """Return values[places], several times as fast as numpy."""
    table = np.zeros(256, dtype)
    table[: len(values)] = values
    return cv2.LUT(places, table)


def _number_instances(canvas: Canvas) -> NDArray[np.uint16]:
    countable = np.isin(canvas.classes, _WITH_INSTANCES)
    countable[0] = False
    numbers = np.where(countable, np.cumsum(countable), 0).astype(np.uint16)
    return numbers[canvas.items]


def _visible_lights(canvas: Canvas) -> tuple[Light, ...]:
    height, width = canvas.items.shape
    seen = []
    for light in canvas.lights:
        row, column = round(light.row), round(light.column)
        if 0 <= row < height and 0 <= column < width and canvas.items[row, column] == light.item:
            seen.append(light)
    return tuple(seen)


def _finish(image: Image, labels: NDArray[np.uint8], rng: np.random.Generator) -> Image:
    """Add grain to surfaces, and the slight blur of a lens."""
    strength = [_GRAIN.get(class_id, 0) for class_id in range(256)]
    shape = labels.shape
    noise = (grain(shape, rng) >> 1) + patches(shape, 4, rng) // 2 + patches(shape, 16, rng) // 2
    textured = add(image, noise * _look_up(strength, np.int16, labels) >> 7)
    return cv2.GaussianBlur(textured, (3, 3), 0.6)
