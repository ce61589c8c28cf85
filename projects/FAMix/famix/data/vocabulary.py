"""Class names that a config adds to or removes from those of the datasets: TEST.CLASSES as a list, and DATASETS.UNLABELED."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.colormap import colormap
from numpy.typing import NDArray

from famix.data.classes import ClassTable, classes_of, is_panoptic, panoptic_classes
from famix.data.meta_architecture import trains_on
from famix.io import read_text
from famix.utils.errors import ConfigError, CorruptFileError
from famix.utils.messages import did_you_mean, first_few, shown
from famix.utils.paths import local_path

IGNORED = 255
"""Ignore label of classes that TEST.CLASSES lists."""

_SEPARATOR, _SYNONYM_SEPARATOR, _COMMENT, _FILE_SUFFIX = ";", ",", "#", ".txt"
_MAX_BYTES = 1 << 22
_EXAMPLE = "Use e.g. \"['road', 'car, automobile']\", or a .txt file with one class per line."

Synonyms = tuple[tuple[str, ...], ...]  # for each class, its names; the first one identifies the class


@dataclass(frozen=True)
class Vocabulary:
    """Classes that TEST.CLASSES lists for predictions, which replace those of the training datasets."""

    synonyms: Synonyms
    table: ClassTable  # named after the first synonyms

    def ids_in(self, dataset_name: str) -> NDArray[np.uint8]:
        """Return a lookup table (256,) from the train ids of a registered dataset to the listed classes, or IGNORED.

        Raises:
            ConfigError: the list lacks a class that labels of the dataset can contain.
        """
        needed = _labeled_names(dataset_name)
        missing = [name for name in needed.values() if name not in self.table.names]
        if missing:
            raise ConfigError(
                f"TEST.CLASSES must list all classes in the labels of '{dataset_name}', got a list without "
                f"{first_few(missing, 20)}. Add an entry that begins with each missing name."
            )
        if len(self.table.names) > IGNORED:
            raise ConfigError(
                f"TEST.CLASSES must list at most {IGNORED} classes for evaluation, got {len(self.table.names)}. Shorten the list."
            )
        ids = np.full(256, IGNORED, dtype=np.uint8)
        for train_id, name in needed.items():
            ids[train_id] = self.table.names.index(name)
        return ids


def vocabulary_of(cfg: CfgNode) -> Vocabulary | None:
    """Return the classes that TEST.CLASSES lists, or None if it selects a subset of the dataset's classes.

    Classes keep the color that they have in the training dataset. They are things if they are things in a panoptic dataset
    of the config.

    Raises:
        ConfigError: the list is invalid, or the network cannot predict classes by name.
    """
    synonyms = listed_classes(cfg.TEST.CLASSES)
    if not synonyms:
        return None
    options = cfg.MODEL.MASK_FORMER
    if "segments" not in trains_on(cfg) or (options.QUERIES, options.CLASSIFIER) != ("learned", "text"):
        raise ConfigError(
            "TEST.CLASSES must be a subset such as all for a network without text classifier, got a list of "
            f"{len(synonyms)} classes for {cfg.MODEL.META_ARCHITECTURE} with MODEL.MASK_FORMER.QUERIES {options.QUERIES} and "
            f"CLASSIFIER {options.CLASSIFIER}. Set TEST.CLASSES to all, or train FAMixMaskFormer with learned queries and "
            "MODEL.MASK_FORMER.CLASSIFIER text."
        )
    trained, names = classes_of(cfg), [entry[0] for entry in synonyms]
    known = dict(zip(trained.names, trained.colors, strict=True))
    unused = (color for color in map(tuple, colormap(rgb=True).astype(int).tolist()) if color not in trained.colors)
    colors = [known.get(name) or next(unused, (128, 128, 128)) for name in names]
    datasets = [name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if is_panoptic(name)]
    thing_names = {
        MetadataCatalog.get(name).stuff_classes[train_id]
        for name in datasets
        for train_id in panoptic_classes(name).things
    }
    things = tuple(place for place, name in enumerate(names) if name in thing_names)
    return Vocabulary(synonyms, ClassTable(tuple(names), tuple(colors), things, IGNORED))


def unlabeled_classes(cfg: CfgNode) -> tuple[int, ...]:
    """Return the train ids of the classes in DATASETS.UNLABELED, in ascending order.

    Raises:
        ConfigError: a name is unknown or repeated, or no class remains.
    """
    unlabeled = list(cfg.DATASETS.UNLABELED)
    if not unlabeled:
        return ()
    names = classes_of(cfg).names
    for name in unlabeled:
        if name not in names:
            raise ConfigError(
                f"DATASETS.UNLABELED must contain classes of DATASETS.TRAIN, got {shown(name)}."
                f"{did_you_mean(name, names)} The classes are {', '.join(names)}."
            )
        if unlabeled.count(name) > 1:
            raise ConfigError(f"DATASETS.UNLABELED must not repeat classes, got {name!r} twice. Remove one of them.")
    if len(unlabeled) == len(names):
        raise ConfigError(f"DATASETS.UNLABELED must leave at least one class, got all {len(names)}. Shorten the list.")
    return tuple(sorted(map(names.index, unlabeled)))


def unseen_names(cfg: CfgNode, names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the given class names that have no labels in training, in their order.

    Without DATASETS.UNLABELED and a list in TEST.CLASSES, all classes of the datasets count as labeled.
    """
    if not cfg.DATASETS.UNLABELED and not listed_classes(cfg.TEST.CLASSES):
        return ()
    unlabeled = unlabeled_classes(cfg)
    seen = {name for train_id, name in enumerate(classes_of(cfg).names) if train_id not in unlabeled}
    return tuple(name for name in names if name not in seen)


