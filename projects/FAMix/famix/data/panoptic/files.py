"""The files of a panoptic split: its images and their segments."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from famix.data.definition import PanopticDefinition
from famix.data.labels import LabelReader
from famix.data.layout.file_tree import FileTree, PathPattern, resolve_keys
from famix.data.layout.split_files import DatasetFiles, DatasetRecord
from famix.data.panoptic.segments import (
    Annotation,
    Categories,
    Segment,
    SegmentLabelReader,
    plain_name,
    read_panoptic_json,
)
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean, first_few
from famix.utils.paths import as_on_disk


@dataclass(frozen=True)
class PanopticFiles(DatasetFiles):
    """Files of a split with panoptic labels, in the order of the JSON file, which is the only file that is opened.

    The records also contain `pan_seg_file_name` (the same file as `label_file_name`), `segments_info` ({"id",
    "category_id": train id, "iscrowd", "isthing"}) and `void_segments` (ids of segments without a class).
    """

    definition: PanopticDefinition
    # (JSON file, modification time) -> PNG -> record; only the latest, because the records may be large.
    _read: dict[tuple[str, int], dict[str, dict[str, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self) -> list[DatasetRecord]:
        """List the images of the split (see `DatasetFiles`)."""
        return [DatasetRecord(record) for record in self._records().values()]

    def label_reader(self) -> LabelReader:
        """Return a reader that converts the PNGs to train ids."""
        definition = self.definition
        train_ids = (*range(len(definition.classes)), definition.ignore_label)
        return SegmentLabelReader(
            label_ids={train_id: train_id for train_id in train_ids},
            ignore_label=definition.ignore_label,
            source=definition.source,
            segments_of=self.segments_of,
        )

    def metadata(self) -> dict[str, Any]:
        """Return MetadataCatalog entries like those of Detectron2's "cityscapes_fine_panoptic_train"."""
        return {
            **super().metadata(),
            "panoptic_root": self._path(self.definition.panoptic_root),
            "panoptic_json": self._path(self.definition.panoptic_json),
            "evaluator_type": "famix_panoptic",
        }

    def prepare(self) -> None:
        """Create the files of a dataset that is generated on demand. Called before any access."""

    def segments_of(self, label_file: str | os.PathLike[str]) -> tuple[list[Segment], list[int]]:
        """Return the segments of a PNG in this split that have a class, and the ids of those that do not."""
        record = self._records().get(os.fspath(label_file))
        if record is None:
            raise self._error(f"its JSON file has no annotation for '{label_file}'")
        return record["segments_info"], record["void_segments"]

    def _records(self) -> dict[str, dict[str, Any]]:
        """Return a mapping from PNG to record."""
        self.prepare()
        file = self._path(self.definition.panoptic_json)
        key = (file, os.stat(file).st_mtime_ns if os.path.isfile(file) else 0)
        if key not in self._read:
            records = {record["pan_seg_file_name"]: record for record in self._list(Path(file))}
            self._read.clear()
            self._read[key] = records
        return self._read[key]

    def _list(self, file: Path) -> list[dict[str, Any]]:
        if not os.path.isdir(self.root):
            raise self._missing(f"its folder '{self.root}' does not exist")
        if not os.path.isfile(file):  # includes names that are too long for the file system
            raise self._missing(f"its panoptic JSON file '{file}' does not exist")
        annotations, categories = read_panoptic_json(file)
        segments = self._segments(file, annotations, categories)
        folder = self._path(self.definition.panoptic_root)
        labels = [as_on_disk(os.path.normpath(os.path.join(folder, entry.label))) for entry in annotations]
        absent = [entry.label for entry, path in zip(annotations, labels, strict=True) if not os.path.isfile(path)]
        if absent:
            raise self._error(
                f"'{file}' lists {len(absent)} PNG(s) that are missing from '{folder}': {first_few(absent)}. The files "
                "do not match. Regenerate or re-extract both"
            )
        images = self._images(annotations)
        for kind, paths in (("PNG", labels), ("image", [path for _, path in images])):
            repeated = sorted(path for path, count in Counter(paths).items() if count > 1)
            if repeated:
                raise self._error(f"its JSON file has several annotations for the {kind} {first_few(repeated)}")
        return [
            {
                "file_name": image,
                "image_id": key,
                "label_file_name": label,
                "pan_seg_file_name": label,
                "segments_info": known,
                "void_segments": void,
                "dataset_name": self.name,
            }
            for (key, image), label, (known, void) in zip(images, labels, segments, strict=True)
        ]

    def _images(self, annotations: Sequence[Annotation]) -> list[tuple[str, str]]:
        """Return the key and path of the image for each annotation."""
        pattern = PathPattern.from_template(self.definition.images, self.split.folder)
        found = FileTree(self.root, self._cannot_list).match(pattern)
        key_of = resolve_keys({name for entry in annotations for name in entry.names}, found)
        keys = [next((key_of[name] for name in entry.names if key_of[name] is not None), None) for entry in annotations]
        lost = [entry.names[0] for entry, key in zip(annotations, keys, strict=True) if key is None]
        if lost:
            raise self._error(
                f"{len(lost)} of {len(annotations)} annotations do not match exactly one image: {first_few(lost)}. "
                f"Expected files like '{os.path.join(self.root, pattern.path_of())}'"
            )
        return [(key, found[key]) for key in keys if key is not None]

    def _path(self, template: str) -> str:
        below = template.replace("{split}", self.split.folder)
        return as_on_disk(os.path.normpath(os.path.join(self.root, below)))

    def _segments(
        self, file: Path, annotations: Sequence[Annotation], categories: Categories
    ) -> list[tuple[list[dict[str, Any]], list[int]]]:
        """Return the segments with train ids for each annotation, and the ids of its segments without a class."""
        definition, train_ids = self.definition, self._train_ids(file, categories)
        converted: list[tuple[list[dict[str, Any]], list[int]]] = []
        for annotation in annotations:
            known, void = [], []
            for segment in annotation.segments:
                category = segment["category_id"]
                train_id = train_ids.get(category)
                if train_id is None and not definition.other_categories_ignored:
                    name, _ = categories.get(category, ("not in its 'categories'", True))
                    raise DatasetError(
                        f"'{file}': category {category} ({name}) of a segment in '{annotation.label}' has no class in "
                        f"{definition.source}. Add it to 'categories' there, or ignore it with "
                        "'other_categories: ignore'."
                    )
                if train_id is None or train_id == definition.ignore_label:
                    void.append(segment["id"])
                else:
                    known.append({**segment, "category_id": train_id, "isthing": train_id in definition.things})
            converted.append((known, void))
        present = {segment["category_id"] for known, _ in converted for segment in known if not segment["iscrowd"]}
        for kind, classes in (("things", definition.things), ("stuff", definition.stuff)):
            if present.isdisjoint(classes):
                missing = first_few([definition.classes[train_id].name for train_id in classes], 8)
                raise DatasetError(
                    f"'{file}' has no segments for any of the {kind} ({missing}), so their panoptic quality is "
                    f"undefined. Use labels with {'instances' if kind == 'things' else 'stuff'}, or a different part "
                    "of the data."
                )
        return converted

    def _train_ids(self, file: Path, categories: Categories) -> dict[int, int]:
        """Return a mapping from categories in the JSON file to train ids."""
        definition = self.definition
        wanted = definition.categories or {entry.name: train_id for train_id, entry in enumerate(definition.classes)}
        by_key = {plain_name(key) if isinstance(key, str) else key: train_id for key, train_id in wanted.items()}
        found, train_ids = set(), {}
        for category, (name, has_instances) in categories.items():
            key = category if category in by_key else plain_name(name)
            if key not in by_key:
                continue
            found.add(key)
            train_ids[category] = by_key[key]
            if by_key[key] in definition.things and not has_instances:
                raise DatasetError(
                    f"'{file}': category {category}, '{name}', must have instances ('isthing'), because its class "
                    f"'{definition.classes[by_key[key]].name}' is a thing in {definition.source}. Make the class "
                    "stuff, or use labels with instances."
                )
        # A mistyped name would silently drop its class.
        lost = [key for key in definition.categories if isinstance(key, str) and plain_name(key) not in found]
        if lost:
            names = [name for name, _ in categories.values()]
            raise DatasetError(
                f"{definition.source}: 'categories' must name categories in '{file}', got {first_few(lost)}."
                f"{did_you_mean(lost[0], names)} The file has {first_few(names, 8)}."
            )
        return train_ids
