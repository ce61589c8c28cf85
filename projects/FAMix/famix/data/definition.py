"""What a dataset is: where its images and labels lie, its splits, its classes and how label ids map to them."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from famix.data.classes import CITYSCAPES_CLASSES, ClassDefinition
from famix.data.layout import LabelEncoding, Layout, mentions_split
from famix.data.layout_fields import ENCODING_KEYS, IGNORE, PLACE_KEYS, read_layouts
from famix.data.schema import Fields, read_yaml
from famix.utils.errors import DatasetError
from famix.utils.paths import as_on_disk, local_path

__all__ = [
    "DATASETS_VARIABLE",
    "DatasetDefinition",
    "SplitDefinition",
    "datasets_folder",
    "load_definition",
    "read_domain",
    "read_ignore_label",
    "read_name",
    "require_numbered_by_a_byte",
    "resolve_root",
]

DATASETS_VARIABLE = "DETECTRON2_DATASETS"
"""Environment variable of the folder that relative roots start from, as in Detectron2; "datasets" where it is unset."""

_OWN_KEYS = ("name", "root", "domain", "classes", "splits", "layouts", "ignore_label", "unpaired")
_SPLIT_KEYS = ("folder", "keys", "skip", "domain")
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class SplitDefinition:
    """A part of a dataset, registered as <dataset>_<name>.

    Attributes:
        name: e.g. "train".
        folder: what {split} stands for in the path templates; may be empty or several folders deep.
        keys: file with one key a line, relative to the root, that limits the split; None takes every image.
        skip: keys that are left out.
        domain: what its images show, e.g. "gta5" or "acdc_night"; None leaves it to the name.
    """

    name: str
    folder: str
    keys: str | None = None
    skip: frozenset[str] = frozenset()
    domain: str | None = None


@dataclass(frozen=True)
class DatasetDefinition:
    """A dataset as a definition file describes it, complete and checked.

    Attributes:
        name: prefix of the registered names.
        root: folder of the dataset as written, see `root_folder`.
        images, labels, label_ids, other_ids_ignored, label_channel: of the first layout, see `Layout` and
            `LabelEncoding`.
        classes: the classes; the place in the tuple is the train id.
        ignore_label: value of pixels that count neither in the loss nor in the score, 0-255.
        splits: the parts of the dataset, in the file's order.
        source: the definition file.
        layouts: in the order in which they are looked for; by default the one that the attributes above describe.
        skips_unpaired: images without a label are left out; otherwise they are an error.
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
    layouts: tuple[Layout, ...] = ()
    skips_unpaired: bool = False

    def __post_init__(self) -> None:
        if not self.layouts:
            encoding = LabelEncoding(self.label_ids, self.other_ids_ignored, channel=self.label_channel)
            object.__setattr__(self, "layouts", (Layout(self.images, self.labels, encoding),))

    def dataset_name(self, split: SplitDefinition) -> str:
        """Name under which a split is registered."""
        return f"{self.name}_{split.name}"

    def root_folder(self) -> str:
        """Absolute folder of the dataset, from today's environment variables.

        Raises:
            DatasetError: the root names an environment variable that is not set.
        """
        return resolve_root(self.root, self.source)


def resolve_root(root: str, source: str) -> str:
    """Absolute folder of a dataset, from today's environment variables.

    Args:
        root: as a definition has it.
        source: the definition file, named in the error.

    Raises:
        DatasetError: the root names an environment variable that is not set.
    """
    folder = local_path(root, f"{source}: key 'root'", DatasetError)
    if not os.path.isabs(folder):
        folder = os.path.join(datasets_folder(), folder)
    return as_on_disk(os.path.abspath(folder))


def datasets_folder() -> str:
    """The folder that relative roots start from, from today's environment variables.

    Raises:
        DatasetError: it names an environment variable that is not set.
    """
    return local_path(os.environ.get(DATASETS_VARIABLE, "datasets"), f"${DATASETS_VARIABLE}", DatasetError)


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
    fields = Fields(file, read_yaml(file), (*_OWN_KEYS, *PLACE_KEYS, *ENCODING_KEYS))
    classes = _read_classes(fields)
    ignore_label = read_ignore_label(fields, len(classes))
    layouts = read_layouts(fields, classes, ignore_label)
    first = layouts[0]
    return DatasetDefinition(
        name=read_name(fields),
        root=fields.required("root", str),
        images=first.images,
        labels=first.labels,
        classes=classes,
        label_ids=first.encoding.label_ids,
        other_ids_ignored=first.encoding.other_ids_ignored,
        label_channel=first.encoding.channel,
        ignore_label=ignore_label,
        splits=_read_splits(fields, layouts),
        source=str(file),
        layouts=layouts,
        skips_unpaired=_read_unpaired(fields),
    )


def read_name(fields: Fields) -> str:
    """Read the `name` of a dataset.

    Raises:
        DatasetError: it is missing, or cannot be part of the name of a dataset.
    """
    name = fields.required("name", str)
    if not _NAME.fullmatch(name):
        raise fields.error("name", name, "letters, digits, '_', '-' and '.'")
    return name


