"""Datasets in Detectron2's catalogs: registration, lookup by name, and domains.

Domains determine which datasets in a config are sources and which are targets.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.data.classes import ClassTable
from famix.data.corruption import parse_corruption, register_corruptions
from famix.data.definition import DatasetDefinition, PanopticDefinition
from famix.data.definition_file import load_definition
from famix.data.images import MAX_PIXELS
from famix.data.labels import LabelReader
from famix.data.layout.split_files import DatasetFiles, DatasetRecord, SplitFiles
from famix.data.panoptic.files import PanopticFiles
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.messages import did_you_mean
from famix.utils.paths import local_path
from famix.utils.plugins import absent_plugin_remedy

BUILTIN = Path(__file__).parent / "builtin"
"""Folder with the definition files of the built-in datasets."""

_OF_DETECTRON2 = ("cityscapes_fine_panoptic_train", "cityscapes_fine_panoptic_val")
# Words in dataset names that are not part of a domain: splits, authors of file lists, label types.
_NOT_DOMAINS = (
    "train", "training", "trainval", "val", "validation", "valid", "dev", "test", "all", "whole", "full",
    "official", "famix", "robustnet", "panoptic",
)  # fmt: skip
_CLEAR = "clear"  # condition of datasets whose name does not include one


def register_datasets(files: Sequence[str] = ()) -> None:
    """Register the built-in datasets and those in definition files. Existing registrations are kept.

    Each split becomes a dataset `<name>_<split>`, or `<name>_<split>_panoptic`, which lists its files on access. Its
    metadata includes `stuff_classes`, `stuff_colors`, `ignore_label`, `evaluator_type`, `label_reader` (`LabelReader`),
    `definition` (`DatasetDefinition`) and `domain` (from the definition, or None if the name determines it). Panoptic
    datasets also have the metadata of Detectron2's "cityscapes_fine_panoptic_train", with train ids as category ids.

    Args:
        files: paths of YAML files, as in DATASETS.FILES.

    Raises:
        DatasetError: a file is invalid, or a name is taken by a different dataset.
    """
    own = [Path(local_path(os.fspath(file), "DATASETS.FILES", DatasetError)) for file in files]
    for definition in (*_builtin_definitions(), *map(load_definition, own)):
        for split_files in files_of(definition):
            register_split(split_files)
    for name in _OF_DETECTRON2:
        if name in DatasetCatalog and MetadataCatalog.get(name).get("label_reader") is None:
            # Their semantic label files contain train ids.
            train_ids = (*range(len(MetadataCatalog.get(name).stuff_classes)), 255)
            MetadataCatalog.get(name).label_reader = LabelReader({train_id: train_id for train_id in train_ids})


@cache
def _builtin_definitions() -> list[DatasetDefinition]:
    return [load_definition(file) for file in sorted(BUILTIN.glob("*.yaml"))]


def files_of(definition: DatasetDefinition) -> list[DatasetFiles]:
    """Return a `DatasetFiles` for each split of a dataset."""
    if isinstance(definition, PanopticDefinition):
        return [PanopticFiles(definition, split) for split in definition.splits]
    return [SplitFiles(definition, split) for split in definition.splits]


def register_split(files: DatasetFiles) -> None:
    """Register one split. Plugins pass a subclass that creates its files on demand."""
    if files.name in DatasetCatalog:
        taken_by = DatasetCatalog[files.name]
        if taken_by == files:
            return
        owner = taken_by.definition.source if isinstance(taken_by, DatasetFiles) else "other code"
        raise DatasetError(
            f"{files.definition.source}: the dataset '{files.name}' is already registered by {owner} with different "
            "content. Change 'name' in one of the files."
        )
    DatasetCatalog.register(files.name, files)
    MetadataCatalog.get(files.name).set(**files.metadata())


def get_dataset_dicts(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the dataset dicts for all images in the given datasets, one dataset after another.

    Args:
        names: registered dataset names, as in DATASETS.TRAIN.

    Returns:
        Detectron2's standard dataset dicts with `file_name`, `image_id`, `dataset_name` and `label_file_name` (see
        `DatasetRecord`). Datasets registered by other code keep their own entries.

    Raises:
        DatasetError: `names` is empty, a name is unknown or repeated, or the files do not match their definition.
    """
    if not names:
        raise DatasetError("The list of dataset names is empty. Pass at least one name, such as 'gta5_train'.")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise DatasetError(f"Dataset names must be unique, got {', '.join(repeated)} several times. List each once.")
    for name in names:
        _require_registered(name)
    return [
        record if isinstance(record, DatasetRecord) else {**record, "dataset_name": name}
        for name in names
        for record in DatasetCatalog.get(name)
    ]


