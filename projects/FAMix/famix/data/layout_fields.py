"""Reading the parts of a definition that are about files: layouts and the encoding of labels."""

import re
from collections.abc import Mapping, Sequence

from famix.data.classes import CITYSCAPES_CLASSES, ClassDefinition, cityscapes_label_ids
from famix.data.layout import LabelEncoding, Layout
from famix.data.schema import Fields
from famix.utils.messages import did_you_mean

__all__ = ["ENCODING_KEYS", "IGNORE", "PLACE_KEYS", "read_layouts"]

PLACE_KEYS = ("images", "labels")
ENCODING_KEYS = (
    "label_ids", "other_ids", "highest_id", "label_channel", "label_bits", "label_names", "label_names_file",
    "label_format",
)  # fmt: skip
IGNORE = "ignore"
"""Stands for a class name where pixels have no class."""

_LAYOUT_KEYS = (*PLACE_KEYS, *ENCODING_KEYS, "keys", "folders", "splits")
_MAX_ID = 65535


def read_layouts(fields: Fields, classes: Sequence[ClassDefinition], ignore_label: int) -> tuple[Layout, ...]:
    """Read `layouts`, or the one layout that `images` and `labels` describe.

    Args:
        fields: the whole file.
        classes: of the dataset.
        ignore_label: of the dataset.

    Returns:
        The layouts in the order in which they are to be looked for, at least one.

    Raises:
        DatasetError: an entry is missing or wrong.
    """
    train_ids = {entry.name: index for index, entry in enumerate(classes)} | {IGNORE: ignore_label}
    if not fields.has("layouts"):
        return (_read_layout(fields, fields, train_ids),)
    for key in PLACE_KEYS:
        if fields.has(key):
            raise fields.error(key, fields.any_of(key), "either 'images' and 'labels' or 'layouts'")
    entries = fields.required("layouts", list)
    if not entries:
        raise fields.error("layouts", entries, "a list of {images: ..., labels: ...}, at least one")
    parts = [Fields(fields.file, entry, _LAYOUT_KEYS, f"layouts.{place}") for place, entry in enumerate(entries)]
    layouts = tuple(_read_layout(part, fields, train_ids) for part in parts)
    for place, (layout, part) in enumerate(zip(layouts, parts, strict=True)):
        if any(layout.labels == other.labels and layout.encoding != other.encoding for other in layouts[:place]):
            raise part.error("labels", layout.labels, "one meaning of the ids in files of one name")
    return layouts


def _read_layout(fields: Fields, whole: Fields, train_ids: Mapping[str, int]) -> Layout:
    images, labels = _read_templates(fields)
    is_stated = any(fields.has(key) for key in ENCODING_KEYS)
    encoding = _read_encoding(fields if is_stated else whole, train_ids)
    if fields is whole:
        return Layout(images, labels, encoding)
    folders = fields.optional("folders", dict) or {}
    splits = fields.optional("splits", list)
    for key, names in (("folders", [*folders, *folders.values()]), ("splits", splits or [])):
        if any(not isinstance(name, str) for name in names):
            raise fields.error(key, names, "names as texts")
    for folder in folders.values():
        fields.below_root("folders", folder)
    return Layout(
        images=images,
        labels=labels,
        encoding=encoding,
        keys=fields.below_root("keys", keys) if (keys := fields.optional("keys", str)) is not None else None,
        folders=folders,
        splits=None if splits is None else frozenset(splits),
    )


def _read_templates(fields: Fields) -> tuple[str, str]:
    images, labels = fields.required("images", str), fields.required("labels", str)
    for key, template in (("images", images), ("labels", labels)):
        placeholders = re.findall(r"{[^}]*}", template)
        if placeholders.count("{key}") != 1 or set(placeholders) - {"{key}", "{split}"}:
            raise fields.error(key, template, "a path with {key} once and, where splits are folders, {split}")
        fields.below_root(key, template)
    if images == labels:
        raise fields.error("labels", labels, "another path than that of the images")
    return images, labels