def read_domain(fields: Fields) -> str | None:
    """Read the `domain` of a dataset or of a split; None where it is missing.

    Raises:
        DatasetError: it is not a name.
    """
    domain = fields.optional("domain", str)
    if domain is not None and not _NAME.fullmatch(domain):
        raise fields.error("domain", domain, "letters, digits, '_', '-' and '.'")
    return domain


def _read_classes(fields: Fields) -> tuple[ClassDefinition, ...]:
    value = fields.any_of("classes")
    if value == "cityscapes":
        return CITYSCAPES_CLASSES
    if not isinstance(value, list) or not value:
        raise fields.error("classes", value, "'cityscapes' or a list of {name: ..., color: [red, green, blue]}")
    require_numbered_by_a_byte(fields, value)
    classes = tuple(_read_class(fields, index, entry) for index, entry in enumerate(value))
    names = [entry.name for entry in classes]
    for name in names:
        if names.count(name) > 1:
            raise fields.error("classes", name, "every name once")
    return classes


def require_numbered_by_a_byte(fields: Fields, classes: Sequence[object]) -> None:
    """Raise unless classes and the ignore label have different numbers from 0 to 255.

    Raises:
        DatasetError: there are too many.
    """
    if len(classes) > 255:
        raise fields.error("classes", f"{len(classes)} classes", "at most 255")


def _read_class(fields: Fields, index: int, entry: object) -> ClassDefinition:
    inner = Fields(fields.file, entry, ("name", "color"), within=fields.path(f"classes.{index}"))
    name, color = inner.required("name", str), inner.required("color", list)
    if not name.strip() or name == IGNORE:
        raise inner.error("name", name, f"a name, other than '{IGNORE}', which marks pixels without a class")
    if len(color) != 3 or any(type(value) is not int or not 0 <= value <= 255 for value in color):
        raise inner.error("color", color, "[red, green, blue] with values from 0 to 255")
    return ClassDefinition(name, (color[0], color[1], color[2]))


def read_ignore_label(fields: Fields, num_classes: int) -> int:
    """Read the `ignore_label` of a dataset; 255 where it is missing.

    Raises:
        DatasetError: it is a train id, or more than 8 bits hold.
    """
    value = fields.optional("ignore_label", int)
    value = 255 if value is None else value
    if not num_classes <= value <= 255:
        raise fields.error("ignore_label", value, f"a number from {num_classes} (the number of classes) to 255")
    return value


def _read_unpaired(fields: Fields) -> bool:
    value = fields.any_of("unpaired")
    if value not in (None, "error", "skip"):
        raise fields.error("unpaired", value, "'skip' or 'error'")
    return value == "skip"


def _read_splits(fields: Fields, layouts: Sequence[Layout]) -> tuple[SplitDefinition, ...]:
    entries = fields.required("splits", dict)
    if not entries:
        raise fields.error("splits", entries, "at least one split, such as {train: {}}")
    splits = tuple(_read_split(fields, name, entry) for name, entry in entries.items())
    _require_fitting_layouts(fields, splits, layouts)
    return splits


def _require_fitting_layouts(fields: Fields, splits: Sequence[SplitDefinition], layouts: Sequence[Layout]) -> None:
    """Raise unless every split has a layout, and every layout tells its splits apart."""
    names = [split.name for split in splits]
    for place, layout in enumerate(layouts):
        for name in (*layout.folders, *(layout.splits or ())):
            if name not in names:
                raise fields.error(f"layouts.{place}", name, f"one of the splits {', '.join(names)}")
        whole = [split.name for split in splits if layout.holds(split.name) and split.keys is None]
        if not mentions_split(layout.images) and layout.keys is None and len(whole) > 1:
            raise fields.error(
                "splits", whole, "at most one split without 'keys', since 'images' has no {split} to tell them apart"
            )
    for name in names:
        if not any(layout.holds(name) for layout in layouts):
            raise fields.error("splits", name, "a split that some layout holds, see 'layouts'")


def _read_split(fields: Fields, name: object, entry: object) -> SplitDefinition:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise fields.error("splits", name, "names of letters, digits, '_', '-' and '.'")
    inner = Fields(fields.file, {} if entry is None else entry, _SPLIT_KEYS, within=fields.path(f"splits.{name}"))
    folder, keys = inner.optional("folder", str), inner.optional("keys", str)
    for key, path in (("folder", folder), ("keys", keys)):
        if path is not None:
            inner.below_root(key, path)
    skip = inner.optional("skip", list) or []
    for key in skip:
        if not isinstance(key, str):
            raise inner.error("skip", key, "keys as texts, in quotes where they look like numbers")
    domain = read_domain(inner) or read_domain(fields)
    return SplitDefinition(name, name if folder is None else folder, keys, frozenset(skip), domain)
