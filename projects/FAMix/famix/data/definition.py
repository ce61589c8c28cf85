"""Dataset definitions: the location and classes of a dataset, its splits, and the meaning of its labels.

A run stores the definitions of its datasets, to detect later changes, and copies of the definition files.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from famix.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_THINGS, ClassDefinition, ClassTable
from famix.io.atomic import whole_file
from famix.utils.errors import DatasetError
from famix.utils.messages import shown
from famix.utils.paths import as_on_disk, local_path

DATASETS_VARIABLE = "DETECTRON2_DATASETS"
"""Environment variable for the base folder of relative roots, as in Detectron2 (default: "datasets")."""

_COPIES = "datasets"  # subfolder of OUTPUT_DIR
# Machine-specific paths, visualization colors, and entries for other splits.
_MAY_CHANGE = ("root", "source", "color", "splits", "folders", "domain")


@dataclass(frozen=True)
class SplitDefinition:
    """Definition of one split of a dataset."""

    name: str
    folder: str  # value of {split} in the path templates; may be empty or a nested path
    keys: str | None = None  # path of the key list below the root; None includes all images
    skip: frozenset[str] = frozenset()  # keys to leave out
    domain: str | None = None  # e.g. "acdc_night"; None derives it from the name


@dataclass(frozen=True)
class LabelEncoding:
    """Meaning of the ids in label files."""

    label_ids: Mapping[int, int] = field(default_factory=dict)  # id -> train id or ignore label
    other_ids_ignored: bool = False  # if False, ids without a class are an error
    highest_id: int | None = None  # higher ids are an error in any case
    channel: int | None = None  # channel with the ids in multi-channel files: 0-3 (red, green, blue, alpha)
    bits: int | None = None  # bits per channel, 8 or 16; None accepts both
    names_file: str | None = None  # JSON file below the root that names the ids, instead of `label_ids`
    label_names: Mapping[str, int] = field(default_factory=dict)  # name in `names_file` -> train id or ignore label
    is_panoptic: bool = False  # COCO panoptic PNGs with the segments listed in `names_file`

    @property
    def is_identity(self) -> bool:
        """Whether the files have one channel of train ids, and any other id is an error."""
        is_listed = self.names_file is None and self.channel is None and not self.other_ids_ignored
        return is_listed and all(label_id == train_id for label_id, train_id in self.label_ids.items())


@dataclass(frozen=True)
class Layout:
    """File layout of a dataset, such as that of the published archive or of a conversion script."""

    images: str  # path template below the root, with {key} and optionally {split}
    labels: str
    encoding: LabelEncoding
    keys: str | None = None  # path template for the split lists; None if folders define the splits
    folders: Mapping[str, str] = field(default_factory=dict)  # split -> value of {split}, if not the split's folder
    splits: frozenset[str] | None = None  # names of the splits that have this layout; None for all

    def has_split(self, name: str) -> bool:
        """Return whether this layout applies to a split."""
        return self.splits is None or name in self.splits


@dataclass(frozen=True, kw_only=True)
class DatasetDefinition:
    """Complete, validated definition of a dataset. The split "train" is registered as <name>_train."""

    name: str
    root: str  # as written in the file
    classes: tuple[ClassDefinition, ...] = CITYSCAPES_CLASSES  # indexed by train id
    ignore_label: int = 255  # train id of pixels excluded from the loss and the scores
    splits: tuple[SplitDefinition, ...]
    source: str = field(compare=False)  # definition file, for error messages
    layouts: tuple[Layout, ...] = ()  # in order of precedence, at least one for semantic labels
    skips_unpaired: bool = False  # leave out images without a label; if False, they are an error
    things: tuple[int, ...] = ()  # train ids of the classes with instances, ascending; only for panoptic labels

    def dataset_name(self, split: SplitDefinition) -> str:
        """Return the name under which a split is registered."""
        return f"{self.name}_{split.name}"

    @property
    def class_table(self) -> ClassTable:
        """Classes of the dataset, in the form stored in checkpoints."""
        names, colors = zip(*((entry.name, entry.color) for entry in self.classes), strict=True)
        return ClassTable(names, colors, self.things, self.ignore_label)

    def root_folder(self) -> str:
        """Return the absolute path of the dataset folder, given the current environment variables.

        Raises:
            DatasetError: the root refers to an environment variable that is not set.
        """
        folder = local_path(self.root, f"{self.source}: 'root'", DatasetError)
        if not os.path.isabs(folder):
            start = local_path(os.environ.get(DATASETS_VARIABLE, "datasets"), f"${DATASETS_VARIABLE}", DatasetError)
            folder = os.path.join(start, folder)
        return as_on_disk(os.path.abspath(folder))


@dataclass(frozen=True, kw_only=True)
class PanopticDefinition(DatasetDefinition):
    """Definition of a dataset in COCO's panoptic format. The split "train" is registered as <name>_train_panoptic."""

    images: str  # path template below the root, with {key} and optionally {split}
    panoptic_root: str  # path template of the PNG folder, optionally with {split}
    panoptic_json: str  # path template of the JSON file that lists the segments
    things: tuple[int, ...] = CITYSCAPES_THINGS
    # Category id or name -> train id or ignore label. If empty, each category maps to the class of the same name.
    categories: Mapping[int | str, int] = field(default_factory=dict)
    other_categories_ignored: bool = False  # if False, categories without a class are an error

    def dataset_name(self, split: SplitDefinition) -> str:
        """Return the name under which a split is registered."""
        return f"{self.name}_{split.name}_panoptic"

    @property
    def stuff(self) -> tuple[int, ...]:
        """Train ids of the classes without instances, ascending."""
        return tuple(train_id for train_id in range(len(self.classes)) if train_id not in self.things)


