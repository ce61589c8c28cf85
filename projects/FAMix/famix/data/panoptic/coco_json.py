"""COCO's panoptic JSON files: which segments a PNG has, and which class each of them is."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from famix.data.panoptic.definition import PanopticDefinition
from famix.data.panoptic.segments import Segment
from famix.io import MAX_JSON_BYTES, parse_json, read_text
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean, first_few, shown
from famix.utils.paths import one_form

__all__ = ["PanopticAnnotation", "read_annotations"]

_HIGHEST_ID = (1 << 24) - 1
_MOST_SEGMENTS = (1 << 16) - 2  # of an image, whose pixels are numbered in 16 bits


@dataclass(frozen=True)
class PanopticAnnotation:
    """What a JSON file says of one image.

    Attributes:
        names: that its image may have, without folder and suffix; the first that is there counts.
        label: the PNG, relative to `panoptic_root`.
        segments: of classes.
        void_segments: ids of segments without a class.
    """

    names: tuple[str, ...]
    label: str
    segments: tuple[Segment, ...]
    void_segments: tuple[int, ...]


def read_annotations(definition: PanopticDefinition, file: Path) -> list[PanopticAnnotation]:
    """Read and check a panoptic JSON file.

    Args:
        definition: says what its categories are.
        file: with the lists `categories` of {id, name, isthing}, `annotations` of {image_id, file_name, segments_info:
            [{id, category_id, iscrowd}]} and, where names of images do not follow from `image_id`, `images` of
            {id, file_name}.

    Returns:
        What it says of every image, in its order.

    Raises:
        DatasetError: the file cannot be read, is of another form, a category or a segment is wrong, or it has no things
            or no stuff at all.
    """
    content = _read(definition, file)
    try:
        categories = _Categories(definition, file, content["categories"])
        names = {image["id"]: image["file_name"] for image in content.get("images", ())}
        annotations = [_annotation(entry, names, categories) for entry in content["annotations"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{file} is no panoptic JSON file ({type(error).__name__}: {error}): expected the lists 'categories' of "
            "{id, name, isthing} and 'annotations' of {image_id, file_name, segments_info: [{id, category_id}]}."
        ) from error
    _require_both_kinds(definition, file, annotations)
    return annotations


class _Categories:
    """Category ids of a JSON file -> train ids."""

    def __init__(self, definition: PanopticDefinition, file: Path, entries: Iterable[Mapping[str, Any]]) -> None:
        self.definition = definition
        self.file = file
        self.names = {int(entry["id"]): str(entry["name"]) for entry in entries}
        self._by_key = {_plain(key): train_id for key, train_id in self._wanted().items()}
        self._train_ids: dict[int, int] = {}
        found = set()
        for entry in entries:
            for key in (int(entry["id"]), str(entry["name"])):
                if _plain(key) in self._by_key:
                    found.add(_plain(key))
                    self._train_ids[int(entry["id"])] = self._by_key[_plain(key)]
                    self._require_instances(entry)
                    break
        self._require_found(found)

    def train_id(self, category_id: int, label: str) -> int | None:
        """Class of a category; None where its segments count as unlabelled.

        Raises:
            DatasetError: it has none.
        """
        train_id = self._train_ids.get(category_id)
        if train_id is None and not self.definition.other_categories_ignored:
            known = f"'{self.names[category_id]}'" if category_id in self.names else "which its 'categories' lack"
            raise DatasetError(
                f"{self.file}: a segment of {label} has the category {category_id}, {known}, which is no class of "
                f"{self.definition.source}. Add it to 'categories' there, or ignore it with 'other_categories: ignore'."
            )
        return None if train_id == self.definition.ignore_label else train_id

    def _wanted(self) -> Mapping[int | str, int]:
        return self.definition.categories or {
            entry.name: train_id for train_id, entry in enumerate(self.definition.classes)
        }

    def _require_instances(self, entry: Mapping[str, Any]) -> None:
        train_id = self._train_ids[int(entry["id"])]
        if train_id in self.definition.things and not entry.get("isthing", 1):
            raise DatasetError(
                f"{self.file}: the category {entry['id']}, '{entry['name']}', has no instances ('isthing' is 0), but its "
                f"class '{self.definition.classes[train_id].name}' is a thing in {self.definition.source}. Make it stuff "
                "there, or take labels with its instances."
            )

    def _require_found(self, found: set[int | str]) -> None:
        """A name that fits nothing is mistyped, and its class would be lost without a word."""
        lost = [key for key in self.definition.categories if isinstance(key, str) and _plain(key) not in found]
        if lost:
            raise DatasetError(
                f"{self.definition.source}: 'categories' names {first_few(lost)}, which {self.file} lacks."
                f"{did_you_mean(lost[0], self.names.values())} Its categories are {first_few(list(self.names.values()), 8)}."
            )


def _annotation(
    entry: Mapping[str, Any], image_names: Mapping[Any, str], categories: _Categories
) -> PanopticAnnotation:
    label = _label_below_root(str(entry["file_name"]), categories.file)
    segments, void = [], []
    for segment in entry["segments_info"]:
        segment_id, train_id = int(segment["id"]), categories.train_id(int(segment["category_id"]), label)
        if not 0 < segment_id <= _HIGHEST_ID:
            raise DatasetError(
                f"{categories.file}: a segment of {label} has the id {segment_id}, expected 1 to 16777215."
            )
        if train_id is None:
            void.append(segment_id)
        else:
            segments.append({"id": segment_id, "category_id": train_id, "iscrowd": int(segment.get("iscrowd", 0))})
    if len(segments) > _MOST_SEGMENTS:
        raise DatasetError(
            f"{categories.file}: {label} has {len(segments)} segments, expected at most {_MOST_SEGMENTS}."
        )
    counts = Counter([*(segment["id"] for segment in segments), *void])
    repeated = sorted(segment_id for segment_id, count in counts.items() if count > 1)
    if repeated:
        raise DatasetError(f"{categories.file}: {label} has the segment(s) {first_few(repeated)} more than once.")
    image_id = entry["image_id"]
    names = [str(image_id), Path(label).stem]
    if image_id in image_names:
        names.insert(0, Path(image_names[image_id]).stem)
    return PanopticAnnotation(tuple(names), label, tuple(segments), tuple(void))


def _label_below_root(label: str, file: Path) -> str:
    if os.path.isabs(label) or ".." in label.split("/") or "\0" in label:
        raise DatasetError(
            f"{file} names the PNG {shown(label)}, expected a path below its folder: no file reaches out of a dataset."
        )
    return label


def _require_both_kinds(definition: PanopticDefinition, file: Path, annotations: list[PanopticAnnotation]) -> None:
    present = {segment["category_id"] for entry in annotations for segment in entry.segments if not segment["iscrowd"]}
    for kind, train_ids in (("things", definition.things), ("stuff", definition.stuff)):
        if not present.intersection(train_ids):
            names = [definition.classes[train_id].name for train_id in train_ids]
            raise DatasetError(
                f"{file} has no segment of any of the {kind} ({first_few(names, 8)}), so that their panoptic quality is "
                f"not defined. Take labels with {'instances' if kind == 'things' else 'stuff'}, or another part of the data."
            )


def _read(definition: PanopticDefinition, file: Path) -> Any:
    try:
        return parse_json(read_text(file, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{definition.source}: the panoptic JSON file {file} cannot be read: {error}. Put it there; docs/PANOPTIC.md "
            "shows the expected tree."
        ) from error


def _plain(key: int | str) -> int | str:
    """Names are compared without case, blanks and punctuation: 'Traffic Sign (Front)' is 'traffic sign front'."""
    return key if isinstance(key, int) else "".join(filter(str.isalnum, one_form(key))).lower()