def listed_classes(text: str) -> Synonyms:
    """Return the classes that a value of TEST.CLASSES from `join_classes` lists, or () for the name of a subset.

    Raises:
        ConfigError: the list is empty, or a name is empty or repeated.
    """
    if _SEPARATOR not in text:
        if not text.strip():
            raise ConfigError(f"TEST.CLASSES must not be empty, got {text!r}. {_EXAMPLE}")
        return ()
    lines = text.strip().removesuffix(_SEPARATOR).split(_SEPARATOR)
    synonyms = tuple(tuple(map(str.strip, line.split(_SYNONYM_SEPARATOR))) for line in lines)
    names = [name for entry in synonyms for name in entry]
    if not all(names):
        raise ConfigError(f"TEST.CLASSES must not contain empty names, got {shown(text)}. {_EXAMPLE}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"TEST.CLASSES must not repeat names, got {first_few(repeated)} more than once. Keep one class for each name."
        )
    return synonyms


def join_classes(value: Any) -> Any:
    """Return TEST.CLASSES as one string: a list becomes "road; car, automobile". Values other than lists are kept.

    Raises:
        ConfigError: the list is empty, or an entry is not a name.
    """
    entries = (
        CfgNode._decode_cfg_value(value) if isinstance(value, str) and value.lstrip().startswith(("[", "(")) else value
    )
    if not isinstance(entries, list | tuple):
        return value
    if not entries:
        raise ConfigError(f"TEST.CLASSES must not be empty, got {shown(entries)}. {_EXAMPLE}")
    for entry in entries:
        if not isinstance(entry, str) or _SEPARATOR in entry:
            raise ConfigError(
                f"TEST.CLASSES must list names separated by commas, got the entry {shown(entry)}. {_EXAMPLE}"
            )
    return f"{_SEPARATOR} ".join(map(str.strip, entries)) + _SEPARATOR


def read_classes(value: str) -> str:
    """Replace the path of a .txt file in TEST.CLASSES with its content, one class per line, as in `join_classes`.

    Empty lines and lines that start with "#" are skipped. Other values are kept.

    Raises:
        ConfigError: the file is missing, is not text or lists no class.
    """
    if not value.endswith(_FILE_SUFFIX) or _SEPARATOR in value:
        return value
    path = local_path(value, "TEST.CLASSES")
    try:
        lines = map(str.strip, read_text(path, _MAX_BYTES).splitlines())
    except FileNotFoundError as error:
        raise ConfigError(f"TEST.CLASSES file not found: '{path}'. Correct the path, or list the classes.") from error
    except (OSError, CorruptFileError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read TEST.CLASSES '{path}': {error}. Use a text file with one class per line."
        ) from error
    names = [line for line in lines if line and not line.startswith(_COMMENT)]
    if not names:
        raise ConfigError(f"TEST.CLASSES file '{path}' lists no class. Write one class per line.")
    text: str = join_classes(names)
    return text


def _labeled_names(dataset_name: str) -> dict[int, str]:
    """Return train id -> name for the classes that labels of a registered dataset can contain, or for all if unknown."""
    metadata = MetadataCatalog.get(dataset_name)
    definition = metadata.get("definition")
    encodings = [layout.encoding for layout in getattr(definition, "layouts", ())]
    mappings = [mapping for encoding in encodings for mapping in (encoding.label_ids, encoding.label_names)]
    mappings.append(getattr(definition, "categories", {}))
    found = {train_id for mapping in mappings for train_id in mapping.values()}
    return {train_id: name for train_id, name in enumerate(metadata.stuff_classes) if train_id in found or not found}
