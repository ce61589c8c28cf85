"""What a trained network calls its classes, taken along where the data set's definition is not at hand."""

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

from famix.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS
from famix.data.definition import load_definition
from famix.data.panoptic.classes import is_panoptic, panoptic_classes
from famix.data.panoptic.definition import is_panoptic_file, load_panoptic_definition
from famix.data.panoptic.registration import LABEL_DIVISOR
from famix.utils.errors import ClassesError, ConfigError, DatasetError, WeightsError
from famix.utils.messages import first_few

__all__ = ["CLASSES", "SHIPPED", "ClassTable", "classes_in_files", "classes_of", "trained_classes"]

CLASSES = "classes"
"""Entry of a checkpoint, and of SHIPPED, with the table of the classes that it was trained for."""

SHIPPED = "inference"
"""Entry of a stripped checkpoint with what else inference needs: {"config": {key: value}, "classes": a table}."""

Color = tuple[int, int, int]  # red, green, blue, each 0-255


@dataclass(frozen=True)
class ClassTable:
    """The classes that a network tells apart; the place in a tuple is the train id.

    Attributes:
        names: of the K classes.
        colors: of drawings, RGB.
        things: train ids of the classes whose instances count, ascending; empty for a data set without instances.
        ignore_label: of pixels without a class, in the labels that the network was trained with.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    things: tuple[int, ...] = ()
    ignore_label: int = 255

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "ClassTable":
        """Undo `to_dict`.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        names, colors = tuple(map(str, entries["names"])), tuple(map(tuple, entries["colors"]))
        things, ignore_label = tuple(map(int, entries["things"])), int(entries["ignore_label"])
        if not len(names) == len(colors) > 0 or any(len(color) != 3 for color in colors):
            raise ValueError(f"{len(names)} classes with {len(colors)} colours")
        if any(value not in range(256) for color in colors for value in color):
            raise ValueError("colours beyond 0 to 255")
        if any(train_id not in range(len(names)) for train_id in things):
            raise ValueError(f"things {things} beyond the {len(names)} classes")
        return cls(names, colors, things, ignore_label)

    def to_dict(self) -> dict[str, Any]:
        """Lists of strings and numbers, which JSON and torch's safe loader take."""
        return {
            "names": list(self.names),
            "colors": [[int(value) for value in color] for color in self.colors],
            "things": list(self.things),
            "ignore_label": self.ignore_label,
        }

    def cityscapes_label_ids(self) -> NDArray[np.uint8]:
        """Ids that Cityscapes' test server takes.

        Returns:
            (K,), the label id of every train id.

        Raises:
            ConfigError: a class is not one of Cityscapes' nineteen, by its name.
        """
        known = {entry.name: label_id for entry, label_id in zip(CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS, strict=True)}
        strange = [name for name in self.names if name not in known]
        if strange:
            raise ConfigError(
                f"--view cityscapes-ids needs Cityscapes' classes, got a network with {first_few(strange)}. Use --view "
                "labels for its train ids."
            )
        return np.array([known[name] for name in self.names], dtype=np.uint8)

    def require_same(self, present: "ClassTable", checkpoint: str | os.PathLike[str], dataset: str) -> None:
        """Raise unless a dataset has the classes, in their order, that a network was trained for.

        Args:
            present: the dataset's classes; their colours do not matter.
            checkpoint: of the network, for the error.
            dataset: its name, for the error.

        Raises:
            ClassesError: names a class of both that differs.
        """
        if (self.names, self.things) == (present.names, present.things):
            return
        pairs = [
            tuple("no class" if row is None else repr(row[0]) + " (a thing)" * row[1] for row in pair)
            for pair in zip_longest(self._rows(), present._rows())
        ]
        number, (trained, found) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
        count = sum(before != after for before, after in pairs)
        raise ClassesError(
            f"class {number} of {dataset} must be {trained}, as {checkpoint} was trained, got {found}; {count} of the classes "
            "differ. Restore the definition in DATASETS.FILES, of which the run keeps a copy in its folder 'datasets'"
        )

    def _rows(self) -> list[tuple[str, bool]]:
        return [(name, train_id in self.things) for train_id, name in enumerate(self.names)]

    def register(self) -> str:
        """Put the classes into Detectron2's catalogues, as a data set without files, for models that look them up.

        Returns:
            The name of that data set, the same for the same classes.
        """
        content = json.dumps(self.to_dict(), sort_keys=True).encode()
        name = f"classes_{hashlib.sha256(content).hexdigest()[:16]}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, _no_files)
            MetadataCatalog.get(name).set(**self._metadata())
        return name

    def _metadata(self) -> dict[str, Any]:
        names, colors = list(self.names), list(self.colors)
        metadata = {"stuff_classes": names, "stuff_colors": colors, "ignore_label": self.ignore_label}
        if not self.things:
            return metadata
        stuff = [train_id for train_id in range(len(names)) if train_id not in self.things]
        return metadata | {
            "thing_classes": names,
            "thing_colors": colors,
            "thing_dataset_id_to_contiguous_id": {train_id: train_id for train_id in self.things},
            "stuff_dataset_id_to_contiguous_id": {train_id: train_id for train_id in stuff},
            "panoptic_json": "",
            "label_divisor": LABEL_DIVISOR,
        }


