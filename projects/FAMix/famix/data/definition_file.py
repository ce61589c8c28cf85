"""Strict reading of definition files: each error names the file, the key, the value and the constraint."""

import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from famix.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS, ClassDefinition, cityscapes_label_ids
from famix.data.definition import (
    CITYSCAPES_THINGS,
    DatasetDefinition,
    LabelEncoding,
    Layout,
    PanopticDefinition,
    SplitDefinition,
)
from famix.io import MAX_YAML_BYTES, check_yaml, read_text
from famix.utils.errors import CorruptFileError, DatasetError
from famix.utils.messages import did_you_mean, shown
from famix.utils.paths import needs_expansion

try:
    from yaml import CSafeLoader as SafeLoader  # several times as fast
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

__all__ = ["load_definition"]

IGNORE = "ignore"
"""Takes the place of a class name for pixels without a class."""

ENCODING_KEYS = (
    "label_ids", "other_ids", "highest_id", "label_channel", "label_bits", "label_names", "label_names_file",
    "label_format",
)  # fmt: skip
LAYOUT_KEYS = ("images", "labels", *ENCODING_KEYS, "keys", "folders", "splits")
_COMMON_KEYS = ("name", "root", "domain", "images", "classes", "splits", "ignore_label")
DATASET_KEYS = (*_COMMON_KEYS, "labels", *ENCODING_KEYS, "layouts", "unpaired")
PANOPTIC_KEYS = (*_COMMON_KEYS, "panoptic_root", "panoptic_json", "categories", "other_categories")
SPLIT_KEYS = ("folder", "keys", "skip", "domain")

_MAX_ID = 65535
_NAME, _NAME_RULE = re.compile(r"\w[\w.-]*"), "made of letters, digits, '_', '-' and '.'"

T = TypeVar("T")

_KIND_NAMES = {str: "a string", int: "an integer", dict: "a mapping", list: "a list"}


class _UniqueKeyLoader(SafeLoader):
    """PyYAML's safe loader that refuses repeated keys, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} occurs twice in one mapping", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> object:
    """Read a YAML file into plain data, without executing any of it."""
    try:
        text = read_text(file, MAX_YAML_BYTES)
        check_yaml(text)
        # A subclass of the safe loader: it builds plain data only.
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, CorruptFileError) as error:
        raise DatasetError(f"Dataset definition {file} cannot be read: {error}. See DATASETS.FILES.") from error
    except Exception as error:  # YAMLError, and errors of PyYAML about impossible dates and numbers
        raise DatasetError(f"Dataset definition {file} is invalid YAML: {error}") from error


class _Fields:
    """Type-checked access to the entries of a YAML mapping, `within` a key such as "splits.train", or of the whole file.

    Raises a DatasetError if `values` is not a mapping or has an unknown key.
    """

    def __init__(self, file: Path, values: object, known: Iterable[str], within: str = "") -> None:
        self.file = file
        self._within = within
        known = list(known)
        if not isinstance(values, dict):
            raise self.error("", values, f"a mapping with the keys {', '.join(known)}")
        self._values = values
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known)
                raise DatasetError(f"{file}: unknown key '{self._path(key)}'.{hint} The keys are {', '.join(known)}.")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _path(self, key: object) -> str:
        return ".".join(part for part in (self._within, str(key)) if part)

    def error(self, key: object, got: object, expected: str, hint: str = "") -> DatasetError:
        where = f"'{self._path(key)}'" if self._path(key) else "the file"
        return DatasetError(f"{self.file}: {where} must be {expected}, got {shown(got)}.{hint}")

    def inner(self, key: str, values: object, known: Iterable[str]) -> "_Fields":
        return _Fields(self.file, values, known, within=self._path(key))

    def any(self, key: str) -> object:
        return self._values.get(key)

    def required(self, key: str, kind: type[T]) -> T:
        """Value of a key, which must exist and have the type `kind`."""
        value = self.optional(key, kind)
        if value is None:
            raise DatasetError(
                f"{self.file}: '{self._path(key)}' must be {_KIND_NAMES[kind]}, but the key is missing. "
                "datasets/README.md describes the format."
            )
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Value of a key, which must have the type `kind`, or None if the key is missing."""
        if key not in self._values:
            return None
        value = self._values[key]
        # In Python a bool is an int, in a definition `true` is not a number.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, value, _KIND_NAMES[kind])
        return value

    def choice(self, key: str, meanings: Mapping[str, T], default: str) -> T:
        """Meaning of a key with a fixed set of values."""
        value = default if self.any(key) is None else self.any(key)
        if not isinstance(value, str) or value not in meanings:
            raise self.error(key, value, " or ".join(map(repr, meanings)))
        return meanings[value]

    def number(self, key: str, allowed: range | tuple[int, ...], expected: str) -> int | None:
        """Integer out of `allowed`, or None if the key is missing."""
        value = self.optional(key, int)
        if value is not None and value not in allowed:
            raise self.error(key, value, expected)
        return value

    def strings(self, key: str, values: Iterable[object]) -> list[str]:
        """Entries of a list or mapping, which must be strings."""
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, value, "made of strings. Quote values that look like numbers")
        return list(values)  # type: ignore[arg-type]

    def below_root(self, key: str, path: str | None) -> str:
        """A path, by default the required value of a key, which must stay below the dataset's root."""
        path = self.required(key, str) if path is None else path
        if needs_expansion(path):
            raise self.error(
                key, path, "a path below the root, without '~' and environment variables", " 'root' may have both."
            )
        if os.path.isabs(path) or ".." in path.split("/") or "\0" in path:
            raise self.error(key, path, "a path below the root")
        return path


