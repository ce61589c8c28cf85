"""What a dataset is: where its images and labels lie, its splits, its classes and how label ids map to them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from famix.data.classes import CITYSCAPES_CLASSES, ClassDefinition
from famix.data.fields import Fields, read_yaml
from famix.errors import DatasetError
from famix.wording import did_you_mean

__all__ = ["DATASETS_VARIABLE", "DatasetDefinition", "SplitDefinition", "load_definition"]

DATASETS_VARIABLE = "DETECTRON2_DATASETS"
"""Environment variable of the folder that relative roots start from, as in Detectron2; "datasets" where it is unset."""

_REQUIRED = ("name", "root", "images", "labels", "classes", "label_ids", "splits")
_OPTIONAL = ("other_ids", "label_channel", "ignore_label")
_SPLIT_KEYS = ("folder", "keys", "skip")
_IGNORE = "ignore"
_MAX_ID = 65535


@dataclass(frozen=True)
class SplitDefinition:
    """A part of a dataset, registered as <dataset>_<name>.

    Attributes:
        name: e.g. "train".
        folder: what {split} stands for in the path templates; may be empty or several folders deep.
        keys: file with one key a line, relative to the root, that limits the split; None takes every image.
        skip: keys that are left out.
    """

    name: str
    folder: str
    keys: str | None = None
    skip: frozenset[str] = frozenset()


@dataclass(frozen=True)
class DatasetDefinition:
    """A dataset as a definition file describes it, complete and checked.

    Attributes:
        name: prefix of the registered names.
        root: folder of the dataset as written, see `root_folder`.
        images, labels: path templates below the root with {key} and perhaps {split}.
        classes: the classes; the place in the tuple is the train id.
        label_ids: id in the label files -> train id, or `ignore_label`.
        other_ids_ignored: ids that `label_ids` lacks are ignored; otherwise they are an error.
        label_channel: 0, 1, 2 (red, green, blue) or 3 (alpha) of multi-channel labels; None for labels of one channel.
        ignore_label: value of pixels that count neither in the loss nor in the score, 0-255.
        splits: the parts of the dataset, in the file's order.
        source: the definition file.
    """

    name: str
    root: str
    images: str
    labels: str
    classes: tuple[ClassDefinition, ...]
    label_ids: Mapping[int, int]
    other_ids_ignored: bool
    label_channel: int | None
    ignore_label: int
    splits: tuple[SplitDefinition, ...]
    source: str = field(compare=False)

    def dataset_name(self, split: SplitDefinition) -> str:
        """Name under which a split is registered."""
        return f"{self.name}_{split.name}"

    def root_folder(self) -> str:
        """Absolute folder of the dataset, from today's environment variables.

        Raises:
            DatasetError: the root names an environment variable that is not set.
        """
        below = os.environ.get(DATASETS_VARIABLE, "datasets")
        path = os.path.join(below, os.path.expanduser(os.path.expandvars(self.root)))
        if "$" in path:
            raise DatasetError(
                f"{self.source}: key 'root': got {self.root!r}, in which an environment variable is not set. "
                "Set it, or write the folder itself."
            )
        return os.path.abspath(os.path.expanduser(path))


def load_definition(path: str | os.PathLike[str]) -> DatasetDefinition:
    """Read a definition file; datasets/README.md describes the format.

    Args:
        path: a YAML file.

    Returns:
        The definition. No image folder is touched.

    Raises:
        DatasetError: the file is missing, is no YAML, or has an unknown, missing, repeated or wrong entry.
    """
    file = Path(path)
    fields = Fields(file, read_yaml(file), _REQUIRED + _OPTIONAL)
    classes = _read_classes(fields)
    ignore_label = _read_ignore_label(fields, len(classes))
    images, labels = _read_templates(fields)
    return DatasetDefinition(
        name=_read_name(fields),
        root=fields.required("root", str),
        images=images,
        labels=labels,
        classes=classes,
        label_ids=_read_label_ids(fields, classes, ignore_label),
        other_ids_ignored=_read_other_ids(fields),
        label_channel=_read_label_channel(fields),
        ignore_label=ignore_label,
        splits=_read_splits(fields, images),
        source=str(file),
    )


def _read_name(fields: Fields) -> str:
    name = fields.required("name", str)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise fields.error("name", name, "letters, digits, '_', '-' and '.'")
    return name


def _read_templates(fields: Fields) -> tuple[str, str]:
    images, labels = fields.required("images", str), fields.required("labels", str)
    for key, template in (("images", images), ("labels", labels)):
        placeholders = re.findall(r"{[^}]*}", template)
        if placeholders.count("{key}") != 1 or set(placeholders) - {"{key}", "{split}"}:
            raise fields.error(key, template, "a path with {key} once and, where splits are folders, {split}")
        if os.path.isabs(template) or ".." in template.split("/"):
            raise fields.error(key, template, "a path below the root")
    if images == labels:
        raise fields.error("labels", labels, "another path than that of the images")
    return images, labels


def _read_classes(fields: Fields) -> tuple[ClassDefinition, ...]:
    value = fields.any_of("classes")
    if value == "cityscapes":
        return CITYSCAPES_CLASSES
    if not isinstance(value, list) or not value:
        raise fields.error("classes", value, "'cityscapes' or a list of {name: ..., color: [red, green, blue]}")
    classes = tuple(_read_class(fields, index, entry) for index, entry in enumerate(value))
    names = [entry.name for entry in classes]
    for name in names:
        if names.count(name) > 1:
            raise fields.error("classes", name, "every name once")
    return classes


def _read_class(fields: Fields, index: int, entry: object) -> ClassDefinition:
    inner = Fields(fields.file, entry, ("name", "color"), within=fields.path(f"classes.{index}"))
    name, color = inner.required("name", str), inner.required("color", list)
    if not name.strip() or name == _IGNORE:
        raise inner.error("name", name, f"a name, other than '{_IGNORE}', which marks pixels without a class")
    if len(color) != 3 or any(type(value) is not int or not 0 <= value <= 255 for value in color):
        raise inner.error("color", color, "[red, green, blue] with values from 0 to 255")
    return ClassDefinition(name, (color[0], color[1], color[2]))


def _read_ignore_label(fields: Fields, num_classes: int) -> int:
    value = fields.optional("ignore_label", int)
    value = 255 if value is None else value
    if not num_classes <= value <= 255:
        raise fields.error("ignore_label", value, f"a number from {num_classes} (the number of classes) to 255")
    return value


def _read_label_ids(fields: Fields, classes: tuple[ClassDefinition, ...], ignore_label: int) -> Mapping[int, int]:
    if fields.any_of("label_ids") == "identity":
        return {index: index for index in range(len(classes))} | {ignore_label: ignore_label}
    train_ids = {entry.name: index for index, entry in enumerate(classes)} | {_IGNORE: ignore_label}
    ids = {}
    for raw, name in fields.required("label_ids", dict).items():
        if type(raw) is not int or not 0 <= raw <= _MAX_ID:
            raise fields.error("label_ids", raw, f"label ids from 0 to {_MAX_ID}, or 'identity'")
        if not isinstance(name, str) or name not in train_ids:
            expected = f"a class name or '{_IGNORE}'; the classes are {', '.join(c.name for c in classes)}"
            raise fields.error(f"label_ids.{raw}", name, expected, did_you_mean(name, train_ids))
        ids[raw] = train_ids[name]
    return ids


def _read_other_ids(fields: Fields) -> bool:
    value = fields.any_of("other_ids")
    if value not in (None, "error", _IGNORE):
        raise fields.error("other_ids", value, f"'{_IGNORE}' or 'error'")
    return value == _IGNORE


def _read_label_channel(fields: Fields) -> int | None:
    value = fields.optional("label_channel", int)
    if value is not None and not 0 <= value <= 3:
        raise fields.error("label_channel", value, "0, 1 or 2 (red, green, blue) or 3 (alpha)")
    return value


def _read_splits(fields: Fields, images: str) -> tuple[SplitDefinition, ...]:
    entries = fields.required("splits", dict)
    if not entries:
        raise fields.error("splits", entries, "at least one split, such as {train: {}}")
    splits = tuple(_read_split(fields, name, entry) for name, entry in entries.items())
    whole = [split.name for split in splits if split.keys is None]
    if "{split}" not in images and len(whole) > 1:
        raise fields.error(
            "splits", whole, "at most one split without 'keys', since 'images' has no {split} to tell them apart"
        )
    return splits


def _read_split(fields: Fields, name: object, entry: object) -> SplitDefinition:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise fields.error("splits", name, "names of letters, digits, '_', '-' and '.'")
    inner = Fields(fields.file, {} if entry is None else entry, _SPLIT_KEYS, within=fields.path(f"splits.{name}"))
    folder = inner.optional("folder", str)
    skip = inner.optional("skip", list) or []
    for key in skip:
        if not isinstance(key, str):
            raise inner.error("skip", key, "keys as texts, in quotes where they look like numbers")
    return SplitDefinition(name, name if folder is None else folder, inner.optional("keys", str), frozenset(skip))
