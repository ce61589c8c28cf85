"""Labelled scenes that crops are cut from: those of the town, or the images of a registered dataset."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from famix.data import CITYSCAPES_CLASSES, LabelReader, get_dataset_dicts, get_label_readers, label_file_of, read_image
from famix.utils.errors import DatasetError
from famix_minitown.datasets import FORMAT_VERSION
from famix_minitown.looks import scene_of_image
from famix_minitown.scene import SIZE, Scene, render_scene

__all__ = ["NO_CLASS", "CropSource", "DatasetSource", "TownSource", "with_cityscapes_ids"]

NO_CLASS = 255
"""Label of pixels that show none of the classes."""


class CropSource(Protocol):
    """Labelled scenes to cut crops from. Workers get a copy of it, so it must be possible to pickle."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the place is the train id."""

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
        """The seeds, and the version of the town that draws them."""
        return f"town v{FORMAT_VERSION} {self.first} + {self.count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return render_scene(self.first + index)


@dataclass(frozen=True)
class DatasetSource:
    """Images of a labelled dataset, made as high as the town's, without depth.

    Attributes:
        name: of the registered dataset.
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
        """The source of a dataset that is registered with Detectron2.

        Raises:
            DatasetError: it is unknown, or its files are missing.
        """
        files = tuple((entry["file_name"], label_file_of(entry)) for entry in get_dataset_dicts([name]))
        return cls(name, tuple(MetadataCatalog.get(name).stuff_classes), files, get_label_readers([name])[name])

    def split(self, every: int) -> tuple["DatasetSource", "DatasetSource"]:
        """Divide into the scenes to learn from and every `every`-th one, to validate with.

        Raises:
            DatasetError: it has too few images to leave one for each.
        """
        if len(self.files) < 2:
            raise DatasetError(
                f"{self.name}: got {len(self.files)} image(s), expected at least 2, one to learn from and one to "
                "validate with. Name a dataset with more images."
            )
        rest = tuple(pair for place, pair in enumerate(self.files) if place % every)
        return replace(self, files=rest), replace(self, files=self.files[::every])

    @property
    def identity(self) -> str:
        """The dataset and how many of its images."""
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
                f"{label_file}: got no pixel of any class at {size[0]} x {size[1]} pixels, expected some to cut crops "
                f"around. Leave the image out of {self.name}, or correct its labels."
            )
        return replace(scene, labels=small, seed=index)


def with_cityscapes_ids(scene: Scene, class_names: tuple[str, ...]) -> Scene:
    """The scene as effects know it: with Cityscapes' train ids, by which they find sky, road and so on.

    Args:
        scene: with labels that are places in `class_names`, or NO_CLASS.
        class_names: of its source.

    Returns:
        The scene with Cityscapes' id of each class of the same name, and NO_CLASS for all others.
    """
    return replace(scene, labels=_cityscapes_ids(class_names)[scene.labels])


@cache
def _cityscapes_ids(class_names: tuple[str, ...]) -> NDArray[np.uint8]:
    """(256,), Cityscapes' train id of every label."""
    known = {entry.name: train_id for train_id, entry in enumerate(CITYSCAPES_CLASSES)}
    table = np.full(256, NO_CLASS, np.uint8)
    table[: len(class_names)] = [known.get(name, NO_CLASS) for name in class_names]
    return table
