"""Label readers for datasets with several layouts, or with a JSON file that defines the ids in their labels."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from famix.data.definition import DatasetDefinition, LabelEncoding
from famix.data.labels import LabelReader
from famix.data.layout.file_tree import plain_extension
from famix.data.panoptic.segments import Segment, SegmentLabelReader, plain_name, read_json, read_panoptic_json
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few, shown
from famix.utils.paths import as_on_disk, one_form

_MEANINGS = {"{key}": ".+", "{split}/": "(?:.+/)?", "{split}": ".+"}  # a split's folder may be ""
_HIGHEST_ID = 65535  # in a 16-bit file
_SEPARATOR = "--"  # between the levels of Mapillary's class names: human--person--individual


def label_reader_of(definition: DatasetDefinition) -> LabelReader:
    """Return the label reader for all layouts of a dataset. The files need not exist yet."""
    first = definition.layouts[0].encoding
    if first.names_file is None and all(layout.encoding == first for layout in definition.layouts):
        return _make_reader(definition, first)
    return LayoutLabelReader(first.label_ids, definition.ignore_label, source=definition.source, definition=definition)


@dataclass(frozen=True)
class LayoutLabelReader(LabelReader):
    """Reader for label files whose path determines their layout, and therefore their encoding."""

    definition: DatasetDefinition = field(kw_only=True, repr=False)
    _readers: dict[tuple[str, str], LabelReader] = field(init=False, repr=False, compare=False, default_factory=dict)

    def for_file(self, path: str | os.PathLike[str]) -> LabelReader:
        """Return the reader for a file's encoding. Raises a DatasetError if its path matches no layout."""
        root = self.definition.root_folder()
        below = plain_extension(one_form(os.path.relpath(path, root).replace(os.sep, "/")))
        encodings = {layout.labels: layout.encoding for layout in self.definition.layouts}
        fitting = [template for template in encodings if _regex_of(template).fullmatch(below)]
        if not fitting:
            raise DatasetError(
                f"Label '{path}' matches no layout, so its encoding is unknown. Move it to a path below '{root}' such "
                f"as {', '.join(encodings)}, or add its layout to {self.source}."
            )
        # labels/{key}.png also matches labels/1_labelTrainIds.png, so the template with more literal characters wins.
        best = max(fitting, key=lambda template: len(template.replace("{key}", "").replace("{split}", "")))
        if (best, root) not in self._readers:
            reader = _make_reader(self.definition, encodings[best])
            self._readers[best, root] = replace(reader, max_pixels=self.max_pixels)
        return self._readers[best, root]


@lru_cache(maxsize=64)
def _regex_of(template: str) -> re.Pattern[str]:
    pattern = re.escape(plain_extension(one_form(template)))
    for placeholder, meaning in _MEANINGS.items():
        pattern = pattern.replace(re.escape(placeholder), meaning)
    return re.compile(pattern)


def _make_reader(definition: DatasetDefinition, encoding: LabelEncoding) -> LabelReader:
    common: dict[str, Any] = {
        "ignore_label": definition.ignore_label,
        "other_ids_ignored": encoding.other_ids_ignored,
        "channel": encoding.channel,
        "source": definition.source,
        "bits": encoding.bits,
        "highest_id": encoding.highest_id,
    }
    if encoding.names_file is None:
        return LabelReader(encoding.label_ids, **common)
    file = Path(as_on_disk(os.path.join(definition.root_folder(), encoding.names_file)))
    id_names = read_id_names(file)
    label_ids = ids_by_name(id_names, encoding.label_names, definition.ignore_label, file)
    if encoding.highest_id is None:
        common["highest_id"] = max(id_names)
    if not encoding.is_panoptic:
        return LabelReader(label_ids, **common)
    segments_of = partial(listed_segments, segments_file=file)
    return SegmentLabelReader(label_ids, **common, segments_of=segments_of, all_visible=False)


def ids_by_name(
    id_names: Mapping[int, str], label_names: Mapping[str, int], ignore_label: int, file: Path
) -> dict[int, int]:
    """Map ids to train ids by their names. Ids without an entry in `label_names` are left out.

    Case, spaces and punctuation are ignored. An entry also applies to the names below it ("human--person" for
    "human--person--individual"); the longest matching entry wins. Raises a DatasetError if a train id is unused.
    """

    def levels_of(name: str) -> tuple[str, ...]:
        return tuple(map(plain_name, name.split(_SEPARATOR)))

    wanted = {levels_of(name): train_id for name, train_id in label_names.items()}
    ids = {}
    for label_id, name in id_names.items():
        levels = levels_of(name)
        for count in range(len(levels), 0, -1):
            if levels[:count] in wanted:
                ids[label_id] = wanted[levels[:count]]
                break
    found = {ignore_label, *ids.values()}
    lost = sorted(name for name, train_id in label_names.items() if train_id not in found)
    if lost:
        raise DatasetError(
            f"'{file}' has no label named {first_few(lost, 5)}. Its labels are "
            f"{first_few(list(id_names.values()), 5)}. Correct 'label_names' or 'label_names_file' in the dataset "
            "definition."
        )
    return ids


def read_id_names(file: Path) -> dict[int, str]:
    """Read the mapping from id to name in a JSON file. Raises a DatasetError if the file is missing or malformed.

    The file contains {"labels": [{"name": ...}, ...]} as in Mapillary Vistas, where the position is the id, or
    {"categories": [{"id": ..., "name": ...}, ...]} as in COCO.
    """
    content = read_json(file)
    try:
        if "labels" in content:
            names = {place: str(entry["name"]) for place, entry in enumerate(content["labels"])}
        else:
            names = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"'{file}' must contain a list 'labels' of entries with 'name', or a list 'categories' of entries with "
            "'id' and 'name'."
        ) from error
    outside = [label_id for label_id in names if not 0 <= label_id <= _HIGHEST_ID]
    if outside:
        raise DatasetError(f"'{file}': label ids must be from 0 to {_HIGHEST_ID}, got {shown(outside[0])}.")
    return names


def listed_segments(path: str | os.PathLike[str], segments_file: Path) -> tuple[Sequence[Segment], Sequence[int]]:
    """Return the segments that a JSON file lists for a PNG, and an empty list of void segments."""
    modified = segments_file.stat().st_mtime_ns if segments_file.is_file() else 0
    name = os.path.basename(path)
    segments = _segments_by_label(segments_file, modified).get(one_form(name))
    if segments is None:
        raise DatasetError(
            f"'{segments_file}' has no annotation for '{name}'. Leave out the image, or correct the file."
        )
    return segments, ()


@lru_cache(maxsize=1)
def _segments_by_label(file: Path, modified: int) -> dict[str, tuple[Segment, ...]]:
    annotations, _ = read_panoptic_json(file)
    return {one_form(os.path.basename(entry.label)): entry.segments for entry in annotations}
