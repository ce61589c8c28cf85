"""The files of a panoptic split: its images, and the segments of each image."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from famix.data.classes import panoptic_metadata
from famix.data.definition import PanopticDefinition
from famix.data.file_tree import FileTree, PathPattern, resolve_keys
from famix.data.labels import LabelReader
from famix.data.panoptic.annotations import Annotation, read_panoptic_json, with_train_ids
from famix.data.panoptic.segments import Segment, SegmentLabelReader
from famix.data.records import DatasetRecord
from famix.data.split_files import DatasetFiles
from famix.utils.messages import first_few
from famix.utils.paths import as_on_disk

__all__ = ["PanopticFiles"]


@dataclass(frozen=True)
class PanopticFiles(DatasetFiles):
    """The files of a split with panoptic labels.

    Its records, in the order of the JSON file, also have `pan_seg_file_name` (the same file as `label_file_name`),
    `segments_info` ({"id", "category_id": train id, "iscrowd", "isthing"}) and `void_segments` (ids of segments without
    a class). Listing opens the JSON file only.
    """

    definition: PanopticDefinition
    # The last records, by PNG, for a JSON file and its time: they are needed often, and may be large.
    _read: dict[tuple[str, int], dict[str, dict[str, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self) -> list[DatasetRecord]:
        """List the images of the split, see `DatasetFiles`."""
        return [DatasetRecord(record) for record in self._records().values()]

    def label_reader(self) -> LabelReader:
        """Reader of the PNGs as train ids."""
        definition = self.definition
        train_ids = (*range(len(definition.classes)), definition.ignore_label)
        return SegmentLabelReader(
            label_ids={train_id: train_id for train_id in train_ids},
            ignore_label=definition.ignore_label,
            source=definition.source,
            segments_of=self.segments_of,
        )

    def metadata(self) -> dict[str, Any]:
        """Entries for the MetadataCatalog, as Detectron2 has them for "cityscapes_fine_panoptic_train"."""
        return {
            **super().metadata(),
            **panoptic_metadata(
                [(entry.name, entry.color) for entry in self.definition.classes], self.definition.things
            ),
            "panoptic_root": self.panoptic_root,
            "panoptic_json": self.panoptic_json,
            "evaluator_type": "famix_panoptic",
        }

    @property
    def panoptic_root(self) -> str:
        """Absolute folder of the PNGs."""
        return self._path(self.definition.panoptic_root)

    @property
    def panoptic_json(self) -> str:
        """Absolute path of the JSON file."""
        return self._path(self.definition.panoptic_json)

    def prepare(self) -> None:
        """Create the files, for datasets that are generated on demand; called before any access."""

    def segments_of(self, label_file: str | os.PathLike[str]) -> tuple[list[Segment], list[int]]:
        """Segments with a class, and ids of segments without one, of a PNG of this split.

        Raises:
            DatasetError: if the PNG belongs to another split, or see `DatasetFiles`.
        """
        record = self._records().get(os.fspath(label_file))
        if record is None:
            raise self._error(f"its JSON file has no annotation of {label_file}")
        return record["segments_info"], record["void_segments"]

    def _records(self) -> dict[str, dict[str, Any]]:
        """PNG -> record."""
        self.prepare()
        file = self.panoptic_json
        key = (file, os.stat(file).st_mtime_ns if os.path.isfile(file) else 0)
        records = self._read.get(key)
        if records is None:
            records = {record["pan_seg_file_name"]: record for record in self._list(Path(file))}
            self._read.clear()
            self._read[key] = records
        return records

    def _list(self, file: Path) -> list[dict[str, Any]]:
        if not os.path.isdir(self.root):
            raise self._missing(f"its folder {self.root} does not exist")
        if not os.path.isfile(file):  # also if its name is longer than the file system allows
            raise self._missing(f"its panoptic JSON file {file} does not exist")
        annotations = with_train_ids(read_panoptic_json(file), self.definition)
        folder = self.panoptic_root
        labels = [as_on_disk(os.path.normpath(os.path.join(folder, entry.label))) for entry in annotations]
        absent = [entry.label for entry, path in zip(annotations, labels, strict=True) if not os.path.isfile(path)]
        if absent:
            raise self._error(
                f"{file} lists {len(absent)} PNG(s) that are missing in {folder}, the first: {first_few(absent)}. The "
                "files do not match: create or unpack both again"
            )
        self._require_once("PNG", labels)
        images = self._images(annotations)
        self._require_once("image", [path for _, path in images])
        return [
            {
                "file_name": image,
                "image_id": key,
                "label_file_name": label,
                "pan_seg_file_name": label,
                "segments_info": [
                    {**segment, "isthing": segment["category_id"] in self.definition.things}
                    for segment in annotation.segments
                ],
                "void_segments": list(annotation.void_segments),
                "dataset_name": self.name,
            }
            for (key, image), label, annotation in zip(images, labels, annotations, strict=True)
        ]

    def _images(self, annotations: Sequence[Annotation]) -> list[tuple[str, str]]:
        """Key and path of the image of each annotation."""
        pattern = PathPattern.from_template(self.definition.images, self.split.folder)
        found = FileTree(self.root, self._cannot_list).match(pattern)
        key_of = resolve_keys({name for entry in annotations for name in entry.names}, found)
        keys = [next((key_of[name] for name in entry.names if key_of[name] is not None), None) for entry in annotations]
        lost = [entry.names[0] for entry, key in zip(annotations, keys, strict=True) if key is None]
        if lost:
            raise self._error(
                f"{len(lost)} of {len(annotations)} annotations have no image, or several, the first: {first_few(lost)}; "
                f"expected files like {os.path.join(self.root, pattern.path_of())}"
            )
        return [(key, found[key]) for key in keys if key is not None]

    def _require_once(self, kind: str, paths: list[str]) -> None:
        repeated = sorted(path for path, count in Counter(paths).items() if count > 1)
        if repeated:
            raise self._error(f"its JSON file has several annotations of the {kind} {first_few(repeated)}")

    def _path(self, template: str) -> str:
        below = template.replace("{split}", self.split.folder)
        return as_on_disk(os.path.normpath(os.path.join(self.root, below)))
