"""What a panoptic dataset is: where its images, PNGs and JSON files lie, and which of its categories are which class."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from famix.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS, ClassDefinition
from famix.data.definition import read_domain, read_ignore_label, read_name, require_numbered_by_a_byte, resolve_root
from famix.data.schema import Fields, read_yaml
from famix.utils.messages import did_you_mean

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "CITYSCAPES_THINGS",
    "PanopticDefinition",
    "is_panoptic_file",
    "load_panoptic_definition",
]

CITYSCAPES_THINGS = tuple(range(11, 19))
"""Train ids of Cityscapes' classes with instances: person to bicycle."""

CITYSCAPES_CATEGORIES: Mapping[int | str, int] = {
    label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)
}
"""Cityscapes' label id, by which its panoptic JSON files call a category -> train id."""

_IGNORE = "ignore"
_KEYS = (
    *("name", "root", "domain", "images", "panoptic_root", "panoptic_json"),
    *("classes", "categories", "other_categories", "ignore_label", "splits"),
)


@dataclass(frozen=True)
class PanopticDefinition:
    """A dataset in COCO's panoptic format: PNGs of segments, and JSON files that tell their categories.

    Attributes:
        name: the split "train" is registered as <name>_train_panoptic.
        root: folder of the dataset as written, see `root_folder`.
        images: path template of the images below the root, with {key} and perhaps {split}.
        panoptic_root: template of the folder of the PNGs, as Detectron2's metadata call it.
        panoptic_json: template of the JSON file.
        classes: the place in the tuple is the train id.
        things: train ids of the classes whose instances count, ascending.
        categories: id or name of a category in the JSON files -> train id, or the ignore label; empty: a category is
            the class of the same name.
        other_categories_ignored: segments of other categories count as unlabelled; otherwise they are an error.
        ignore_label: value of unlabelled pixels in semantic labels, 0-255.
        splits: name of a part -> what {split} stands for.
        source: the definition file, named in errors.
        domains: name of a split -> what its images show, e.g. "gta5"; splits that are not there leave it to the name.
    """

    name: str
    root: str
    images: str
    panoptic_root: str
    panoptic_json: str
    splits: Mapping[str, str]
    classes: tuple[ClassDefinition, ...] = CITYSCAPES_CLASSES
    things: tuple[int, ...] = CITYSCAPES_THINGS
    categories: Mapping[int | str, int] = field(default_factory=dict)
    other_categories_ignored: bool = False
    ignore_label: int = 255
    source: str = field(default="FAMix's own table", compare=False)
    domains: Mapping[str, str] = field(default_factory=dict)

    def dataset_name(self, split: str) -> str:
        """Name under which a split is registered."""
        return f"{self.name}_{split}_panoptic"

    def root_folder(self) -> str:
        """Absolute folder of the dataset, from today's environment variables.

        Raises:
            DatasetError: the root names an environment variable that is not set.
        """
        return resolve_root(self.root, self.source)

    @property
    def stuff(self) -> tuple[int, ...]:
        """Train ids of the classes without instances, ascending."""
        return tuple(train_id for train_id in range(len(self.classes)) if train_id not in self.things)


def is_panoptic_file(path: str | os.PathLike[str]) -> bool:
    """Whether a definition file is of a panoptic dataset.

    Raises:
        DatasetError: the file is missing or no YAML.
    """
    content = read_yaml(Path(path))
    return isinstance(content, dict) and ("panoptic_json" in content or "panoptic_root" in content)


def load_panoptic_definition(path: str | os.PathLike[str]) -> PanopticDefinition:
    """Read a definition file; docs/PANOPTIC.md describes the format.

    Args:
        path: a YAML file.

    Raises:
        DatasetError: the file is missing, is no YAML, or has an unknown, missing, repeated or wrong entry.
    """
    file = Path(path)
    fields = Fields(file, read_yaml(file), _KEYS)
    classes, things = _read_classes(fields)
    ignore_label = read_ignore_label(fields, len(classes))
    splits, domains = _read_splits(fields)
    return PanopticDefinition(
        name=read_name(fields),
        root=fields.required("root", str),
        images=_read_images(fields),
        panoptic_root=fields.below_root("panoptic_root", fields.required("panoptic_root", str)),
        panoptic_json=fields.below_root("panoptic_json", fields.required("panoptic_json", str)),
        splits=splits,
        classes=classes,
        things=things,
        categories=_read_categories(fields, classes, ignore_label),
        other_categories_ignored=_read_other_categories(fields),
        ignore_label=ignore_label,
        source=str(file),
        domains=domains,
    )


