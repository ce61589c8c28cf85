"""Dataset definitions: location and classes of a dataset, its splits, and the meaning of its labels.

A definition describes semantic labels (`images`, `labels`, `label_ids`, ...) or, if it has the keys `panoptic_root` and
`panoptic_json`, labels in COCO's panoptic format.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from famix.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS, ClassDefinition, cityscapes_label_ids
from famix.data.schema import Fields, read_yaml
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean
from famix.utils.paths import as_on_disk, local_path

__all__ = [
    "CITYSCAPES_THINGS",
    "DATASETS_VARIABLE",
    "DatasetDefinition",
    "LabelEncoding",
    "Layout",
    "PanopticDefinition",
    "SplitDefinition",
    "load_definition",
]

DATASETS_VARIABLE = "DETECTRON2_DATASETS"
"""Environment variable with the folder that relative roots start from, as in Detectron2; default "datasets"."""

CITYSCAPES_THINGS = tuple(range(11, 19))
"""Train ids of Cityscapes' classes with instances: person to bicycle."""

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


@dataclass(frozen=True)
class SplitDefinition:
    """A split of a dataset.

    Attributes:
        name: e.g. "train".
        folder: value of {split} in the path templates; may be empty or several folders deep.
        keys: file with one key per line, relative to the root, that limits the split; None includes all images.
        skip: keys to leave out.
        domain: domain of the images, e.g. "gta5" or "acdc_night"; None derives it from the name.
    """

    name: str
    folder: str
    keys: str | None = None
    skip: frozenset[str] = frozenset()
    domain: str | None = None


