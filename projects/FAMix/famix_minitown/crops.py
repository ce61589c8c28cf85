"""Square crops of street scenes in many looks, with their classes: the images that a small CLIP is trained on."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from famix.data import CITYSCAPES_CLASSES, LabelReader, get_dataset_dicts, get_label_readers, label_file_of, read_image
from famix.utils.errors import DatasetError
from famix.utils.seeding import derive_seed
from famix_minitown.captions import MOST_ATTRIBUTES, Attributes, draw_look
from famix_minitown.datasets import FORMAT_VERSION
from famix_minitown.looks import LOOKS, NO_CLASS, apply_looks, scene_of_image
from famix_minitown.scene import SIZE, Scene, render_scene

__all__ = [
    "CROP_SIDE", "LOOK_NAMES", "RECORD", "CropPlan", "CropSource", "DatasetSource", "TownSource", "attributes_of",
    "crops_of_scene", "with_cityscapes_ids",
]  # fmt: skip

CROP_SIDE = 64
LOOK_NAMES = tuple(LOOKS)

RECORD = np.dtype(
    [
        ("image", np.uint8, (CROP_SIDE, CROP_SIDE, 3)),
        ("label", np.uint8),
        ("looks", np.int8, (MOST_ATTRIBUTES,)),
        ("strengths", np.float32, (MOST_ATTRIBUTES,)),
    ]
)
"""A crop: RGB pixels, train id of its class, indices of its looks in LOOKS or -1, and their strengths."""

_NO_LOOK = -1
_WINDOW, _SMALL_WINDOW = (32, 128), (20, 56)  # range of sides in pixels, in an image of 192 rows
_SMALL_CLASSES = ("wall", "pole", "traffic sign", "traffic light", "person", "rider", "motorcycle", "bicycle")
_MIN_SHARE = 0.12  # of a crop that its class must fill


class CropSource(Protocol):
    """Labeled scenes to cut crops from. It must be picklable for worker processes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by train id."""

    @property
    def identity(self) -> str:
        """Text that differs for sources with other scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


@dataclass(frozen=True)
class TownSource:
    """Scenes of the town.

    Attributes:
        first: seed of the first scene; the others follow.
        count: number of scenes.
    """

    first: int
    count: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Cityscapes' classes, most of which the town has."""
        return tuple(entry.name for entry in CITYSCAPES_CLASSES)

    @property
    def identity(self) -> str:
        """The seeds, and the version of the town."""
        return f"town v{FORMAT_VERSION} {self.first} + {self.count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return render_scene(self.first + index)


@dataclass(frozen=True)
class DatasetSource:
    """Images of a labeled dataset, scaled to the height of the town's, without depth.

    Attributes:
        name: registered name of the dataset.
        class_names: its classes.
        files: image and label file of each scene.
        reader: of the labels.
    """

    name: str
    class_names: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = field(repr=False)
    reader: LabelReader = field(repr=False)

    @classmethod
    def registered(cls, name: str) -> "DatasetSource":
        """Return the source of a registered dataset.

        Raises:
            DatasetError: the dataset is unknown, or its files are missing.
        """
        files = tuple((entry["file_name"], label_file_of(entry)) for entry in get_dataset_dicts([name]))
        return cls(name, tuple(MetadataCatalog.get(name).stuff_classes), files, get_label_readers([name])[name])

    def split(self, every: int) -> tuple["DatasetSource", "DatasetSource"]:
        """Divide into scenes for training, and every `every`-th one for validation.

        Raises:
            DatasetError: the dataset has fewer than two images.
        """
        if len(self.files) < 2:
            raise DatasetError(
                f"{self.name} must have at least 2 images, for training and validation, got {len(self.files)}. Choose a "
                "larger dataset."
            )
        rest = tuple(pair for place, pair in enumerate(self.files) if place % every)
        return replace(self, files=rest), replace(self, files=self.files[::every])

    @property
    def identity(self) -> str:
        """The name of the dataset and its number of images."""
        return f"{self.name} {len(self.files)} {Path(self.files[0][0]).name}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scene:
        image_file, label_file = self.files[index]
        image, labels = read_image(image_file), self.reader.read(label_file)
        labels = np.where(labels == self.reader.ignore_label, np.uint8(NO_CLASS), labels)
        size = (round(image.shape[1] * SIZE[0] / image.shape[0]), SIZE[0])
        scene = scene_of_image(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        small = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
        if (small == NO_CLASS).all():
            raise DatasetError(
                f"{label_file} must show a class at {size[0]} x {size[1]} pixels, got only ignored pixels. Remove the "
                f"image from {self.name}, or correct its labels."
            )
        return replace(scene, labels=small, seed=index)


def with_cityscapes_ids(scene: Scene, class_names: tuple[str, ...]) -> Scene:
    """Return a scene with Cityscapes' train ids, by which effects find sky, road and others.

    Args:
        scene: its labels are indices in `class_names`, or NO_CLASS.
        class_names: of its source; classes that Cityscapes lacks become NO_CLASS.
    """
    return replace(scene, labels=_cityscapes_ids(class_names)[scene.labels])


@cache
def _cityscapes_ids(class_names: tuple[str, ...]) -> NDArray[np.uint8]:
    known = {entry.name: train_id for train_id, entry in enumerate(CITYSCAPES_CLASSES)}
    table = np.full(256, NO_CLASS, np.uint8)
    table[: len(class_names)] = [known.get(name, NO_CLASS) for name in class_names]
    return table


@dataclass(frozen=True)
class CropPlan:
    """Settings of the crops.

    Attributes:
        seed: of all random numbers.
        looks: looks of a scene.
        crops: crops of a look.
        single_looks: for validation, one look of strength 0.7 to 1 or none, each with equal probability; otherwise
            looks are drawn by `draw_look`.
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
    """Return names and strengths of the looks of a RECORD."""
    pairs = zip(record["looks"], record["strengths"], strict=True)
    return tuple((LOOK_NAMES[look], float(strength)) for look, strength in pairs if look != _NO_LOOK)


def crops_of_scene(source: CropSource, plan: CropPlan, index: int) -> NDArray[Any]:
    """Cut the crops of one scene.

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
        block["looks"] = _NO_LOOK
        for slot, (name, strength) in enumerate(attributes):
            block["looks"][:, slot] = LOOK_NAMES.index(name)
            block["strengths"][:, slot] = strength
        for record in block:
            target = present[int(rng.integers(len(present)))]
            window = _draw_window(scene.labels.shape, places[target], source.class_names[target], rng)
            pixels, size = np.ascontiguousarray(image[window]), (CROP_SIDE, CROP_SIDE)
            record["image"] = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR_EXACT)
            counts = np.bincount(scene.labels[window].ravel(), minlength=256)[:NO_CLASS]
            fills = counts[target] > _MIN_SHARE * scene.labels[window].size
            record["label"] = target if fills else int(counts.argmax())
    return records


def _draw_window(
    shape: tuple[int, ...], places: NDArray[np.intp], class_name: str, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Draw a square inside the image, centered near a pixel of the class."""
    low, high = _SMALL_WINDOW if class_name in _SMALL_CLASSES else _WINDOW
    side = min(int(rng.integers(low, high + 1)), *shape)
    row, column = divmod(int(places[int(rng.integers(len(places)))]), shape[1])
    top = min(max(row - side // 2, 0), shape[0] - side)
    left = min(max(column - side // 2, 0), shape[1] - side)
    return slice(top, top + side), slice(left, left + side)