def trained_classes(content: Mapping[str, Any]) -> ClassTable | None:
    """The classes that the network of a checkpoint was trained for; None where it does not tell, as those of 0.1.

    Args:
        content: of the checkpoint.

    Raises:
        WeightsError: the entry is damaged.
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
    """The classes of the data sets that a config names.

    Args:
        cfg: reads DATASETS.TRAIN, DATASETS.TEST and MODEL.SEM_SEG_HEAD.
        datasets: names of others, or of a part of them.

    Raises:
        ConfigError: none of its data sets is registered, or the first that is has another number of classes.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if datasets is None else list(datasets)
    known = [name for name in names if name in DatasetCatalog]
    if not known:
        raise ConfigError(
            f"the classes of the config's data sets ({', '.join(names) or 'none'}) are unknown; name their definition in "
            "DATASETS.FILES, register them, or use a checkpoint of tools/export.py --format stripped, which holds them"
        )
    metadata = MetadataCatalog.get(known[0])
    classes, expected = metadata.get("stuff_classes", []), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes) != expected:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {expected}, but data set {known[0]} has {len(classes)} classes; use the "
            "config that the checkpoint was trained with"
        )
    palette = colormap(rgb=True).astype(int).tolist()  # for data sets that other code registered without colours
    colors = metadata.get("stuff_colors") or [palette[index % len(palette)] for index in range(len(classes))]
    things = panoptic_classes(known[0]).things if is_panoptic(known[0]) else ()
    ignore_label = metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    return ClassTable(tuple(classes), tuple(map(tuple, colors)), things, ignore_label)


def classes_in_files(files: Sequence[str], datasets: Sequence[str]) -> ClassTable | None:
    """The classes of the first definition file that defines one of some datasets, none of which need be registered.

    Args:
        files: as in DATASETS.FILES.
        datasets: names, as in DATASETS.TRAIN.

    Returns:
        None where no file defines any of them.

    Raises:
        DatasetError: a file has a mistake.
    """
    for file in files:
        panoptic = is_panoptic_file(file)
        definition = load_panoptic_definition(file) if panoptic else load_definition(file)
        if any(definition.dataset_name(split) in datasets for split in definition.splits):  # type: ignore[arg-type]
            names, colors = zip(*((entry.name, entry.color) for entry in definition.classes), strict=True)
            return ClassTable(names, colors, getattr(definition, "things", ()), definition.ignore_label)
    return None


def _no_files() -> list[dict[str, Any]]:
    raise DatasetError("these are the classes of a trained network, not a data set: there are no images to list")
