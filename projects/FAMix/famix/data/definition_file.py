"""Strict loader for definition files. Each error names the file, the key, the value and the constraint.

The keys are documented in datasets/README.md and, for panoptic labels, in docs/PANOPTIC.md.
"""

import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from famix.data.classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_THINGS,
    ClassDefinition,
    cityscapes_label_ids,
)
from famix.data.definition import DatasetDefinition, LabelEncoding, Layout, PanopticDefinition, SplitDefinition
from famix.io import MAX_YAML_BYTES, check_yaml, read_text, yaml_problem
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean, shown
from famix.utils.paths import needs_expansion

try:
    from yaml import CSafeLoader as SafeLoader  # several times faster
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

IGNORE = "ignore"
"""Used in place of a class name for pixels without a class."""

_MAX_ID = 65535


class _Key(NamedTuple):
    """Rule for the values of a key. `expected` and `remedy` are parts of the error message."""

    expected: str
    accepts: Callable[[Any], bool]
    default: Any = None
    remedy: str = ""


def _one_of(*allowed: str | int | bool, default: Any = None) -> _Key:
    def accepts(value: Any) -> bool:  # `True` does not match 1
        return any(type(value) is type(entry) and value == entry for entry in allowed)

    return _Key(f"one of {', '.join(map(repr, allowed))}", accepts, default)


def _is_integer(value: Any, highest: int) -> bool:
    return type(value) is int and 0 <= value <= highest


def _is_below_root(value: Any) -> bool:
    is_path = isinstance(value, str) and not needs_expansion(value) and "\0" not in value
    return is_path and not os.path.isabs(value) and ".." not in value.split("/")


def _is_template(value: Any) -> bool:
    rest = value.replace("{split}", "") if _is_below_root(value) else ""
    return rest.count("{key}") == 1 and "{" not in rest.replace("{key}", "")


_NAME = _Key(
    "a name consisting of letters, digits, '_', '-' and '.'",
    lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value) is not None,
)
_ROOT_REMEDY = " Only 'root' may be absolute or contain '~' or environment variables."
_PATH = _Key("a path below the root", _is_below_root, remedy=_ROOT_REMEDY)
_TEMPLATE = _Key("a path below the root that contains {key} once, such as images/{split}/{key}.png", _is_template)
_STRINGS = _Key(
    "a list of strings",
    lambda value: isinstance(value, list) and all(isinstance(entry, str) for entry in value),
    remedy=" Quote values that look like numbers.",
)
_ENTRIES = _Key("a mapping with at least one entry", lambda value: isinstance(value, dict) and bool(value))
_LIST = _Key("a list with at least one entry", lambda value: isinstance(value, list) and bool(value))
_CLASSES = _Key("'cityscapes' or a list of classes", lambda value: value == "cityscapes" or _LIST.accepts(value))
_KNOWN_MAPS = ("identity", "cityscapes")
_MAP = _Key("a mapping to class names", lambda value: _ENTRIES.accepts(value) or value in _KNOWN_MAPS)