def load_definition(path: str | os.PathLike[str]) -> DatasetDefinition:
    """Read a definition file; datasets/README.md and, for panoptic labels, docs/PANOPTIC.md describe the format.

    Args:
        path: a YAML file.

    Returns:
        The definition, a `PanopticDefinition` for panoptic labels. Image folders are not accessed.

    Raises:
        DatasetError: if the file is missing or invalid YAML, or has an unknown, missing, repeated or wrong entry.
    """
    file = Path(path)
    content = _read_yaml(file)
    is_panoptic = isinstance(content, dict) and not {"panoptic_root", "panoptic_json"}.isdisjoint(content)
    fields = _Fields(file, content, PANOPTIC_KEYS if is_panoptic else DATASET_KEYS)
    classes, things = _read_classes(fields)
    ignore_label = fields.number(
        "ignore_label", range(len(classes), 256), f"an integer from {len(classes)} (the number of classes) to 255"
    )
    ignore_label = 255 if ignore_label is None else ignore_label
    train_ids = {entry.name: index for index, entry in enumerate(classes)} | {IGNORE: ignore_label}
    common: dict[str, Any] = {
        "name": _read_name(fields, "name"),
        "root": fields.required("root", str),
        "classes": classes,
        "ignore_label": ignore_label,
        "splits": _read_splits(fields, ("folder", "domain") if is_panoptic else SPLIT_KEYS),
        "source": str(file),
    }
    if not is_panoptic:
        layouts = _read_layouts(fields, train_ids)
        _require_fitting_layouts(fields, common["splits"], layouts)
        skips_unpaired = fields.choice("unpaired", {"skip": True, "error": False}, "error")
        return DatasetDefinition(**common, layouts=layouts, skips_unpaired=skips_unpaired)
    if not 0 < len(things) < len(classes):
        names = [entry.name for entry in classes]
        raise fields.error("classes", names, "a list with both things ('thing: true') and stuff")
    return PanopticDefinition(
        **common,
        images=_read_template(fields, "images"),
        panoptic_root=fields.below_root("panoptic_root", None),
        panoptic_json=fields.below_root("panoptic_json", None),
        things=things,
        categories=_read_class_map(fields, "categories", train_ids, (int, str)),
        other_categories_ignored=fields.choice("other_categories", {IGNORE: True, "error": False}, "error"),
    )


def _read_name(fields: _Fields, key: str) -> str:
    name = fields.required(key, str)
    if not _NAME.fullmatch(name):
        raise fields.error(key, name, _NAME_RULE)
    return name


def _read_template(fields: _Fields, key: str) -> str:
    template = fields.below_root(key, None)
    without = template.replace("{split}", "")
    if without.count("{key}") != 1 or "{" in without.replace("{key}", ""):
        raise fields.error(key, template, "a path with {key} once, such as images/{split}/{key}.png")
    return template