def _read_images(fields: Fields) -> str:
    template = fields.required("images", str)
    if template.count("{key}") != 1:
        raise fields.error("images", template, "a path with {key} once, such as images/{split}/{key}.jpg")
    return fields.below_root("images", template)


def _read_classes(fields: Fields) -> tuple[tuple[ClassDefinition, ...], tuple[int, ...]]:
    value = fields.any_of("classes")
    if value == "cityscapes":
        return CITYSCAPES_CLASSES, CITYSCAPES_THINGS
    if not isinstance(value, list) or not value:
        expected = "'cityscapes' or a list of {name: ..., color: [red, green, blue], thing: true or false}"
        raise fields.error("classes", value, expected)
    require_numbered_by_a_byte(fields, value)
    read = [_read_class(fields, index, entry) for index, entry in enumerate(value)]
    classes = tuple(entry for entry, _ in read)
    names = [entry.name for entry in classes]
    for name in names:
        if names.count(name) > 1:
            raise fields.error("classes", name, "every name once")
    things = tuple(train_id for train_id, (_, is_thing) in enumerate(read) if is_thing)
    if not 0 < len(things) < len(classes):
        raise fields.error("classes", names, "both things ('thing: true') and stuff among the classes")
    return classes, things


def _read_class(fields: Fields, index: int, entry: object) -> tuple[ClassDefinition, bool]:
    inner = Fields(fields.file, entry, ("name", "color", "thing"), within=f"classes.{index}")
    name, color, is_thing = inner.required("name", str), inner.required("color", list), inner.any_of("thing")
    if len(color) != 3 or any(type(value) is not int or not 0 <= value <= 255 for value in color):
        raise inner.error("color", color, "[red, green, blue] with values from 0 to 255")
    if is_thing not in (None, True, False):
        raise inner.error("thing", is_thing, "true or false")
    return ClassDefinition(name, (color[0], color[1], color[2])), bool(is_thing)


def _read_categories(
    fields: Fields, classes: tuple[ClassDefinition, ...], ignore_label: int
) -> Mapping[int | str, int]:
    value = fields.any_of("categories")
    if value is None:
        return {}
    if value == "cityscapes":
        if classes != CITYSCAPES_CLASSES:
            raise fields.error("categories", value, "a mapping, since 'classes' is not 'cityscapes'")
        return CITYSCAPES_CATEGORIES
    train_ids = {entry.name: train_id for train_id, entry in enumerate(classes)} | {_IGNORE: ignore_label}
    categories: dict[int | str, int] = {}
    for key, name in fields.required("categories", dict).items():
        if type(key) is not int and not isinstance(key, str):
            raise fields.error("categories", key, "ids or names of categories in the JSON file")
        if not isinstance(name, str) or name not in train_ids:
            known = ", ".join(entry.name for entry in classes)
            expected = f"a class name or '{_IGNORE}'; the classes are {known}"
            raise fields.error(f"categories.{key}", name, expected, did_you_mean(name, train_ids))
        categories[key] = train_ids[name]
    return categories


def _read_other_categories(fields: Fields) -> bool:
    value = fields.any_of("other_categories")
    if value not in (None, "error", _IGNORE):
        raise fields.error("other_categories", value, f"'{_IGNORE}' or 'error'")
    return value == _IGNORE


def _read_splits(fields: Fields) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Folders and domains of the splits."""
    entries = fields.required("splits", dict)
    if not entries:
        raise fields.error("splits", entries, "at least one split, such as {train: {}}")
    splits, domains = {}, {}
    for name, entry in entries.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise fields.error("splits", name, "names of letters, digits, '_', '-' and '.'")
        inner = Fields(fields.file, entry or {}, ("folder", "domain"), within=f"splits.{name}")
        folder = inner.optional("folder", str)
        splits[name] = name if folder is None else inner.below_root("folder", folder)
        domain = read_domain(inner) or read_domain(fields)
        if domain is not None:
            domains[name] = domain
    return splits, domains
