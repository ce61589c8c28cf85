"""Classes of datasets and networks: the Cityscapes classes, and the division into things (with instances) and stuff."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.utils.colormap import colormap
from numpy.typing import NDArray

from famix.utils.errors import ClassesError, ConfigError, DatasetError, WeightsError
from famix.utils.messages import first_few

LABEL_DIVISOR = 1000
"""Divisor in the segment ids of Panoptic-DeepLab: train id * LABEL_DIVISOR + instance number."""

CLASSES = "classes"
"""Key in a checkpoint, or in its SHIPPED entry, for the table of classes that the network was trained on."""

SHIPPED = "inference"
"""Key in a stripped inference checkpoint for {"config": {key: value}, "classes": class table}."""

_MAPS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")

Color = tuple[int, int, int]  # red, green, blue, each 0-255


@dataclass(frozen=True)
class ClassDefinition:
    """A class that a network learns to predict."""

    name: str  # unique within the dataset; used in style prompts
    color: Color  # for visualizations


CITYSCAPES_CLASSES = tuple(ClassDefinition(entry["name"], tuple(entry["color"])) for entry in CITYSCAPES_CATEGORIES)
"""The nineteen Cityscapes classes, indexed by train id."""

CITYSCAPES_LABEL_IDS = tuple(entry["id"] for entry in CITYSCAPES_CATEGORIES)
"""Label ids of these classes in labelIds files, indexed by train id."""

CITYSCAPES_THINGS = tuple(entry["trainId"] for entry in CITYSCAPES_CATEGORIES if entry["isthing"])
"""Train ids of the classes with instances (person to bicycle)."""

HIGHEST_LABEL_ID = 34
"""Highest Cityscapes label id: 0 to 33, plus 34 for license plates in GTA5."""


def cityscapes_label_ids(ignore_label: int) -> dict[int, int]:
    """Map the ids in Cityscapes' labelIds files to train ids. Void classes and 255 map to the ignore label."""
    ignored = {label_id: ignore_label for label_id in (*range(HIGHEST_LABEL_ID + 1), 255)}
    return ignored | {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)}


@dataclass(frozen=True)
class PanopticClasses:
    """Train ids of a dataset's classes, divided into things and stuff."""

    things: tuple[int, ...]  # ascending; the index is the class of a box or mask
    stuff: tuple[int, ...]  # ascending; the index plus 1 is the class in a stuff head, where 0 covers all things

    def stuff_labels(self) -> dict[int, int]:
        """Return a mapping from train id to the class in a stuff head."""
        return dict.fromkeys(self.things, 0) | {train_id: place for place, train_id in enumerate(self.stuff, 1)}


def is_panoptic(dataset_name: str) -> bool:
    """Return whether a dataset is registered with panoptic labels, by FAMix or in Detectron2's format."""
    if dataset_name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(dataset_name)
    return all(metadata.get(key) is not None for key in ("panoptic_json", "label_divisor", *_MAPS))


def panoptic_classes(dataset_name: str) -> PanopticClasses:
    """Return the things and stuff of a registered dataset. Raises a ConfigError if it has no panoptic labels."""
    if not is_panoptic(dataset_name):
        raise ConfigError(
            f"Dataset '{dataset_name}' has no panoptic labels, which a panoptic model requires. Use a dataset such as "
            "cityscapes_train_panoptic, or define your own as shown in docs/PANOPTIC.md."
        )
    metadata = MetadataCatalog.get(dataset_name)
    things, stuff = (tuple(sorted({int(value) for value in metadata.get(key).values()})) for key in _MAPS)
    if sorted((*things, *stuff)) != list(range(len(metadata.stuff_classes))):
        raise ConfigError(
            f"Dataset '{dataset_name}': the ids of things and stuff must cover 0 to {len(metadata.stuff_classes) - 1}, "
            f"got {things} for things and {stuff} for stuff. Define it in a YAML file (see docs/PANOPTIC.md)."
        )
    return PanopticClasses(things, stuff)


def require_same_things(names: Sequence[str]) -> PanopticClasses:
    """Return the things and stuff that registered datasets share. Raises a ConfigError if they differ."""
    first = panoptic_classes(names[0])
    for name in names[1:]:
        other = panoptic_classes(name)
        if other != first:
            raise ConfigError(
                f"Datasets '{names[0]}' and '{name}' define different things: train ids {list(first.things)} and "
                f"{list(other.things)}. Set 'thing: true' for the same classes in both definitions."
            )
    return first


