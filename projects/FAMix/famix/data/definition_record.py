"""What a run keeps of its datasets: their definitions, so that a later change is noticed, and copies of their files."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from famix.io.atomic import whole_file
from famix.utils.messages import shown

__all__ = ["changed_entry", "describe_dataset", "find_definitions", "keep_definitions"]

_FOLDER = "datasets"  # of OUTPUT_DIR
# Where files lie on a machine, what is drawn how, who wrote it, and what concerns other splits.
_FREE = ("root", "source", "color", "splits", "folders", "domain", "domains")


def describe_dataset(name: str) -> dict[str, Any]:
    """A registered dataset as plain data: its definition and its split; empty for one that other code registered.

    Args:
        name: a registered name.
    """
    described: dict[str, Any] = _plain(_described(name))
    return described


def changed_entry(name: str, stored: Mapping[str, Any]) -> str | None:
    """Compare a registered dataset with what `describe_dataset` told of it before.

    Args:
        name: a registered name.
        stored: what it told; entries that it lacks, as of an earlier release, are not compared.

    Returns:
        "ENTRY must be A, got B" for the first entry that differs; None where all are equal.
    """
    return next(_changes(stored, _described(name), ""), None)


def keep_definitions(files: Sequence[str], run: str) -> None:
    """Copy definition files into the folder of a run.

    Args:
        files: as in DATASETS.FILES.
        run: OUTPUT_DIR.
    """
    for file, copy in zip(files, _copies(files, run), strict=True):
        if not (copy.is_file() and os.path.samefile(file, copy)):
            with whole_file(copy) as part:
                shutil.copyfile(file, part)


def find_definitions(files: Sequence[str], config_file: str) -> list[str]:
    """Definition files, those that are gone replaced by the copies of a run.

    Args:
        files: as in DATASETS.FILES.
        config_file: that names them, in the folder of the run; "" for none.
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
    metadata = MetadataCatalog.get(name)
    definition = metadata.get("definition")
    if definition is None:
        return {}
    if isinstance(definition.splits, Mapping):  # of a panoptic dataset: name -> folder
        split = {key: value for key, value in definition.splits.items() if definition.dataset_name(key) == name}
    else:
        split = {split.name: split for split in definition.splits if definition.dataset_name(split) == name}
    return {"definition": definition, "split": split}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value) if entry.name not in _FREE}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Set):
        return sorted(value)
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _changes(stored: Any, now: Any, place: str) -> Iterator[str]:
    """Differences of what was stored as plain data from objects as they are."""
    if is_dataclass(now) and isinstance(stored, Mapping):
        names = [entry.name for entry in fields(now) if entry.name in stored and entry.name not in _FREE]
        for name in sorted(names, key="classes".__ne__):  # which is what a user has changed
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