def _read_classes(fields: _Fields) -> tuple[tuple[ClassDefinition, ...], tuple[int, ...]]:
    """Classes, and the train ids of those that are things."""
    value = fields.any("classes")
    if value == "cityscapes":
        return CITYSCAPES_CLASSES, CITYSCAPES_THINGS
    if not isinstance(value, list) or not value:
        raise fields.error("classes", value, "'cityscapes' or a list of {name: ..., color: [red, green, blue]}")
    if len(value) > 255:
        raise fields.error("classes", f"{len(value)} classes", "a list of at most 255 classes")
    classes: list[ClassDefinition] = []
    things: list[int] = []
    for index, entry in enumerate(value):
        inner = fields.inner(f"classes.{index}", entry, ("name", "color", "thing"))
        name, color = inner.required("name", str), inner.required("color", list)
        if not name.strip() or name == IGNORE:
            raise inner.error("name", name, f"a name other than '{IGNORE}', which marks pixels without a class")
        if len(color) != 3 or any(type(value) is not int or not 0 <= value <= 255 for value in color):
            raise inner.error("color", color, "[red, green, blue] with values from 0 to 255")
        if any(name == other.name for other in classes):
            raise fields.error("classes", name, "a list in which each name occurs once")
        if inner.any("thing") not in (None, True, False):
            raise inner.error("thing", inner.any("thing"), "true or false")
        classes.append(ClassDefinition(name, (color[0], color[1], color[2])))
        things += [index] if inner.any("thing") else []
    return tuple(classes), tuple(things)


def _read_splits(fields: _Fields, known: Sequence[str]) -> tuple[SplitDefinition, ...]:
    entries = fields.required("splits", dict)
    if not entries:
        raise fields.error("splits", entries, "a mapping with at least one split, such as {train: {}}")
    splits = []
    for name, entry in entries.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise fields.error("splits", name, f"a mapping with names {_NAME_RULE}")
        inner = fields.inner(f"splits.{name}", {} if entry is None else entry, known)
        folder = inner.below_root("folder", None) if "folder" in inner else name
        keys = inner.below_root("keys", None) if "keys" in inner else None
        skip = frozenset(inner.strings("skip", inner.optional("skip", list) or []))
        stated = next((part for part in (inner, fields) if "domain" in part), None)
        domain = None if stated is None else _read_name(stated, "domain")
        splits.append(SplitDefinition(name, folder, keys, skip, domain))
    return tuple(splits)


def _read_layouts(fields: _Fields, train_ids: Mapping[str, int]) -> tuple[Layout, ...]:
    """Read `layouts`, or the one layout that `images` and `labels` describe."""
    if "layouts" not in fields:
        return (_read_layout(fields, fields, train_ids),)
    for key in ("images", "labels"):
        if key in fields:
            raise fields.error(key, fields.any(key), "left out if the definition has 'layouts'")
    entries = fields.required("layouts", list)
    if not entries:
        raise fields.error("layouts", entries, "a list of {images: ..., labels: ...}, at least one")
    layouts: list[Layout] = []
    for place, entry in enumerate(entries):
        part = fields.inner(f"layouts.{place}", entry, LAYOUT_KEYS)
        layout = _read_layout(part, fields, train_ids)
        if any(layout.labels == other.labels and layout.encoding != other.encoding for other in layouts):
            raise part.error("labels", layout.labels, "a path whose ids have one meaning in all layouts")
        layouts.append(layout)
    return tuple(layouts)


def _read_layout(fields: _Fields, whole: _Fields, train_ids: Mapping[str, int]) -> Layout:
    images, labels = _read_template(fields, "images"), _read_template(fields, "labels")
    if images == labels:
        raise fields.error("labels", labels, "another path than 'images'")
    is_stated = any(key in fields for key in ENCODING_KEYS)
    encoding = _read_encoding(fields if is_stated else whole, train_ids)
    if fields is whole:
        return Layout(images, labels, encoding)
    folders, splits = fields.optional("folders", dict) or {}, fields.optional("splits", list)
    for folder in fields.strings("folders", [*folders, *folders.values()])[len(folders) :]:
        fields.below_root("folders", folder)
    return Layout(
        images,
        labels,
        encoding,
        keys=fields.below_root("keys", None) if "keys" in fields else None,
        folders=folders,
        splits=None if splits is None else frozenset(fields.strings("splits", splits)),
    )