def get_label_readers(names: Sequence[str], max_pixels: int = MAX_PIXELS) -> Mapping[str, LabelReader]:
    """Return the label reader for each registered dataset by name, with a pixel limit as in INPUT.MAX_PIXELS.

    Raises:
        DatasetError: a name is unknown, or a dataset registered by other code has no `label_reader`.
    """
    readers = {}
    for name in names:
        _require_registered(name)
        readers[name] = MetadataCatalog.get(name).get("label_reader")
        if readers[name] is None:
            raise DatasetError(
                f"Dataset '{name}' has no 'label_reader' in its metadata, so its labels cannot be read. Define the "
                "dataset in a YAML file, and name the file in DATASETS.FILES (see datasets/README.md)."
            )
        if max_pixels != MAX_PIXELS:
            readers[name] = replace(readers[name], max_pixels=max_pixels)
    return readers


def require_same_classes(names: Sequence[str]) -> None:
    """Raise a DatasetError unless registered datasets have the same classes in the same order."""
    get_label_readers(names)
    for name in names[1:]:
        first, other = (MetadataCatalog.get(entry) for entry in (names[0], name))
        if first.stuff_classes != other.stuff_classes or first.ignore_label != other.ignore_label:
            raise DatasetError(
                f"Datasets '{names[0]}' and '{name}' define different classes: {first.stuff_classes} with ignore label "
                f"{first.ignore_label}, and {other.stuff_classes} with ignore label {other.ignore_label}. Use the same "
                "'classes' and 'ignore_label' in both definitions."
            )


def _require_registered(name: str) -> None:
    register_corruptions([name])
    if name not in DatasetCatalog:
        ours = [known for known, files in DatasetCatalog.items() if isinstance(files, DatasetFiles)]
        own = sorted(filter(_is_own, ours))
        remedy = did_you_mean(name, ours) or absent_plugin_remedy(name)
        if name.endswith((".yaml", ".yml")):
            remedy = " Use the name of a dataset here, and name its file in DATASETS.FILES."
        known = f"{len(ours) - len(own)} built-in datasets (datasets/README.md)"
        raise DatasetError(
            f"Dataset '{name}' is unknown.{remedy} Known: {', '.join(own) + ' and ' * bool(own)}{known}. Define your own in a YAML file, and name the file in DATASETS.FILES."
        )


def classes_in_files(files: Sequence[str], datasets: Sequence[str]) -> ClassTable | None:
    """Return the classes from the first definition file that defines one of the datasets, registered or not."""
    for definition in map(load_definition, files):
        if any(definition.dataset_name(split) in datasets for split in definition.splits):
            return definition.class_table
    return None


@dataclass(frozen=True)
class Roles:
    """Role of each dataset in a config."""

    sources: tuple[str, ...]  # used for training
    held_out: tuple[str, ...]  # scored, but in the domain of a source; excluded from the mean
    targets: tuple[str, ...]  # scored, in other domains
    decided_by: str  # "TEST.SOURCE"; "domain" if the definitions state all domains; otherwise "name"

    def __str__(self) -> str:
        """Return one line such as "source: gta5_train; targets: acdc_fog_val, acdc_rain_val (by name; ...)"."""
        parts = [f"source: {', '.join(self.sources) or 'none'}", f"targets: {', '.join(self.targets) or 'none'}"]
        if self.held_out:
            parts.append(f"in the source domain, excluded from the mean: {', '.join(self.held_out)}")
        change = "; use TEST.SOURCE or 'domain' in their definitions to change this"
        return f"{'; '.join(parts)} (by {self.decided_by}{'' if self.decided_by == 'TEST.SOURCE' else change})"


