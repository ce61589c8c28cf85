"""Datasets in Detectron2's catalogs: registration and lookup by name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.data.definition import DatasetDefinition, PanopticDefinition
from famix.data.definition_file import load_definition
from famix.data.images import MAX_PIXELS
from famix.data.labels import LabelReader
from famix.data.panoptic.files import PanopticFiles
from famix.data.records import DatasetRecord
from famix.data.split_files import DatasetFiles, SplitFiles
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean
from famix.utils.paths import local_path
from famix.utils.plugins import absent_plugin_remedy

__all__ = [
    "BUILTIN",
    "files_of",
    "get_dataset_dicts",
    "get_label_readers",
    "register_datasets",
    "register_split",
    "require_same_classes",
]

BUILTIN = Path(__file__).parent / "builtin"
"""Folder of the definition files of the built-in datasets."""

_OF_DETECTRON2 = ("cityscapes_fine_panoptic_train", "cityscapes_fine_panoptic_val")


def register_datasets(files: Sequence[str] = ()) -> None:
    """Register the built-in datasets and those of definition files. Registered names stay.

    Each split becomes a dataset `<name>_<split>`, or `<name>_<split>_panoptic`, which lists its files on access. Its
    metadata include `stuff_classes`, `stuff_colors`, `ignore_label`, `evaluator_type`, `label_reader` (a `LabelReader`),
    `definition` (a `DatasetDefinition`) and `domain` (of the definition; None derives it from the name). Panoptic datasets
    also have the metadata of Detectron2's "cityscapes_fine_panoptic_train", with train ids as category ids.

    Args:
        files: YAML files, as in DATASETS.FILES.

    Raises:
        DatasetError: if a file has a mistake, or a name is taken by another dataset.
    """
    own = [Path(local_path(os.fspath(file), "DATASETS.FILES", DatasetError)) for file in files]
    for definition in (*_builtin_definitions(), *map(load_definition, own)):
        for split_files in files_of(definition):
            register_split(split_files)
    for name in _OF_DETECTRON2:
        if name in DatasetCatalog and MetadataCatalog.get(name).get("label_reader") is None:
            # Their semantic labels are files of train ids.
            train_ids = (*range(len(MetadataCatalog.get(name).stuff_classes)), 255)
            MetadataCatalog.get(name).label_reader = LabelReader({train_id: train_id for train_id in train_ids})


@cache
def _builtin_definitions() -> list[DatasetDefinition]:
    return [load_definition(file) for file in sorted(BUILTIN.glob("*.yaml"))]


def files_of(definition: DatasetDefinition) -> list[DatasetFiles]:
    """The files of each split of a dataset."""
    if isinstance(definition, PanopticDefinition):
        return [PanopticFiles(definition, split) for split in definition.splits]
    return [SplitFiles(definition, split) for split in definition.splits]


def register_split(files: DatasetFiles) -> None:
    """Register one split; plugins call it with a subclass that creates its files on demand.

    Raises:
        DatasetError: if its name is taken by another dataset.
    """
    if files.name in DatasetCatalog:
        taken_by = DatasetCatalog[files.name]
        if taken_by == files:
            return
        owner = taken_by.definition.source if isinstance(taken_by, DatasetFiles) else "other code"
        raise DatasetError(
            f"{files.definition.source}: the dataset '{files.name}' is already registered by {owner}, with other content. "
            "Change 'name' in one of the files."
        )
    DatasetCatalog.register(files.name, files)
    MetadataCatalog.get(files.name).set(**files.metadata())


def get_dataset_dicts(names: Sequence[str]) -> list[dict[str, Any]]:
    """List the images of datasets, one dataset after the other.

    Args:
        names: registered names, as in DATASETS.TRAIN.

    Returns:
        Detectron2's standard dicts with `file_name`, `image_id`, `dataset_name` and `label_file_name`, see
        `DatasetRecord`. Datasets that other code registered keep their own entries.

    Raises:
        DatasetError: if there is no name, one is unknown or repeated, or its files do not match its definition.
    """
    if not names:
        raise DatasetError("The dataset names must be a list such as ['gta5_train'], got an empty one.")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise DatasetError(f"Dataset names must be unique, got {', '.join(repeated)} more than once. Name each once.")
    for name in names:
        _require_registered(name)
    return [
        record if isinstance(record, DatasetRecord) else {**record, "dataset_name": name}
        for name in names
        for record in DatasetCatalog.get(name)
    ]


def get_label_readers(names: Sequence[str], max_pixels: int = MAX_PIXELS) -> Mapping[str, LabelReader]:
    """Label readers of datasets.

    Args:
        names: registered names.
        max_pixels: limit of INPUT.MAX_PIXELS.

    Returns:
        Name -> reader.

    Raises:
        DatasetError: if a name is unknown, or a dataset that other code registered has no `label_reader`.
    """
    readers = {}
    for name in names:
        _require_registered(name)
        readers[name] = MetadataCatalog.get(name).get("label_reader")
        if readers[name] is None:
            raise DatasetError(
                f"Dataset '{name}' must have a 'label_reader' in its metadata to read its labels. Define it in a YAML file "
                "and name the file in DATASETS.FILES; datasets/README.md shows how."
            )
        if max_pixels != MAX_PIXELS:
            readers[name] = replace(readers[name], max_pixels=max_pixels)
    return readers


def require_same_classes(names: Sequence[str]) -> None:
    """Raise unless all datasets have the same classes in the same order, so that their train ids agree.

    Args:
        names: registered names.

    Raises:
        DatasetError: if a name is unknown or the classes of two datasets differ.
    """
    get_label_readers(names)
    for name in names[1:]:
        first, other = (MetadataCatalog.get(entry) for entry in (names[0], name))
        if first.stuff_classes != other.stuff_classes or first.ignore_label != other.ignore_label:
            raise DatasetError(
                f"Datasets '{names[0]}' and '{name}' must have the same classes, got {first.stuff_classes} with ignore "
                f"label {first.ignore_label}, and {other.stuff_classes} with {other.ignore_label}. Use the same 'classes' "
                "and 'ignore_label' in both definitions."
            )


def _require_registered(name: str) -> None:
    if name not in DatasetCatalog:
        ours = [known for known, function in DatasetCatalog.items() if isinstance(function, DatasetFiles)]
        raise DatasetError(
            f"Dataset '{name}' is unknown.{did_you_mean(name, ours) or absent_plugin_remedy(name)} Known datasets: "
            f"{', '.join(sorted(ours))}. "
            "Define your own in a YAML file and name the file in DATASETS.FILES."
        )
