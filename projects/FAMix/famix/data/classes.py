"""Classes of datasets: Cityscapes' nineteen, and the division into things (with instances) and stuff."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.utils.errors import ConfigError

__all__ = [
    "CITYSCAPES_CLASSES",
    "CITYSCAPES_LABEL_IDS",
    "HIGHEST_LABEL_ID",
    "LABEL_DIVISOR",
    "ClassDefinition",
    "PanopticClasses",
    "cityscapes_label_ids",
    "is_panoptic",
    "panoptic_classes",
    "panoptic_metadata",
    "require_same_things",
]

LABEL_DIVISOR = 1000
"""Panoptic-DeepLab numbers a segment train id * LABEL_DIVISOR + number of the instance."""

Color = tuple[int, int, int]  # red, green, blue, each 0-255


@dataclass(frozen=True)
class ClassDefinition:
    """A class that a network learns.

    Attributes:
        name: unique within the dataset; style prompts contain it.
        color: (red, green, blue), each 0-255, for drawings.
    """

    name: str
    color: Color


CITYSCAPES_CLASSES = (
    ClassDefinition("road", (128, 64, 128)),
    ClassDefinition("sidewalk", (244, 35, 232)),
    ClassDefinition("building", (70, 70, 70)),
    ClassDefinition("wall", (102, 102, 156)),
    ClassDefinition("fence", (190, 153, 153)),
    ClassDefinition("pole", (153, 153, 153)),
    ClassDefinition("traffic light", (250, 170, 30)),
    ClassDefinition("traffic sign", (220, 220, 0)),
    ClassDefinition("vegetation", (107, 142, 35)),
    ClassDefinition("terrain", (152, 251, 152)),
    ClassDefinition("sky", (70, 130, 180)),
    ClassDefinition("person", (220, 20, 60)),
    ClassDefinition("rider", (255, 0, 0)),
    ClassDefinition("car", (0, 0, 142)),
    ClassDefinition("truck", (0, 0, 70)),
    ClassDefinition("bus", (0, 60, 100)),
    ClassDefinition("train", (0, 80, 100)),
    ClassDefinition("motorcycle", (0, 0, 230)),
    ClassDefinition("bicycle", (119, 11, 32)),
)
"""Cityscapes' train classes; the index in the tuple is the train id."""

CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of these classes in files named labelIds; the index in the tuple is the train id."""

HIGHEST_LABEL_ID = 34
"""Highest of Cityscapes' label ids: 0 to 33, and 34 for GTA5's license plates."""


def cityscapes_label_ids(ignore_label: int) -> dict[int, int]:
    """Map the ids in Cityscapes' files named labelIds to train ids; void classes and 255 to the ignore label."""
    ignored = {label_id: ignore_label for label_id in (*range(HIGHEST_LABEL_ID + 1), 255)}
    return ignored | {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)}


@dataclass(frozen=True)
class PanopticClasses:
    """The classes of a dataset as train ids, divided into things and stuff.

    Attributes:
        things: ascending; the index in the tuple is the class of a box or a mask.
        stuff: ascending; the index in the tuple plus 1 is the class of a stuff head, in which 0 represents all things.
    """

    things: tuple[int, ...]
    stuff: tuple[int, ...]

    def stuff_labels(self) -> dict[int, int]:
        """Train id -> class of a stuff head."""
        return dict.fromkeys(self.things, 0) | {train_id: place for place, train_id in enumerate(self.stuff, 1)}


_MAPS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")


def panoptic_metadata(classes: Sequence[tuple[str, Color]], things: Sequence[int]) -> dict[str, Any]:
    """Detectron2's metadata of panoptic classes, with train ids as both kinds of category ids.

    Args:
        classes: name and color of each class.
        things: train ids of the classes with instances.
    """
    names, colors = ([entry[place] for entry in classes] for place in (0, 1))
    stuff = [train_id for train_id in range(len(classes)) if train_id not in things]
    metadata = {f"{kind}_classes": names for kind in ("thing", "stuff")}
    metadata |= {f"{kind}_colors": colors for kind in ("thing", "stuff")}
    maps = {key: {train_id: train_id for train_id in ids} for key, ids in zip(_MAPS, (things, stuff), strict=True)}
    return {**metadata, **maps, "label_divisor": LABEL_DIVISOR}


def is_panoptic(dataset_name: str) -> bool:
    """Whether a registered dataset has panoptic labels, also if other code registered it in Detectron2's manner."""
    if dataset_name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(dataset_name)
    return all(metadata.get(key) is not None for key in ("panoptic_json", "label_divisor", *_MAPS))


def panoptic_classes(dataset_name: str) -> PanopticClasses:
    """Things and stuff of a registered dataset.

    Raises:
        ConfigError: if it has no panoptic labels, or its train ids are not consecutive over things and stuff.
    """
    if not is_panoptic(dataset_name):
        raise ConfigError(
            f"dataset {dataset_name} must have panoptic labels for a panoptic model. Use one such as "
            "cityscapes_train_panoptic, or define your own as docs/PANOPTIC.md shows"
        )
    metadata = MetadataCatalog.get(dataset_name)
    things, stuff = (tuple(sorted({int(value) for value in metadata.get(key).values()})) for key in _MAPS)
    if sorted((*things, *stuff)) != list(range(len(metadata.stuff_classes))):
        raise ConfigError(
            f"dataset {dataset_name} must number its things and stuff from 0 to {len(metadata.stuff_classes) - 1}, got "
            f"things {things} and stuff {stuff}. Define it in a YAML file, see docs/PANOPTIC.md"
        )
    return PanopticClasses(things, stuff)


def require_same_things(names: Sequence[str]) -> PanopticClasses:
    """Raise unless all datasets are panoptic and have the same things.

    Args:
        names: registered names, at least one.

    Returns:
        The common classes.

    Raises:
        ConfigError: names two datasets that differ, or one without panoptic labels.
    """
    first = panoptic_classes(names[0])
    for name in names[1:]:
        other = panoptic_classes(name)
        if other != first:
            raise ConfigError(
                f"datasets {names[0]} and {name} must have the same things, got the train ids {list(first.things)} and "
                f"{list(other.things)}. Set 'thing: true' for the same classes in both definitions"
            )
    return first
