"""Datasets in Detectron2's catalogues: registering them, and asking for them by name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.data.definition import load_definition
from famix.data.images import MAX_PIXELS
from famix.data.labels import LabelReader
from famix.data.layout_reader import label_reader_of
from famix.data.panoptic.definition import is_panoptic_file
from famix.data.panoptic.files import PanopticFiles
from famix.data.panoptic.registration import register_panoptic_datasets
from famix.data.records import DatasetRecord
from famix.data.split_files import SplitFiles
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean
from famix.utils.paths import local_path
from famix.utils.plugins import absent_plugin_remedy

__all__ = ["get_dataset_dicts", "get_label_readers", "register_datasets", "register_split", "require_same_classes"]

_BUILTIN = Path(__file__).parent / "builtin"


def register_datasets(files: Sequence[str] = ()) -> None:
    """Register the built-in datasets and those of definition files; what is registered already stays.

    Every split becomes a dataset `<name>_<split>` whose files are listed only when they are asked for. Its metadata
    has `stuff_classes`, `stuff_colors`, `ignore_label`, `evaluator_type` ("sem_seg"), `label_reader` (a `LabelReader`),
    `definition` (a `DatasetDefinition`) and `domain` (of the definition; None leaves it to the name).

    Args:
        files: YAML files, as in DATASETS.FILES.

    Raises:
        DatasetError: a file has a mistake, or a name is taken by another dataset.
    """
    files = [local_path(os.fspath(file), "DATASETS.FILES", DatasetError) for file in files]
    panoptic = [file for file in files if is_panoptic_file(file)]
    for file in (*sorted(_BUILTIN.glob("*.yaml")), *(Path(file) for file in files if file not in panoptic)):
        definition = load_definition(file)
        for split in definition.splits:
            register_split(SplitFiles(definition, split))
    register_panoptic_datasets(panoptic)


def register_split(split_files: SplitFiles) -> None:
    """Register a split as the dataset `<name>_<split>`, as `register_datasets` does; an equal one may be registered.

    Args:
        split_files: of the split; a subclass may make the files when they are first listed.

    Raises:
        DatasetError: the name is taken by another dataset.
    """
    definition = split_files.definition
    name = definition.dataset_name(split_files.split)
    if name in DatasetCatalog:
        taken_by = DatasetCatalog[name]
        if taken_by == split_files:
            return
        owner = taken_by.definition.source if isinstance(taken_by, SplitFiles) else "other code"
        raise DatasetError(
            f"{definition.source}: the dataset '{name}' is already registered by {owner}, with another content. "
            "Change 'name' in one of the files."
        )
    DatasetCatalog.register(name, split_files)
    MetadataCatalog.get(name).set(
        stuff_classes=[entry.name for entry in definition.classes],
        stuff_colors=[entry.color for entry in definition.classes],
        ignore_label=definition.ignore_label,
        evaluator_type="sem_seg",
        label_reader=label_reader_of(definition),
        definition=definition,
        domain=split_files.split.domain,
    )


def get_dataset_dicts(names: Sequence[str]) -> list[dict[str, Any]]:
    """List the images of datasets, one dataset after the other.

    Args:
        names: registered names, as in DATASETS.TRAIN.

    Returns:
        Detectron2's standard dicts; each has `file_name`, `image_id`, `dataset_name` and `label_file_name`, see
        `DatasetRecord`. Those of datasets that other code registered are as that code made them.

    Raises:
        DatasetError: no name is given, one is unknown or repeated, or its files are not as its definition says.
    """
    if not names:
        raise DatasetError("No dataset is named: got an empty list, expected names such as gta5_train.")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise DatasetError(f"Datasets are named more than once: {', '.join(repeated)}. Name each once.")
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
        max_pixels: of a file, see INPUT.MAX_PIXELS.

    Returns:
        Name -> reader.

    Raises:
        DatasetError: a name is unknown, or a dataset that other code registered has no `label_reader`.
    """
    readers = {}
    for name in names:
        _require_registered(name)
        readers[name] = MetadataCatalog.get(name).get("label_reader")
        if readers[name] is None:
            raise DatasetError(
                f"Dataset '{name}' was registered without a 'label_reader' in its metadata, so its labels cannot be "
                "read. Define it in a YAML file and name that in DATASETS.FILES; datasets/README.md shows how."
            )
        if max_pixels != MAX_PIXELS:
            readers[name] = replace(readers[name], max_pixels=max_pixels)
    return readers


def require_same_classes(names: Sequence[str]) -> None:
    """Raise unless all datasets have the same classes in the same order, so that train ids mean the same.

    Args:
        names: registered names.

    Raises:
        DatasetError: a name is unknown or the classes of two datasets differ.
    """
    get_label_readers(names)
    for name in names[1:]:
        first, other = (MetadataCatalog.get(entry) for entry in (names[0], name))
        if first.stuff_classes != other.stuff_classes or first.ignore_label != other.ignore_label:
            raise DatasetError(
                f"Datasets '{names[0]}' and '{name}' have different classes: {first.stuff_classes} with ignore label "
                f"{first.ignore_label}, and {other.stuff_classes} with {other.ignore_label}. Give both the same "
                "'classes' and 'ignore_label' in their definitions."
            )


def _require_registered(name: str) -> None:
    if name not in DatasetCatalog:
        ours = [known for known, function in DatasetCatalog.items() if isinstance(function, SplitFiles | PanopticFiles)]
        raise DatasetError(
            f"Dataset '{name}' is unknown.{did_you_mean(name, ours) or absent_plugin_remedy(name)} Known datasets: {', '.join(sorted(ours))}. "
            "Define your own in a YAML file and name that in DATASETS.FILES."
        )
