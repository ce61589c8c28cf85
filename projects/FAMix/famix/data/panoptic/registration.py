"""Panoptic datasets in Detectron2's catalogues."""

from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.data.labels import LabelReader
from famix.data.panoptic.builtin import BUILTIN_PANOPTIC
from famix.data.panoptic.definition import load_panoptic_definition
from famix.data.panoptic.files import PanopticFiles
from famix.data.panoptic.reader import panoptic_label_reader
from famix.utils.errors import DatasetError

__all__ = ["LABEL_DIVISOR", "register_panoptic_datasets", "register_panoptic_split"]

LABEL_DIVISOR = 1000
"""Panoptic-DeepLab numbers a segment train id * LABEL_DIVISOR + number of the instance."""

_OF_DETECTRON2 = ("cityscapes_fine_panoptic_train", "cityscapes_fine_panoptic_val")


def register_panoptic_datasets(files: Sequence[str] = ()) -> None:
    """Register the built-in panoptic datasets and those of definition files.

    A split is registered as <name>_<split>_panoptic, with the metadata that Detectron2 gives to its own
    "cityscapes_fine_panoptic_train", in which train ids stand for both kinds of category ids, and `ignore_label`,
    `label_reader`, `definition` and `domain`. Files are read only when they are asked for. What is registered already stays.

    Args:
        files: YAML files of panoptic datasets.

    Raises:
        DatasetError: a file has a mistake, or a name is taken by another dataset.
    """
    for definition in (*BUILTIN_PANOPTIC, *map(load_panoptic_definition, files)):
        for split in definition.splits:
            register_panoptic_split(PanopticFiles(definition, split))
    for name in _OF_DETECTRON2:
        if name in DatasetCatalog and MetadataCatalog.get(name).get("label_reader") is None:
            # Their semantic labels are files of train ids.
            train_ids = (*range(len(MetadataCatalog.get(name).stuff_classes)), 255)
            MetadataCatalog.get(name).label_reader = LabelReader({train_id: train_id for train_id in train_ids})


def register_panoptic_split(files: PanopticFiles) -> None:
    """Register a split as the dataset `<name>_<split>_panoptic`; an equal one may be registered.

    Args:
        files: of the split.

    Raises:
        DatasetError: the name is taken by another dataset.
    """
    definition, name = files.definition, files.name
    if name in DatasetCatalog:
        taken_by = DatasetCatalog[name]
        if taken_by == files:
            return
        owner = taken_by.definition.source if isinstance(taken_by, PanopticFiles) else "other code"
        raise DatasetError(
            f"{definition.source}: the dataset '{name}' is already registered by {owner}, with another content. "
            "Change 'name' in one of the files."
        )
    DatasetCatalog.register(name, files)
    names, colors = [entry.name for entry in definition.classes], [entry.color for entry in definition.classes]
    MetadataCatalog.get(name).set(
        thing_classes=names,
        thing_colors=colors,
        stuff_classes=names,
        stuff_colors=colors,
        thing_dataset_id_to_contiguous_id={train_id: train_id for train_id in definition.things},
        stuff_dataset_id_to_contiguous_id={train_id: train_id for train_id in definition.stuff},
        panoptic_root=files.panoptic_root,
        panoptic_json=files.panoptic_json,
        label_divisor=LABEL_DIVISOR,
        ignore_label=definition.ignore_label,
        evaluator_type="famix_panoptic",
        label_reader=panoptic_label_reader(files),
        definition=definition,
        domain=definition.domains.get(files.split),
    )