def _read_encoding(fields: Fields, train_ids: Mapping[str, int]) -> LabelEncoding:
    names_file, label_names = _read_names(fields, train_ids)
    return LabelEncoding(
        label_ids={} if names_file else _read_label_ids(fields, train_ids),
        other_ids_ignored=_read_other_ids(fields),
        highest_id=_read_number(fields, "highest_id", range(_MAX_ID + 1), f"a label id from 0 to {_MAX_ID}"),
        channel=_read_number(fields, "label_channel", range(4), "0, 1 or 2 (red, green, blue) or 3 (alpha)"),
        bits=_read_number(fields, "label_bits", (8, 16), "8 or 16"),
        names_file=names_file,
        label_names=label_names,
        is_panoptic=_read_is_panoptic(fields),
    )


def _read_label_ids(fields: Fields, train_ids: Mapping[str, int]) -> Mapping[int, int]:
    value = fields.any_of("label_ids")
    if value == "identity":
        return {train_id: train_id for train_id in train_ids.values()}
    if value == "cityscapes":
        if list(train_ids) != [*(entry.name for entry in CITYSCAPES_CLASSES), IGNORE]:
            raise fields.error("label_ids", value, "a mapping, since 'classes' is not 'cityscapes'")
        return cityscapes_label_ids(train_ids[IGNORE])
    ids = {}
    for raw, name in fields.required("label_ids", dict).items():
        if type(raw) is not int or not 0 <= raw <= _MAX_ID:
            raise fields.error("label_ids", raw, f"label ids from 0 to {_MAX_ID}, 'identity' or 'cityscapes'")
        ids[raw] = _read_class_name(fields, f"label_ids.{raw}", name, train_ids)
    return ids


def _read_names(fields: Fields, train_ids: Mapping[str, int]) -> tuple[str | None, Mapping[str, int]]:
    names_file, names = fields.optional("label_names_file", str), fields.optional("label_names", dict)
    if (names_file is None) != (names is None):
        raise fields.error("label_names", names, "both 'label_names' and 'label_names_file', or neither")
    if names is None or names_file is None:
        return None, {}
    fields.below_root("label_names_file", names_file)
    if fields.has("label_ids"):
        raise fields.error("label_ids", fields.any_of("label_ids"), "either 'label_ids' or 'label_names'")
    for name in names:
        if not isinstance(name, str):
            raise fields.error("label_names", name, "names as texts")
    return names_file, {
        name: _read_class_name(fields, f"label_names.{name}", value, train_ids) for name, value in names.items()
    }


def _read_class_name(fields: Fields, key: str, name: object, train_ids: Mapping[str, int]) -> int:
    if not isinstance(name, str) or name not in train_ids:
        known = ", ".join(entry for entry in train_ids if entry != IGNORE)
        expected = f"a class name or '{IGNORE}'; the classes are {known}"
        raise fields.error(key, name, expected, did_you_mean(name, train_ids))
    return train_ids[name]


def _read_other_ids(fields: Fields) -> bool:
    value = fields.any_of("other_ids")
    if value not in (None, "error", IGNORE):
        raise fields.error("other_ids", value, f"'{IGNORE}' or 'error'")
    return value == IGNORE


def _read_number(fields: Fields, key: str, allowed: Sequence[int], expected: str) -> int | None:
    value = fields.optional(key, int)
    if value is not None and value not in allowed:
        raise fields.error(key, value, expected)
    return value


def _read_is_panoptic(fields: Fields) -> bool:
    value = fields.any_of("label_format")
    if value not in (None, "ids", "coco_panoptic"):
        raise fields.error("label_format", value, "'ids' or 'coco_panoptic'")
    if value == "coco_panoptic" and not fields.has("label_names_file"):
        raise fields.error("label_format", value, "also 'label_names_file', the JSON file that lists the segments")
    return value == "coco_panoptic"
