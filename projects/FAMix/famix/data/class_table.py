"""The classes of a trained network, stored with its checkpoint to be independent of the dataset's definition."""

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
from detectron2.utils.colormap import colormap
from numpy.typing import NDArray

from famix.data.classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_LABEL_IDS,
    Color,
    is_panoptic,
    panoptic_classes,
    panoptic_metadata,
)
from famix.data.definition import PanopticDefinition
from famix.data.definition_file import load_definition
from famix.utils.errors import ClassesError, ConfigError, DatasetError, WeightsError
from famix.utils.messages import first_few

__all__ = ["CLASSES", "SHIPPED", "ClassTable", "classes_in_files", "classes_of", "trained_classes"]

CLASSES = "classes"
"""Entry of a checkpoint, and of SHIPPED, with the table of the classes that the network was trained for."""

SHIPPED = "inference"
"""Entry of a stripped checkpoint for inference: {"config": {key: value}, "classes": a table}."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a network; the index in a tuple is the train id.

    Attributes:
        names: of the K classes.
        colors: of drawings, RGB.
        things: train ids of the classes with instances, ascending; empty for a dataset without instances.
        ignore_label: of pixels without a class, in the labels that the network was trained with.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    things: tuple[int, ...] = ()
    ignore_label: int = 255

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "ClassTable":
        """Invert `to_dict`; raises ValueError, TypeError or KeyError for other entries."""
        names, colors = tuple(map(str, entries["names"])), tuple(map(tuple, entries["colors"]))
        things, ignore_label = tuple(map(int, entries["things"])), int(entries["ignore_label"])
        if not len(names) == len(colors) > 0 or any(len(color) != 3 for color in colors):
            raise ValueError(f"{len(names)} classes with {len(colors)} colors")
        if any(value not in range(256) for color in colors for value in color):
            raise ValueError("colors must be from 0 to 255")
        if any(train_id not in range(len(names)) for train_id in things):
            raise ValueError(f"things {things} exceed the {len(names)} classes")
        return cls(names, colors, things, ignore_label)

    def to_dict(self) -> dict[str, Any]:
        """Lists of strings and numbers, for JSON and torch's safe loader."""
        return {
            "names": list(self.names),
            "colors": [[int(value) for value in color] for color in self.colors],
            "things": list(self.things),
            "ignore_label": self.ignore_label,
        }

    def cityscapes_label_ids(self) -> NDArray[np.uint8]:
        """Label ids (K,) of the train ids, for Cityscapes' test server.

        Raises:
            ConfigError: if a class, by its name, is not one of Cityscapes' nineteen.
        """
        known = {entry.name: label_id for entry, label_id in zip(CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS, strict=True)}
        unknown = [name for name in self.names if name not in known]
        if unknown:
            raise ConfigError(
                f"--view cityscapes-ids needs a network with Cityscapes' classes, got {first_few(unknown)}. Use --view "
                "labels for its train ids."
            )
        return np.array([known[name] for name in self.names], dtype=np.uint8)

    def require_same(self, present: "ClassTable", checkpoint: str | os.PathLike[str], dataset: str) -> None:
        """Raise unless a dataset has the classes of this table in the same order.

        Args:
            present: classes of the dataset; their colors may differ.
            checkpoint: of the network, named in the error.
            dataset: its name, named in the error.

        Raises:
            ClassesError: names a class that differs.
        """
        if (self.names, self.things) == (present.names, present.things):
            return
        rows = ([(name, place in table.things) for place, name in enumerate(table.names)] for table in (self, present))
        pairs = [
            tuple("no class" if row is None else repr(row[0]) + " (a thing)" * row[1] for row in pair)
            for pair in zip_longest(*rows)
        ]
        number, (trained, found) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
        count = sum(before != after for before, after in pairs)
        raise ClassesError(
            f"class {number} of {dataset} must be {trained}, as {checkpoint} was trained, got {found}; {count} of the "
            "classes differ. Restore the definition in DATASETS.FILES; the run keeps a copy in its folder 'datasets'"
        )

    def register(self) -> str:
        """Register the classes in Detectron2's catalogs as a dataset without files, for models that look them up.

        Returns:
            Name of the dataset, equal for equal classes.
        """
        content = json.dumps(self.to_dict(), sort_keys=True).encode()
        name = f"classes_{hashlib.sha256(content).hexdigest()[:16]}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, _no_files)
            metadata = {"stuff_classes": list(self.names), "stuff_colors": list(self.colors)}
            if self.things:
                entries = list(zip(self.names, self.colors, strict=True))
                metadata = {**panoptic_metadata(entries, self.things), "panoptic_json": ""}
            MetadataCatalog.get(name).set(**metadata, ignore_label=self.ignore_label)
        return name


def _no_files() -> list[dict[str, Any]]:
    raise DatasetError("these are the classes of a trained network, not a dataset: there are no images to list")


def trained_classes(content: Mapping[str, Any]) -> ClassTable | None:
    """The classes that a network was trained for, or None if its checkpoint lacks them, as those of release 0.1.

    Args:
        content: of the checkpoint.

    Raises:
        WeightsError: if the entry is damaged.
    """
    holder = content if CLASSES in content else content.get(SHIPPED)
    if not isinstance(holder, Mapping) or CLASSES not in holder:
        return None
    try:
        return ClassTable.from_dict(holder[CLASSES])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"the checkpoint is damaged: its entry '{CLASSES}' cannot be read ({type(error).__name__}: {error})"
        ) from error


def classes_of(cfg: CfgNode, datasets: Sequence[str] | None = None) -> ClassTable:
    """The classes of the datasets in a config.

    Args:
        cfg: reads DATASETS.TRAIN, DATASETS.TEST and MODEL.SEM_SEG_HEAD.
        datasets: names to use instead of those in the config.

    Raises:
        ConfigError: if no dataset is registered, or the first registered one has another number of classes.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if datasets is None else list(datasets)
    known = [name for name in names if name in DatasetCatalog]
    if not known:
        raise ConfigError(
            f"the classes of the config's datasets ({', '.join(names) or 'none'}) are unknown; name their definition in "
            "DATASETS.FILES, register them, or use a checkpoint of tools/export.py --format stripped, which contains them"
        )
    metadata = MetadataCatalog.get(known[0])
    classes, expected = metadata.get("stuff_classes", []), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes) != expected:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES must be {len(classes)}, the number of classes of {known[0]}, got {expected}. "
            "Use the config that the checkpoint was trained with"
        )
    palette = colormap(rgb=True).astype(int).tolist()  # for datasets that other code registered without colors
    colors = metadata.get("stuff_colors") or [palette[index % len(palette)] for index in range(len(classes))]
    things = panoptic_classes(known[0]).things if is_panoptic(known[0]) else ()
    ignore_label = metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    return ClassTable(tuple(classes), tuple(map(tuple, colors)), things, ignore_label)


def classes_in_files(files: Sequence[str], datasets: Sequence[str]) -> ClassTable | None:
    """The classes of the first definition file that defines one of some datasets, registered or not.

    Args:
        files: as in DATASETS.FILES.
        datasets: names, as in DATASETS.TRAIN.

    Returns:
        None if no file defines any of them.

    Raises:
        DatasetError: if a file has a mistake.
    """
    for definition in map(load_definition, files):
        if any(definition.dataset_name(split) in datasets for split in definition.splits):
            names, colors = zip(*((entry.name, entry.color) for entry in definition.classes), strict=True)
            things = definition.things if isinstance(definition, PanopticDefinition) else ()
            return ClassTable(names, colors, things, definition.ignore_label)
    return None
