"""The record of a run's datasets: their definitions, to detect later changes, and copies of the definition files."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from famix.data.definition import PanopticDefinition
from famix.io.atomic import whole_file
from famix.utils.messages import shown

__all__ = ["changed_entry", "describe_dataset", "find_definitions", "keep_definitions"]

_FOLDER = "datasets"  # in OUTPUT_DIR
# Paths on one machine, colors of drawings, the author of a definition, and entries for other splits.
_FREE = ("root", "source", "color", "splits", "folders", "domain", "domains")


def describe_dataset(name: str) -> dict[str, Any]:
    """Definition and split of a registered dataset as plain data; empty if other code registered it."""
    described: dict[str, Any] = _plain(_described(name))
    return described


def changed_entry(name: str, stored: Mapping[str, Any]) -> str | None:
    """Compare a registered dataset with an earlier result of `describe_dataset`.

    Args:
        name: a registered name.
        stored: the earlier result; entries that it lacks, as those of earlier releases do, are not compared.

    Returns:
        "ENTRY must be A, got B" for the first difference; None without one.
    """
    return next(_changes(stored, _described(name), ""), None)


def keep_definitions(files: Sequence[str], run: str) -> None:
    """Copy definition files into a run directory.

    Args:
        files: as in DATASETS.FILES.
        run: OUTPUT_DIR.
    """
    for file, copy in zip(files, _copies(files, run), strict=True):
        if not (copy.is_file() and os.path.samefile(file, copy)):
            with whole_file(copy) as part:
                shutil.copyfile(file, part)


def find_definitions(files: Sequence[str], config_file: str) -> list[str]:
    """Definition files, with the copies of a run in place of missing ones.

    Args:
        files: as in DATASETS.FILES.
        config_file: config with these files, in the run directory; "" for none.
    """
    if not config_file:
        return list(files)
    copies = _copies(files, os.path.dirname(config_file))
    return [
        str(copy) if not os.path.isfile(file) and copy.is_file() else file
        for file, copy in zip(files, copies, strict=True)
    ]


def _copies(files: Sequence[str], run: str) -> list[Path]:
    copies: list[Path] = []
    for file in map(Path, files):
        copy, number = Path(run, _FOLDER, file.name), 2
        while copy in copies:
            copy, number = copy.with_name(f"{file.stem}_{number}{file.suffix}"), number + 1
        copies.append(copy)
    return copies


def _described(name: str) -> dict[str, Any]:
    definition = MetadataCatalog.get(name).get("definition")
    if definition is None:
        return {}
    (split,) = (split for split in definition.splits if definition.dataset_name(split) == name)
    # Release 0.1 stored the folder of a panoptic split only.
    return {
        "definition": definition,
        "split": {split.name: split.folder if isinstance(definition, PanopticDefinition) else split},
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value) if entry.name not in _FREE}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Set):
        return sorted(value)
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _changes(stored: Any, now: Any, place: str) -> Iterator[str]:
    """Differences between stored plain data and current objects."""
    if is_dataclass(now) and isinstance(stored, Mapping):
        names = [entry.name for entry in fields(now) if entry.name in stored and entry.name not in _FREE]
        for name in sorted(names, key="classes".__ne__):  # the entry that users change
            yield from _changes(stored[name], getattr(now, name), f"{place}.{name}")
    elif isinstance(now, Mapping) and isinstance(stored, Mapping):
        for key in dict.fromkeys([*stored, *now]):
            yield from _changes(stored.get(key), now.get(key), f"{place}.{key}")
    elif isinstance(now, list | tuple) and isinstance(stored, list | tuple) and len(now) == len(stored):
        for index, (before, after) in enumerate(zip(stored, now, strict=True)):
            yield from _changes(before, after, f"{place}.{index}")
    elif _plain(now) != stored:
        entry = place.removeprefix(".").removeprefix("definition.")
        yield f"{entry} must be {shown(stored)}, got {shown(_plain(now))}"
