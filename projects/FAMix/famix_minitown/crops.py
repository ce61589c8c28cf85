"""Square crops of street scenes in many looks, with what they show: the pictures that a small CLIP learns from."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.utils.seeding import derive_seed
from famix_minitown.captions import MOST_ATTRIBUTES, Attributes, draw_look
from famix_minitown.crop_sources import NO_CLASS, CropSource, with_cityscapes_ids
from famix_minitown.looks import LOOKS, apply_looks
from famix_minitown.texture import Image

__all__ = ["CROP_SIDE", "LOOK_NAMES", "RECORD", "CropPlan", "attributes_of", "crops_of_scene"]

CROP_SIDE = 64
LOOK_NAMES = tuple(LOOKS)
NO_LOOK = -1

RECORD = np.dtype(
    [
        ("image", np.uint8, (CROP_SIDE, CROP_SIDE, 3)),
        ("label", np.uint8),
        ("looks", np.int8, (MOST_ATTRIBUTES,)),
        ("strengths", np.float32, (MOST_ATTRIBUTES,)),
    ]
)
"""A crop: RGB pixels, train id of what it shows, places of its looks in LOOKS or -1, and their strengths."""

_WINDOW = (32, 128)  # side in pixels of an image of 192 rows
_SMALL_WINDOW = (20, 56)
_SMALL_CLASSES = ("wall", "pole", "traffic sign", "traffic light", "person", "rider", "motorcycle", "bicycle")
_LEAST_SHARE = 0.12  # of a crop that the class must fill which names it


@dataclass(frozen=True)
class CropPlan:
    """How crops are drawn.

    Attributes:
        seed: of all random numbers.
        looks: looks of a scene.
        crops: crops of a look.
        single_looks: one look of strength 0.7 to 1 or none, all about equally often, as to validate with; otherwise
            looks as `draw_look` draws them.
    """

    seed: int
    looks: int = 4
    crops: int = 5
    single_looks: bool = False

    def draw(self, rng: np.random.Generator) -> Attributes:
        """Draw the look of a scene."""
        if not self.single_looks:
            return draw_look(rng)
        place = int(rng.integers(len(LOOK_NAMES) + 1))
        return () if place == len(LOOK_NAMES) else ((LOOK_NAMES[place], float(rng.uniform(0.7, 1.0))),)


def attributes_of(record: Any) -> Attributes:
    """Names and strengths of the looks of a record, see RECORD."""
    pairs = zip(record["looks"], record["strengths"], strict=True)
    return tuple((LOOK_NAMES[look], float(strength)) for look, strength in pairs if look != NO_LOOK)


def crops_of_scene(source: CropSource, plan: CropPlan, index: int) -> NDArray[Any]:
    """Cut the crops of one scene.

    Args:
        source: scenes.
        plan: how crops are drawn.
        index: of the scene.

    Returns:
        (plan.looks * plan.crops,) RECORDs.

    Raises:
        DatasetError: the scene's files cannot be read, or show no class.
    """
    rng = np.random.default_rng(derive_seed(plan.seed, index))
    scene = source[index]
    seen = with_cityscapes_ids(scene, source.class_names)
    present = [int(label) for label in np.unique(scene.labels) if label != NO_CLASS]
    places = {label: np.flatnonzero(scene.labels == label) for label in present}
    records = np.zeros(plan.looks * plan.crops, RECORD)
    for first in range(0, len(records), plan.crops):
        attributes = plan.draw(rng)
        image = apply_looks(seen, attributes, rng)
        block = records[first : first + plan.crops]
        block["looks"] = NO_LOOK
        for slot, (name, strength) in enumerate(attributes):
            block["looks"][:, slot] = LOOK_NAMES.index(name)
            block["strengths"][:, slot] = strength
        for record in block:
            target = present[int(rng.integers(len(present)))]
            window = _draw_window(scene.labels.shape, places[target], source.class_names[target], rng)
            record["image"] = _zoom(image[window])
            record["label"] = _name(scene.labels[window], target)
    return records


def _draw_window(
    shape: tuple[int, ...], places: NDArray[np.intp], class_name: str, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A square inside the image, about centred on a pixel of the class."""
    low, high = _SMALL_WINDOW if class_name in _SMALL_CLASSES else _WINDOW
    side = min(int(rng.integers(low, high + 1)), *shape)
    row, column = divmod(int(places[int(rng.integers(len(places)))]), shape[1])
    top = min(max(row - side // 2, 0), shape[0] - side)
    left = min(max(column - side // 2, 0), shape[1] - side)
    return slice(top, top + side), slice(left, left + side)


def _zoom(image: Image) -> Image:
    return cv2.resize(np.ascontiguousarray(image), (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_LINEAR_EXACT)


def _name(labels: NDArray[np.uint8], target: int) -> int:
    """The target class if it fills enough of the crop, else the class that fills most."""
    counts = np.bincount(labels.ravel(), minlength=256)[:NO_CLASS]
    return target if counts[target] > _LEAST_SHARE * labels.size else int(counts.argmax())