@dataclass(frozen=True)
class ClassTable:
    """Classes of a trained network, stored in its checkpoint so that it does not depend on the dataset definition."""

    names: tuple[str, ...]  # by train id
    colors: tuple[Color, ...]
    things: tuple[int, ...] = ()  # train ids, ascending; empty for a dataset without instances
    ignore_label: int = 255

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "ClassTable":
        """Restore a table from `to_dict`. Malformed entries raise a ValueError, TypeError or KeyError."""
        names, colors = tuple(map(str, entries["names"])), tuple(map(tuple, entries["colors"]))
        things, ignore_label = tuple(map(int, entries["things"])), int(entries["ignore_label"])
        if not len(names) == len(colors) > 0:
            raise ValueError(f"{len(names)} classes with {len(colors)} colors")
        if any(len(color) != 3 or any(value not in range(256) for value in color) for color in colors):
            raise ValueError("colors must be three values from 0 to 255")
        if any(train_id not in range(len(names)) for train_id in things):
            raise ValueError(f"things {things} exceed the {len(names)} classes")
        return cls(names, colors, things, ignore_label)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain data, for JSON and torch's safe loader."""
        return {
            "names": list(self.names),
            "colors": [[int(value) for value in color] for color in self.colors],
            "things": list(self.things),
            "ignore_label": self.ignore_label,
        }

    def metadata(self) -> dict[str, Any]:
        """Return the entries for Detectron2's MetadataCatalog. Contiguous ids are train ids."""
        names, colors = list(self.names), list(self.colors)
        entries = {"stuff_classes": names, "stuff_colors": colors, "ignore_label": self.ignore_label}
        if not self.things:
            return entries
        stuff = [train_id for train_id in range(len(names)) if train_id not in self.things]
        maps = {
            key: {train_id: train_id for train_id in ids} for key, ids in zip(_MAPS, (self.things, stuff), strict=True)
        }
        return {**entries, "thing_classes": names, "thing_colors": colors, **maps, "label_divisor": LABEL_DIVISOR}

    def cityscapes_label_ids(self) -> NDArray[np.uint8]:
        """Return the Cityscapes label id for each train id (K,), as required by the Cityscapes test server.

        Raises a ConfigError if a class name is not one of the nineteen Cityscapes classes.
        """
        known = {entry.name: label_id for entry, label_id in zip(CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS, strict=True)}
        unknown = [name for name in self.names if name not in known]
        if unknown:
            raise ConfigError(
                f"--view cityscapes-ids requires Cityscapes classes, but the network has {first_few(unknown)}. Use "
                "--view labels to get train ids."
            )
        return np.array([known[name] for name in self.names], dtype=np.uint8)

    def require_same(self, present: "ClassTable", checkpoint: str | os.PathLike[str], dataset: str) -> None:
        """Raise a ClassesError unless a dataset has the same classes, in the same order, as a trained network.

        Args:
            present: classes of the dataset, which may have different colors.
            checkpoint: path of the network's checkpoint, for the error message.
            dataset: name of the dataset, for the error message.
        """
        if (self.names, self.things) == (present.names, present.things):
            return
        titles = (
            [repr(name) + " (a thing)" * (train_id in table.things) for train_id, name in enumerate(table.names)]
            for table in (self, present)
        )
        pairs = enumerate(zip_longest(*titles, fillvalue="no class"))
        differing = [(train_id, before, after) for train_id, (before, after) in pairs if before != after]
        train_id, trained, found = differing[0]
        raise ClassesError(
            f"Checkpoint '{checkpoint}' and dataset '{dataset}' have different classes. For class {train_id}, the "
            f"checkpoint has {trained} and the dataset has {found}; {len(differing)} class(es) differ. Restore the "
            "original definition in DATASETS.FILES; the 'datasets' folder in the run directory contains a copy."
        )

    def register(self) -> str:
        """Register the classes in Detectron2's catalogs as a dataset without files, and return its name.

        Models look up their classes there. Equal class tables get the same name.
        """
        content = json.dumps(self.to_dict(), sort_keys=True).encode()
        name = f"classes_{hashlib.sha256(content).hexdigest()[:16]}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, _no_files)
            panoptic = {"panoptic_json": ""} if self.things else {}
            MetadataCatalog.get(name).set(**self.metadata(), **panoptic)
        return name


def _no_files() -> list[dict[str, Any]]:
    raise DatasetError("This entry contains only the classes of a trained network; there are no images to list.")


def trained_classes(content: Mapping[str, Any]) -> ClassTable | None:
    """Return the classes stored in a checkpoint, or None if it has none. Checkpoints from release 0.1 have none."""
    holder = content if CLASSES in content else content.get(SHIPPED)
    if not isinstance(holder, Mapping) or CLASSES not in holder:
        return None
    try:
        return ClassTable.from_dict(holder[CLASSES])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"The checkpoint is damaged: cannot read its entry '{CLASSES}' ({type(error).__name__}: {error})."
        ) from error


def classes_of(cfg: CfgNode, datasets: Sequence[str] | None = None) -> ClassTable:
    """Return the classes of the datasets in a config.

    Args:
        cfg: config; uses DATASETS.TRAIN, DATASETS.TEST and MODEL.SEM_SEG_HEAD.
        datasets: dataset names to use instead of those in the config.

    Raises:
        ConfigError: no dataset is registered, or the first registered one does not have NUM_CLASSES classes.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if datasets is None else list(datasets)
    known = [name for name in names if name in DatasetCatalog]
    if not known:
        raise ConfigError(
            f"No dataset in the config ({', '.join(names) or 'none'}) is registered, so the classes are unknown. Add "
            "their definition file to DATASETS.FILES, register the datasets, or use a checkpoint created by "
            "tools/export.py --format stripped, which contains the classes."
        )
    metadata = MetadataCatalog.get(known[0])
    classes, expected = metadata.get("stuff_classes", []), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes) != expected:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {expected}, but dataset '{known[0]}' has {len(classes)} classes. Use "
            "the config that the checkpoint was trained with."
        )
    palette = colormap(rgb=True).astype(int).tolist()  # for datasets that other code registered without colors
    colors = metadata.get("stuff_colors") or [palette[index % len(palette)] for index in range(len(classes))]
    things = panoptic_classes(known[0]).things if is_panoptic(known[0]) else ()
    ignore_label = metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    return ClassTable(tuple(classes), tuple(map(tuple, colors)), things, ignore_label)