ENCODING_KEYS = {
    "label_ids": _MAP,
    "other_ids": _one_of("error", IGNORE, default="error"),
    "highest_id": _Key(f"an id from 0 to {_MAX_ID}", lambda value: _is_integer(value, _MAX_ID)),
    "label_channel": _one_of(0, 1, 2, 3),
    "label_bits": _one_of(8, 16),
    "label_names": _ENTRIES,
    "label_names_file": _PATH,
    "label_format": _one_of("ids", "coco_panoptic", default="ids"),
}
_TEMPLATES = {"images": _TEMPLATE, "labels": _TEMPLATE}
LAYOUT_KEYS = {**_TEMPLATES, **ENCODING_KEYS, "keys": _PATH, "folders": _ENTRIES, "splits": _STRINGS}
_COMMON_KEYS = {
    "name": _NAME,
    "root": _Key("a string", lambda value: isinstance(value, str)),
    "domain": _NAME,
    "classes": _CLASSES,
    "splits": _ENTRIES,
    "ignore_label": _Key("an integer from 0 to 255", lambda value: _is_integer(value, 255), 255),
}
_UNPAIRED = _one_of("error", "skip", default="error")
DATASET_KEYS = {**_COMMON_KEYS, **_TEMPLATES, **ENCODING_KEYS, "layouts": _LIST, "unpaired": _UNPAIRED}
_PANOPTIC_FILES = {"images": _TEMPLATE, "panoptic_root": _PATH, "panoptic_json": _PATH}
_CATEGORIES = {"categories": _MAP, "other_categories": ENCODING_KEYS["other_ids"]}
PANOPTIC_KEYS = {**_COMMON_KEYS, **_PANOPTIC_FILES, **_CATEGORIES}
SPLIT_KEYS = {"folder": _PATH, "domain": _NAME, "keys": _PATH, "skip": _STRINGS._replace(default=[])}
_CLASS_KEYS = {
    "name": _Key(
        f"a name other than '{IGNORE}', which marks pixels without a class",
        lambda value: isinstance(value, str) and value.strip() not in ("", IGNORE),
    ),
    "color": _Key(
        "[red, green, blue] with values from 0 to 255",
        lambda value: isinstance(value, list) and len(value) == 3 and all(_is_integer(entry, 255) for entry in value),
    ),
    "thing": _one_of(True, False, default=False),
}


class _Section(dict[str, Any]):
    """Mapping in a definition file, with the validated value or the default of each key.

    `path` is the dotted path of the mapping, such as "splits.train", or "" for the whole file. Raises a DatasetError
    if `content` is not a mapping, or has an unknown, missing or invalid entry.
    """

    def __init__(
        self, file: Path, path: str, content: object, keys: Mapping[str, _Key], required: Sequence[str] = ()
    ) -> None:
        self.file, self._prefix = file, f"{path}." if path else ""
        if not isinstance(content, dict):
            place = f"'{path}'" if path else "the file"
            raise self.mistake(f"{place} must be a mapping with the keys {', '.join(keys)}, got {shown(content)}.")
        super().__init__({key: content.get(key, rule.default) for key, rule in keys.items()})
        self.stated = content.keys()
        for key, value in content.items():
            if key not in keys:
                hint = did_you_mean(key, keys)
                raise self.mistake(f"unknown key '{self._prefix}{key}'.{hint} Valid keys: {', '.join(keys)}.")
            if not keys[key].accepts(value):
                raise self.error(key, value, keys[key].expected, keys[key].remedy)
        for key in required:
            if key not in content:
                raise self.missing(key)

    def mistake(self, problem: str) -> DatasetError:
        return DatasetError(f"{self.file}: {problem}")

    def error(self, key: str, got: object, expected: str, remedy: str = "") -> DatasetError:
        return self.mistake(f"'{self._prefix}{key}' must be {expected}, got {shown(got)}.{remedy}")

    def missing(self, key: str) -> DatasetError:
        return self.mistake(f"missing key '{self._prefix}{key}'. See datasets/README.md for the format.")

    def inner(self, path: str, content: object, *keys: Any) -> "_Section":
        return _Section(self.file, f"{self._prefix}{path}", content, *keys)


def load_definition(path: str | os.PathLike[str]) -> DatasetDefinition:
    """Load a definition file without accessing the dataset folders.

    Args:
        path: path of a YAML file.

    Returns:
        The definition, which is a `PanopticDefinition` for panoptic labels.

    Raises:
        DatasetError: the file is missing or is not valid YAML, or has an unknown, missing, repeated or invalid entry.
    """
    file = Path(path)
    content = _read_yaml(file)
    is_panoptic = isinstance(content, dict) and not {"panoptic_root", "panoptic_json"}.isdisjoint(content)
    required = ["name", "root", "classes", "splits", *(_PANOPTIC_FILES if is_panoptic else ())]
    whole = _Section(file, "", content, PANOPTIC_KEYS if is_panoptic else DATASET_KEYS, required)
    classes, things = _read_classes(whole)
    if whole["ignore_label"] < len(classes):
        expected = f"an integer from {len(classes)} (the number of classes) to 255"
        raise whole.error("ignore_label", whole["ignore_label"], expected)
    train_ids = {entry.name: index for index, entry in enumerate(classes)} | {IGNORE: whole["ignore_label"]}
    splits = _read_splits(whole, ("folder", "domain") if is_panoptic else SPLIT_KEYS)
    common = {key: whole[key] for key in ("name", "root", "ignore_label")}
    common |= {"classes": classes, "splits": splits, "source": str(file)}
    if not is_panoptic:
        layouts = _read_layouts(whole, splits, train_ids)
        return DatasetDefinition(**common, layouts=layouts, skips_unpaired=whole["unpaired"] == "skip")
    if not 0 < len(things) < len(classes):
        names = [entry.name for entry in classes]
        raise whole.error("classes", names, "a list with both things ('thing: true') and stuff")
    return PanopticDefinition(
        **common,
        **{key: whole[key] for key in _PANOPTIC_FILES},
        things=things,
        categories=_read_class_map(whole, "categories", train_ids),
        other_categories_ignored=whole["other_categories"] == IGNORE,
    )


