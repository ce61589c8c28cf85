"""The files of a panoptic dataset: which images there are, and which segments each of them has."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from famix.data.definition import DATASETS_VARIABLE
from famix.data.panoptic.coco_json import PanopticAnnotation, read_annotations
from famix.data.panoptic.definition import PanopticDefinition
from famix.data.panoptic.segments import Segment
from famix.data.path_templates import FileTree, PathPattern, resolve_keys
from famix.data.records import DatasetRecord
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few
from famix.utils.paths import as_on_disk

__all__ = ["PanopticFiles"]


@dataclass(frozen=True)
class PanopticFiles:
    """The function that Detectron2's catalogue calls for a split; equal for equal definitions.

    Attributes:
        definition: the dataset.
        split: name of one of its splits.
    """

    definition: PanopticDefinition
    split: str
    # What was read last, by PNG, for a JSON file and its time: it is asked for often, and may be large.
    _read: dict[tuple[str, int], dict[str, dict[str, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """Name under which the split is registered."""
        return self.definition.dataset_name(self.split)

    def __call__(self) -> list[DatasetRecord]:
        """List the images of the split, in the order of the JSON file.

        Returns:
            Detectron2's standard dicts with `file_name`, `pan_seg_file_name` (absolute), `label_file_name` (the same:
            the dataset's `label_reader` reads it), `image_id`, `dataset_name`, `segments_info` ({"id", "category_id":
            train id, "iscrowd", "isthing"}) and `void_segments` (ids of segments without a class). The files themselves
            are not opened.

        Raises:
            DatasetError: a folder, the JSON file, a PNG or an image is missing, or the JSON file is wrong.
        """
        return [DatasetRecord(record) for record in self._records().values()]

    @property
    def root(self) -> str:
        """Absolute folder of the dataset.

        Raises:
            DatasetError: it names an environment variable that is not set.
        """
        return self.definition.root_folder()

    @property
    def panoptic_root(self) -> str:
        """Absolute folder of the PNGs."""
        return self._path(self.definition.panoptic_root)

    @property
    def panoptic_json(self) -> str:
        """Absolute path of the JSON file."""
        return self._path(self.definition.panoptic_json)

    def prepare(self) -> None:
        """Called before the files are looked for: where a dataset is made on demand, now."""

    def segments_of(self, label_file: str | os.PathLike[str]) -> tuple[list[Segment], list[int]]:
        """Segments of classes, and ids of segments without one, of a PNG of this split.

        Raises:
            DatasetError: the PNG is none of this split's, or see `__call__`.
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
            self._missing(f"its folder {self.root} does not exist")
        if not os.path.isfile(file):  # also where its name is longer than a disk takes
            self._missing(f"its panoptic JSON file {file} does not exist")
        labels = self.panoptic_root
        annotations = read_annotations(self.definition, file)
        absent = [entry.label for entry in annotations if not os.path.isfile(_label_path(labels, entry))]
        if absent:
            raise self._error(
                f"{file} names {len(absent)} PNG(s) that are not in {labels}, the first: {first_few(absent)}. Make or "
                "unpack both anew, they do not belong together"
            )
        self._require_once("PNG", [entry.label for entry in annotations])
        images = self._images(annotations)
        self._require_once("image", [path for _, path in images])
        return [
            self._record(key, image, labels, entry) for (key, image), entry in zip(images, annotations, strict=True)
        ]

    def _record(self, key: str, image: str, labels: str, annotation: PanopticAnnotation) -> dict[str, Any]:
        label = _label_path(labels, annotation)
        return {
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

    def _images(self, annotations: list[PanopticAnnotation]) -> list[tuple[str, str]]:
        """Key and path of the image of every annotation."""
        pattern = PathPattern.from_template(self.definition.images, self.definition.splits[self.split])
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

    def _require_once(self, what: str, paths: list[str]) -> None:
        repeated = sorted(path for path, count in Counter(paths).items() if count > 1)
        if repeated:
            raise self._error(f"its JSON file has several annotations of the {what} {first_few(repeated)}")

    def _path(self, template: str) -> str:
        below = template.replace("{split}", self.definition.splits[self.split])
        return as_on_disk(os.path.normpath(os.path.join(self.root, below)))

    def _error(self, problem: str) -> DatasetError:
        return DatasetError(f"Dataset '{self.name}' ({self.definition.source}): {problem}.")

    def _missing(self, problem: str) -> NoReturn:
        value = os.environ.get(DATASETS_VARIABLE)
        state = f"is {value!r}" if value is not None else "is not set, so that 'datasets' is used"
        raise self._error(
            f"{problem}. ${DATASETS_VARIABLE} {state}; relative roots start there. docs/PANOPTIC.md shows the expected tree"
        )

    def _cannot_list(self, error: OSError) -> NoReturn:
        raise self._error(f"its folder {error.filename} cannot be listed: {error.strerror}") from error


def _label_path(folder: str, annotation: PanopticAnnotation) -> str:
    return as_on_disk(os.path.normpath(os.path.join(folder, annotation.label)))
