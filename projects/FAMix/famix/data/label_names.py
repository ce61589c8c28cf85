"""Ids that a dataset's own JSON file names, for label files whose numbering has no fixed table."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from famix.io import MAX_JSON_BYTES, parse_json, read_text
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few, shown
from famix.utils.paths import one_form

__all__ = ["ids_by_name", "read_id_names", "read_json"]

_HIGHEST_ID = 65535  # of a 16-bit file
_SEPARATOR = "--"  # between the levels of Mapillary's names: human--person--individual


def ids_by_name(
    id_names: Mapping[int, str], label_names: Mapping[str, int], ignore_label: int, file: Path
) -> dict[int, int]:
    """Map ids to train ids by their names.

    Upper and lower case, blanks and punctuation do not matter. An entry also stands for the names below it
    ("human--person" for "human--person--individual"); of several that fit, the longest counts.

    Args:
        id_names: id -> name, as the file says.
        label_names: name -> train id or `ignore_label`, as the definition says.
        ignore_label: of the dataset.
        file: named in errors.

    Returns:
        Id -> train id, for every id whose name or a name above it is in `label_names`.

    Raises:
        DatasetError: a train id gets no id, so that names and file do not belong together.
    """
    wanted = {_levels(name): train_id for name, train_id in label_names.items()}
    ids = {}
    for label_id, name in id_names.items():
        levels = _levels(name)
        for count in range(len(levels), 0, -1):
            if levels[:count] in wanted:
                ids[label_id] = wanted[levels[:count]]
                break
    found = {ignore_label, *ids.values()}
    lost = sorted(name for name, train_id in label_names.items() if train_id not in found)
    if lost:
        raise DatasetError(
            f"{file} has no name for {first_few(lost, 5)}; it names {first_few(list(id_names.values()), 5)}. "
            "Correct 'label_names' or 'label_names_file' in the dataset's definition."
        )
    return ids


def read_id_names(file: Path) -> dict[int, str]:
    """Names of ids, of the two forms in use.

    Args:
        file: {"labels": [{"name": ...}, ...]} of Mapillary Vistas, where the place in the list is the id, or
            {"categories": [{"id": ..., "name": ...}, ...]} of COCO.

    Returns:
        Id -> name.

    Raises:
        DatasetError: the file is missing, no JSON, or of another form.
    """
    content = read_json(file)
    try:
        if "labels" in content:
            names = {place: str(entry["name"]) for place, entry in enumerate(content["labels"])}
        else:
            names = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{file} does not name label ids: expected a list 'labels' of entries with 'name', or a list 'categories' "
            "of entries with 'id' and 'name'."
        ) from error
    outside = [label_id for label_id in names if not 0 <= label_id <= _HIGHEST_ID]
    if outside:
        raise DatasetError(f"{file} names the label id {shown(outside[0])}, expected 0 to {_HIGHEST_ID}.")
    return names


def read_json(file: Path) -> Any:
    """Content of a JSON file, kept in memory until the file changes.

    Raises:
        DatasetError: the file is missing or no JSON.
    """
    try:
        return _read_json(file, file.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file}, which tells what the ids in the labels mean, cannot be read: {error}. It comes with the dataset: "
            "put it there."
        ) from error


@lru_cache(maxsize=4)
def _read_json(file: Path, modified: int) -> Any:
    return parse_json(read_text(file, MAX_JSON_BYTES))


def _levels(name: str) -> tuple[str, ...]:
    return tuple("".join(filter(str.isalnum, part)).lower() for part in one_form(name).split(_SEPARATOR))