def describe_dataset(name: str) -> dict[str, Any]:
    """Return the definition and split of a registered dataset as plain data, or {} if other code registered it."""
    definition = MetadataCatalog.get(name).get("definition")
    if definition is None:
        return {}
    (split,) = (split for split in definition.splits if definition.dataset_name(split) == name)

    def kept(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in entries if key not in _MAY_CHANGE}

    parts = {"definition": asdict(definition, dict_factory=kept), "split": asdict(split, dict_factory=kept)}
    described: dict[str, Any] = json.loads(json.dumps(parts, default=sorted))
    return described


def changed_entry(name: str, stored: Mapping[str, Any]) -> str | None:
    """Compare a registered dataset with an earlier result of `describe_dataset`.

    Returns:
        "ENTRY is B (was A)" for the first difference, or None if there is none.
    """
    return next(_changes(stored, describe_dataset(name), ""), None)


def _changes(stored: Any, now: Any, place: str) -> Iterator[str]:
    if isinstance(now, dict) and isinstance(stored, dict):
        for key in dict.fromkeys([*stored, *now]):
            yield from _changes(stored.get(key), now.get(key), f"{place}.{key}")
    elif isinstance(now, list) and isinstance(stored, list) and len(now) == len(stored):
        for index, (before, after) in enumerate(zip(stored, now, strict=True)):
            yield from _changes(before, after, f"{place}.{index}")
    elif now != stored:
        entry = place.removeprefix(".").removeprefix("definition.")
        yield f"{entry} is {shown(now)} (was {shown(stored)})"


def keep_definitions(files: Sequence[str], run: str) -> None:
    """Copy the definition files listed in DATASETS.FILES into the run directory `run`."""
    for file, copy in zip(files, _copies(files, run), strict=True):
        if not (copy.is_file() and os.path.samefile(file, copy)):
            with whole_file(copy) as part:
                shutil.copyfile(file, part)


def find_definitions(files: Sequence[str], config_file: str) -> list[str]:
    """Replace missing DATASETS.FILES entries with copies next to the config file, unless `config_file` is empty."""
    if not config_file:
        return list(files)
    copies = zip(files, _copies(files, os.path.dirname(config_file)), strict=True)
    return [str(copy) if not os.path.isfile(file) and copy.is_file() else file for file, copy in copies]


def _copies(files: Sequence[str], run: str) -> list[Path]:
    copies: list[Path] = []
    for file in map(Path, files):
        copy, number = Path(run, _COPIES, file.name), 2
        while copy in copies:
            copy, number = copy.with_name(f"{file.stem}_{number}{file.suffix}"), number + 1
        copies.append(copy)
    return copies