def roles_of(cfg: CfgNode) -> Roles:
    """Return the role of each dataset in a config, from DATASETS.TRAIN, DATASETS.TEST and TEST.SOURCE."""
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    are_stated = all(_stated_domain(name) is not None for name in train + test)
    return Roles(
        sources=train,
        held_out=tuple(name for name in test if is_source(cfg, name)),
        targets=tuple(name for name in test if not is_source(cfg, name)),
        decided_by="TEST.SOURCE" if cfg.TEST.SOURCE else "domain" if are_stated else "name",
    )


def is_source(cfg: CfgNode, name: str) -> bool:
    """Return whether a dataset is in a training domain, so its score does not measure generalization.

    If TEST.SOURCE is not empty, it lists these datasets. Otherwise, they are in the domain of a dataset in
    DATASETS.TRAIN or, unless their definition states a domain, in its "clear" condition.
    """
    if cfg.TEST.SOURCE:
        return name in cfg.TEST.SOURCE
    sources = {domain_of(source) for source in cfg.DATASETS.TRAIN}
    if _stated_domain(name) is None:
        sources |= {f"{source}_{_CLEAR}" for source in sources}
    return domain_of(name) in sources


def require_known_sources(cfg: CfgNode) -> None:
    """Raise a ConfigError unless all names in TEST.SOURCE are registered."""
    for name in cfg.TEST.SOURCE:
        if name not in DatasetCatalog:
            raise ConfigError(f"TEST.SOURCE must list datasets, got '{name}'.{did_you_mean(name, DatasetCatalog)}")


def domain_of(name: str) -> str:
    """Return the domain in the dataset's definition, or else its name without words such as splits.

    For example, the domain of "acdc_night_val" is "acdc_night". A corrupted dataset is in a domain of its own.
    """
    corruption = parse_corruption(name)
    if corruption is not None:
        return f"{domain_of(corruption.base)}@{corruption.kind}{corruption.severity}"
    stated = _stated_domain(name)
    if stated is not None:
        return stated
    family = _family(name)
    words = [word for word in name.removeprefix(family).split("_") if word and word not in _NOT_DOMAINS]
    return "_".join([family, *words] if family else words) or name


def domain_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group the conditions of each dataset for averaging, e.g. map "acdc" to its conditions in `names`.

    Groups that contain only one name or all names are left out.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_family(name), []).append(name)
    return {family: tuple(group) for family, group in groups.items() if family and 1 < len(group) < len(names)}


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return a heading for each dataset: its domain, or its name if it is the user's own or others share the domain."""
    short = [_short_name(name) for name in names]
    return {name: heading if short.count(heading) == 1 else name for name, heading in zip(names, short, strict=True)}


def _short_name(name: str) -> str:
    return name if _is_own(name) else domain_of(name)


def _is_own(name: str) -> bool:
    """Return whether a dataset is defined in a file of the user, who knows it by its full name."""
    corruption = parse_corruption(name)
    name = corruption.base if corruption else name
    definition = MetadataCatalog.get(name).get("definition") if name in DatasetCatalog else None
    return definition is not None and os.path.isfile(definition.source) and Path(definition.source).parent != BUILTIN


def _stated_domain(name: str) -> str | None:
    corruption = parse_corruption(name)
    if corruption is not None:
        name = corruption.base
    domain: str | None = MetadataCatalog.get(name).get("domain") if name in DatasetCatalog else None
    return domain


def _family(name: str) -> str:
    """Return the name in the definition of a registered dataset, or "" if it has none.

    The severities of a corruption are a family of their own.
    """
    corruption = parse_corruption(name)
    if corruption is not None:
        return f"{_short_name(corruption.base)}@{corruption.kind}"
    definition = MetadataCatalog.get(name).get("definition") if name in DatasetCatalog else None
    return definition.name if definition is not None else ""