@dataclass(frozen=True)
class LabelEncoding:
    """The meaning of the ids in label files.

    Attributes:
        label_ids: id in the files -> train id, or the ignore label; empty if `names_file` defines the ids.
        other_ids_ignored: ids without a class are ignored; otherwise they are an error.
        highest_id: higher ids are an error in any case; None sets no limit.
        channel: 0, 1, 2 (red, green, blue) or 3 (alpha) of multi-channel files; None for files with one channel.
        bits: 8 or 16 per channel; files of another depth are an error. None accepts both.
        names_file: JSON file below the root that names the ids; None if `label_ids` lists them.
        label_names: name in `names_file` -> train id, or the ignore label.
        is_panoptic: the files are COCO's panoptic PNGs, and `names_file` lists their segments.
    """

    label_ids: Mapping[int, int] = field(default_factory=dict)
    other_ids_ignored: bool = False
    highest_id: int | None = None
    channel: int | None = None
    bits: int | None = None
    names_file: str | None = None
    label_names: Mapping[str, int] = field(default_factory=dict)
    is_panoptic: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether the files have one channel of train ids, and other ids are an error."""
        is_listed = self.names_file is None and self.channel is None and not self.other_ids_ignored
        return is_listed and all(label_id == train_id for label_id, train_id in self.label_ids.items())


@dataclass(frozen=True)
class Layout:
    """One arrangement of the files of a dataset, such as the published one or that of some program.

    Attributes:
        images, labels: path templates below the root with {key} and perhaps {split}.
        encoding: of the labels.
        keys: path template of the lists that define the splits; None if folders define them.
        folders: name of a split -> value of {split}, if it differs from the split's own folder.
        splits: names of the splits with this layout; None for all.
    """

    images: str
    labels: str
    encoding: LabelEncoding
    keys: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)
    splits: frozenset[str] | None = None

    def holds(self, split_name: str) -> bool:
        """Whether a split may have this layout."""
        return self.splits is None or split_name in self.splits


@dataclass(frozen=True, kw_only=True)
class DatasetDefinition:
    """A complete and checked definition of a dataset.

    Attributes:
        name: the split "train" is registered as <name>_train.
        root: folder of the dataset as written, see `root_folder`.
        classes: the index in the tuple is the train id.
        ignore_label: value of pixels that count neither in the loss nor in the score, 0-255.
        splits: in the order of the file.
        source: the definition file, named in errors.
        layouts: in order of precedence, at least one for semantic labels.
        skips_unpaired: leave out images without a label; otherwise they are an error.
    """

    name: str
    root: str
    classes: tuple[ClassDefinition, ...] = CITYSCAPES_CLASSES
    ignore_label: int = 255
    splits: tuple[SplitDefinition, ...]
    source: str = field(compare=False)
    layouts: tuple[Layout, ...] = ()
    skips_unpaired: bool = False

    def dataset_name(self, split: SplitDefinition) -> str:
        """Name under which a split is registered."""
        return f"{self.name}_{split.name}"

    def root_folder(self) -> str:
        """Absolute folder of the dataset, from the current environment variables.

        Raises:
            DatasetError: if the root refers to an environment variable that is not set.
        """
        folder = local_path(self.root, f"{self.source}: 'root'", DatasetError)
        if not os.path.isabs(folder):
            start = local_path(os.environ.get(DATASETS_VARIABLE, "datasets"), f"${DATASETS_VARIABLE}", DatasetError)
            folder = os.path.join(start, folder)
        return as_on_disk(os.path.abspath(folder))


@dataclass(frozen=True, kw_only=True)
class PanopticDefinition(DatasetDefinition):
    """A dataset in COCO's panoptic format: PNGs of segments, and JSON files with the category of each segment.

    The split "train" is registered as <name>_train_panoptic.

    Attributes:
        images: path template of the images below the root, with {key} and perhaps {split}.
        panoptic_root: path template of the folder of the PNGs.
        panoptic_json: path template of the JSON file.
        things: train ids of the classes with instances, ascending.
        categories: id or name of a category in the JSON files -> train id, or the ignore label; empty maps a category
            to the class with its name.
        other_categories_ignored: segments of other categories count as unlabelled; otherwise they are an error.
    """

    images: str
    panoptic_root: str
    panoptic_json: str
    things: tuple[int, ...] = CITYSCAPES_THINGS
    categories: Mapping[int | str, int] = field(default_factory=dict)
    other_categories_ignored: bool = False

    def dataset_name(self, split: SplitDefinition) -> str:
        """Name under which a split is registered."""
        return f"{self.name}_{split.name}_panoptic"

    @property
    def stuff(self) -> tuple[int, ...]:
        """Train ids of the classes without instances, ascending."""
        return tuple(train_id for train_id in range(len(self.classes)) if train_id not in self.things)


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
    content = read_yaml(file)
    is_panoptic = isinstance(content, dict) and not {"panoptic_root", "panoptic_json"}.isdisjoint(content)
    fields = Fields(file, content, PANOPTIC_KEYS if is_panoptic else DATASET_KEYS)
    classes, things = _read_classes(fields)
    ignore_label = fields.number(
        "ignore_label", range(len(classes), 256), f"an integer from {len(classes)} (the number of classes) to 255"
    )
    ignore_label = 255 if ignore_label is None else ignore_label
    train_ids = {entry.name: index for index, entry in enumerate(classes)} | {IGNORE: ignore_label}
    splits = _read_splits(fields, ("folder", "domain") if is_panoptic else SPLIT_KEYS)
    name, root = _read_name(fields, "name"), fields.required("root", str)
    if is_panoptic:
        if not 0 < len(things) < len(classes):
            expected = "a list with both things ('thing: true') and stuff"
            raise fields.error("classes", [entry.name for entry in classes], expected)
        return PanopticDefinition(
            name=name,
            root=root,
            classes=classes,
            ignore_label=ignore_label,
            splits=splits,
            source=str(file),
            images=_read_template(fields, "images"),
            panoptic_root=fields.below_root("panoptic_root", None),
            panoptic_json=fields.below_root("panoptic_json", None),
            things=things,
            categories=_read_class_map(fields, "categories", train_ids, (int, str)),
            other_categories_ignored=fields.choice("other_categories", {IGNORE: True, "error": False}, "error"),
        )
    layouts = _read_layouts(fields, train_ids)
    _require_fitting_layouts(fields, splits, layouts)
    return DatasetDefinition(
        name=name,
        root=root,
        classes=classes,
        ignore_label=ignore_label,
        splits=splits,
        source=str(file),
        layouts=layouts,
        skips_unpaired=fields.choice("unpaired", {"skip": True, "error": False}, "error"),
    )


def _read_name(fields: Fields, key: str) -> str:
    name = fields.required(key, str)
    if not _NAME.fullmatch(name):
        raise fields.error(key, name, _NAME_RULE)
    return name


def _read_template(fields: Fields, key: str) -> str:
    template = fields.below_root(key, None)
    without = template.replace("{split}", "")
    if without.count("{key}") != 1 or "{" in without.replace("{key}", ""):
        raise fields.error(key, template, "a path with {key} once, such as images/{split}/{key}.png")
    return template


def _read_classes(fields: Fields) -> tuple[tuple[ClassDefinition, ...], tuple[int, ...]]:
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


def _read_splits(fields: Fields, known: Sequence[str]) -> tuple[SplitDefinition, ...]:
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


def _read_layouts(fields: Fields, train_ids: Mapping[str, int]) -> tuple[Layout, ...]:
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


def _read_layout(fields: Fields, whole: Fields, train_ids: Mapping[str, int]) -> Layout:
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


def _require_fitting_layouts(fields: Fields, splits: Sequence[SplitDefinition], layouts: Sequence[Layout]) -> None:
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


def _read_encoding(fields: Fields, train_ids: Mapping[str, int]) -> LabelEncoding:
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


def _read_class_map(fields: Fields, key: str, train_ids: Mapping[str, int], kinds: tuple[type, ...]) -> dict[Any, int]:
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