def _require_fitting_layouts(fields: _Fields, splits: Sequence[SplitDefinition], layouts: Sequence[Layout]) -> None:
    """Raise unless each split has a layout, and each layout distinguishes its splits."""
    names = [split.name for split in splits]
    for place, layout in enumerate(layouts):
        for name in (*layout.folders, *(layout.splits or ())):
            if name not in names:
                raise fields.error(f"layouts.{place}", name, f"limited to the splits {', '.join(names)}")
        whole = [split.name for split in splits if layout.holds(split.name) and split.keys is None]
        if "{split}" not in layout.images and layout.keys is None and len(whole) > 1:
            expected = "a mapping with at most one split without 'keys', since 'images' has no {split}"
            raise fields.error("splits", whole, expected)
    for name in names:
        if not any(layout.holds(name) for layout in layouts):
            raise fields.error("splits", name, "a mapping of splits that occur in some layout, see 'layouts'")


def _read_encoding(fields: _Fields, train_ids: Mapping[str, int]) -> LabelEncoding:
    names_file = fields.optional("label_names_file", str)
    names = fields.any("label_names")
    if (names_file is None) != (names is None):
        raise fields.error("label_names", names, "given together with 'label_names_file'")
    is_panoptic = fields.choice("label_format", {"ids": False, "coco_panoptic": True}, "ids")
    if is_panoptic and names_file is None:
        raise fields.error(
            "label_format", "coco_panoptic", "given together with 'label_names_file', which lists the segments"
        )
    if names_file is not None and "label_ids" in fields:
        raise fields.error("label_ids", fields.any("label_ids"), "left out if the definition has 'label_names'")
    return LabelEncoding(
        label_ids=_read_class_map(fields, "label_ids", train_ids, (int,)) if names_file is None else {},
        other_ids_ignored=fields.choice("other_ids", {IGNORE: True, "error": False}, "error"),
        highest_id=fields.number("highest_id", range(_MAX_ID + 1), f"a label id from 0 to {_MAX_ID}"),
        channel=fields.number("label_channel", range(4), "0, 1, 2 (red, green, blue) or 3 (alpha)"),
        bits=fields.number("label_bits", (8, 16), "8 or 16"),
        names_file=None if names_file is None else fields.below_root("label_names_file", names_file),
        label_names={} if names_file is None else _read_class_map(fields, "label_names", train_ids, (str,)),
        is_panoptic=is_panoptic,
    )


def _read_class_map(fields: _Fields, key: str, train_ids: Mapping[str, int], kinds: tuple[type, ...]) -> dict[Any, int]:
    """Read a mapping from ids or names to class names, or the name of a known mapping, as one to train ids."""
    value = fields.any(key)
    if value is None and key == "categories":
        return {}
    if value == "identity" and key == "label_ids":
        return {train_id: train_id for train_id in train_ids.values()}
    if value == "cityscapes" and key != "label_names":
        if list(train_ids) != [*(entry.name for entry in CITYSCAPES_CLASSES), IGNORE]:
            raise fields.error(key, value, "a mapping, since 'classes' is not 'cityscapes'")
        if key == "label_ids":
            return cityscapes_label_ids(train_ids[IGNORE])
        return {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)}
    found = {}
    for entry, name in fields.required(key, dict).items():
        if type(entry) not in kinds or (key == "label_ids" and not 0 <= entry <= _MAX_ID):
            expected = {"label_ids": f"ids from 0 to {_MAX_ID}", "label_names": "names"}.get(key, "ids or names")
            raise fields.error(key, entry, f"a mapping from {expected} to classes")
        if not isinstance(name, str) or name not in train_ids:
            names = ", ".join(known for known in train_ids if known != IGNORE)
            hint = did_you_mean(name, train_ids)
            raise fields.error(f"{key}.{entry}", name, f"'{IGNORE}' or one of the classes {names}", hint)
        found[entry] = train_ids[name]
    return found