class _UniqueKeyLoader(SafeLoader):
    """PyYAML safe loader that rejects repeated keys. PyYAML itself would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for entry in (entry for entry, _ in node.value if isinstance(entry, yaml.ScalarNode)):
            key = self.construct_object(entry)
            if key in keys:
                problem = f"the key {key!r} occurs twice in one mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=entry.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> object:
    try:
        text = read_text(file, MAX_YAML_BYTES)
        check_yaml(text)
        return yaml.load(text, Loader=_UniqueKeyLoader)  # safe: builds plain data only
    except OSError as error:
        raise DatasetError(
            f"Cannot read dataset definition '{file}': {error.strerror}. Check DATASETS.FILES."
        ) from error
    except Exception as error:  # from YAML, including impossible dates and numbers
        raise DatasetError(
            f"Cannot read dataset definition '{file}': {yaml_problem(error)}. Correct the file."
        ) from error


def _read_classes(whole: _Section) -> tuple[tuple[ClassDefinition, ...], tuple[int, ...]]:
    """Return the classes and the train ids of the things among them."""
    if whole["classes"] == "cityscapes":
        return CITYSCAPES_CLASSES, CITYSCAPES_THINGS
    required = ("name", "color")
    entries = [whole.inner(f"classes.{n}", entry, _CLASS_KEYS, required) for n, entry in enumerate(whole["classes"])]
    if len(entries) > 255:
        raise whole.error("classes", f"{len(entries)} classes", "a list of at most 255 classes")
    names = [entry["name"] for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise whole.error("classes", name, "a list of classes with unique names")
    classes = tuple(ClassDefinition(entry["name"], tuple(entry["color"])) for entry in entries)
    return classes, tuple(place for place, entry in enumerate(entries) if entry["thing"])


def _read_splits(whole: _Section, keys: Iterable[str]) -> tuple[SplitDefinition, ...]:
    splits, known = [], {key: SPLIT_KEYS[key] for key in keys}
    for name, content in whole["splits"].items():
        if not _NAME.accepts(name):
            raise whole.error("splits", name, f"a mapping in which each key is {_NAME.expected}")
        entry = whole.inner(f"splits.{name}", {} if content is None else content, known)
        folder = name if entry["folder"] is None else entry["folder"]
        domain = entry["domain"] or whole["domain"]
        splits.append(SplitDefinition(name, folder, entry.get("keys"), frozenset(entry.get("skip", ())), domain))
    return tuple(splits)


def _read_layouts(
    whole: _Section, splits: tuple[SplitDefinition, ...], train_ids: Mapping[str, int]
) -> tuple[Layout, ...]:
    for key in ("images", "labels"):
        if (whole[key] is None) == (whole["layouts"] is None):
            raise whole.mistake(
                f"'{key}' and 'layouts' are mutually exclusive, but one of them is required. See datasets/README.md."
            )
    entries = [whole]
    if whole["layouts"] is not None:
        listed = enumerate(whole["layouts"])
        entries = [whole.inner(f"layouts.{place}", entry, LAYOUT_KEYS, [*_TEMPLATES]) for place, entry in listed]
    names = [split.name for split in splits]
    layouts: list[Layout] = []
    for entry in entries:
        images, labels = entry["images"], entry["labels"]
        if images == labels:
            raise entry.error("labels", labels, "a different path from 'images'")
        encoding = _read_encoding(entry if entry.stated & ENCODING_KEYS.keys() else whole, train_ids)
        if any(labels == other.labels and encoding != other.encoding for other in layouts):
            raise entry.error("labels", labels, "a path whose ids have the same meaning in all layouts")
        folders = entry.get("folders") or {}
        entry.inner("folders", folders, dict.fromkeys(names, _PATH))
        limited = None if entry["splits"] is None else frozenset(entry["splits"])
        for name in limited or ():
            if name not in names:
                raise entry.error("splits", name, f"one of {', '.join(names)}")
        layout = Layout(images, labels, encoding, entry.get("keys"), folders, limited)
        unlisted = [split.name for split in splits if layout.has_split(split.name) and split.keys is None]
        if "{split}" not in images and layout.keys is None and len(unlisted) > 1:
            expected = "a mapping with at most one split without 'keys', because 'images' has no {split}"
            raise whole.error("splits", unlisted, expected)
        layouts.append(layout)
    for name in names:
        if not any(layout.has_split(name) for layout in layouts):
            raise whole.error("splits", name, "a mapping of splits that each occur in some layout (see 'layouts')")
    return tuple(layouts)


def _read_encoding(section: _Section, train_ids: Mapping[str, int]) -> LabelEncoding:
    ids, names, names_file = (section[key] for key in ("label_ids", "label_names", "label_names_file"))
    is_panoptic = section["label_format"] == "coco_panoptic"
    if (names is None) != (names_file is None):
        raise section.mistake("'label_names' and 'label_names_file' must be used together. Add the missing key.")
    if ids is not None and names is not None:
        raise section.mistake("'label_ids' and 'label_names' are mutually exclusive. Remove one.")
    if is_panoptic and names is None:
        raise section.mistake("'label_format' coco_panoptic requires a list of the segments. Add 'label_names_file'.")
    if ids is None and names is None:
        raise section.missing("label_ids")
    return LabelEncoding(
        label_ids=_read_class_map(section, "label_ids", train_ids),
        other_ids_ignored=section["other_ids"] == IGNORE,
        highest_id=section["highest_id"],
        channel=section["label_channel"],
        bits=section["label_bits"],
        names_file=names_file,
        label_names=_read_class_map(section, "label_names", train_ids),
        is_panoptic=is_panoptic,
    )


def _read_class_map(section: _Section, key: str, train_ids: Mapping[str, int]) -> dict[Any, int]:
    """Return a mapping from ids or names to train ids, given a key with class names or the name of a known mapping."""
    content, is_id = section[key] or {}, key == "label_ids"
    if content == "identity" and is_id:
        return {train_id: train_id for train_id in train_ids.values()}
    if content == "cityscapes" and list(train_ids) == [*(entry.name for entry in CITYSCAPES_CLASSES), IGNORE]:
        known = cityscapes_label_ids(train_ids[IGNORE])
        return known if is_id else {label_id: known[label_id] for label_id in CITYSCAPES_LABEL_IDS}
    if not isinstance(content, dict):
        raise section.error(key, content, "a mapping to class names, because this keyword does not apply here")
    kinds = {"label_ids": (int,), "label_names": (str,), "categories": (int, str)}[key]
    for entry, name in content.items():
        if type(entry) not in kinds or (is_id and not 0 <= entry <= _MAX_ID):
            expected = f"ids from 0 to {_MAX_ID}" if is_id else " or ".join(kind.__name__ for kind in kinds)
            raise section.error(key, entry, f"a mapping from {expected} to classes")
        if not isinstance(name, str) or name not in train_ids:
            names = ", ".join(known for known in train_ids if known != IGNORE)
            hint = did_you_mean(name, train_ids)
            raise section.error(f"{key}.{entry}", name, f"'{IGNORE}' or one of the classes {names}", hint)
    return {entry: train_ids[name] for entry, name in content.items()}
