"""The files of a split: its images and their labels, as Detectron2 dataset dicts."""

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from detectron2.utils.logger import log_first_n

from famix.data.definition import DATASETS_VARIABLE, DatasetDefinition, Layout, SplitDefinition
from famix.data.images import MOST_PIXELS, image_size
from famix.data.labels import LabelReader
from famix.data.layout.file_tree import FileTree, PathPattern, read_split_list, resolve_keys
from famix.data.layout.label_reader import label_reader_of
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few
from famix.utils.paths import as_on_disk, local_path, one_form

_SHOWN = 5  # number of files that an error lists
_SIZE = ("height", "width")
_TRAIN_IDS = ("sem_seg_file_name", "sem_seg")
_SAMPLES = 16  # headers checked per split; on a network drive, checking all would take minutes
_PNG, _GRAY_BYTES = b"\x89PNG", b"\x08\x00"  # signature, and bytes 24 and 25 of 8-bit grayscale files


class DatasetRecord(dict[str, Any]):
    """Detectron2 dataset dict that explains missing entries.

    `label_file_name` is the label file for the dataset's `label_reader`. `sem_seg_file_name`, the same file, is present
    only if it contains train ids that Detectron2 reads unchanged. Otherwise, Detectron2's `SemSegEvaluator`,
    `Visualizer` and (in training) `DatasetMapper` raise this class's error. The `height` and `width` of the image, in
    pixels, are read from its header on access.
    """

    def __missing__(self, key: str) -> Any:
        if key in _SIZE:
            self["height"], self["width"] = image_size(self["file_name"], MOST_PIXELS)
            return self[key]
        if key not in _TRAIN_IDS:
            raise KeyError(key)
        raise DatasetError(
            f"Dataset '{super().get('dataset_name')}' has no sem_seg_file_name, because "
            f"'{super().get('label_file_name')}' is not an 8-bit gray PNG of train ids, and Detectron2's own tools "
            "would misread it. Read 'label_file_name' with the 'label_reader' in the dataset's metadata, as "
            "FAMixDatasetMapper and StreamingSemSegEvaluator do, or convert the labels (see \"With Detectron2's own "
            'tools" in datasets/README.md).'
        )

    def __contains__(self, key: object) -> bool:
        # In training, DatasetMapper checks for this key after reading the image. Without this error, it would return a
        # sample without labels, and the network would fail when computing its loss.
        if key == "annotations" and super().__contains__("image") and self._lacks_train_ids():
            self.__missing__("sem_seg_file_name")
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return an entry or `default`. Raises a DatasetError for "sem_seg" if Visualizer has nothing to draw."""
        if key in _SIZE or (key == "sem_seg" and self._lacks_train_ids() and "pan_seg_file_name" not in self):
            return self[key]
        return super().get(key, default)

    def _lacks_train_ids(self) -> bool:
        return not any(super(DatasetRecord, self).__contains__(key) for key in _TRAIN_IDS)


def label_file_of(record: Mapping[str, Any]) -> str:
    """Return the label file in a dataset dict, including dicts of datasets registered by other code."""
    file: str = record["label_file_name" if "label_file_name" in record else "sem_seg_file_name"]
    return file


def _have_plain_values(files: Sequence[str]) -> bool:
    """Return whether Detectron2 reads the values in label files unchanged, judging by a sample of their headers.

    Detectron2 converts palettes to gray values, and stretches values with fewer than 8 bits. Unreadable files are
    skipped, because the label reader reports them.
    """
    for path in files[:: max(1, len(files) // _SAMPLES)]:
        try:
            with open(path, "rb") as stream:
                header = stream.read(26)
        except OSError:
            continue
        if not (header.startswith(_PNG) and header.endswith(_GRAY_BYTES)):
            return False
    return True


@dataclass(frozen=True)
class DatasetFiles(ABC):
    """Callable that Detectron2's catalog uses to list a split. Instances with equal definitions are equal."""

    definition: DatasetDefinition
    split: SplitDefinition

    @abstractmethod
    def __call__(self) -> list[DatasetRecord]:
        """List the image/label pairs as dicts with `file_name`, `label_file_name`, `image_id` and `dataset_name`.

        Raises:
            DatasetError: files are missing or do not match the definition.
        """

    @abstractmethod
    def label_reader(self) -> LabelReader:
        """Return the reader for the label files."""

    @property
    def name(self) -> str:
        """Name under which the split is registered."""
        return self.definition.dataset_name(self.split)

    @property
    def root(self) -> str:
        """Absolute path of the dataset folder."""
        return self.definition.root_folder()

    def metadata(self) -> dict[str, Any]:
        """Return the entries for Detectron2's MetadataCatalog."""
        return {
            **self.definition.class_table.metadata(),
            "evaluator_type": "sem_seg",
            "label_reader": self.label_reader(),
            "definition": self.definition,
            "domain": self.split.domain,
        }

    def _error(self, problem: str) -> DatasetError:
        return DatasetError(f"Dataset '{self.name}' ({self.definition.source}): {problem}.")

    def _missing(self, problem: str) -> DatasetError:
        """Return an error about a missing folder that explains how to set the folder."""
        if os.path.isabs(local_path(self.definition.root, "root", DatasetError)):
            return self._error(f"{problem}. Correct 'root' in the definition, or extract the data there")
        value = os.environ.get(DATASETS_VARIABLE)
        state = f"is {value!r}" if value is not None else "is not set, so the default 'datasets' applies"
        return self._error(
            f"{problem}. ${DATASETS_VARIABLE} {state}. Set it to the folder that contains '{self.definition.root}', or "
            "extract the data there. See datasets/README.md for the expected folder structure"
        )

    def _cannot_list(self, error: OSError) -> NoReturn:
        raise self._error(f"cannot list folder '{error.filename}': {error.strerror}") from error


@dataclass(frozen=True)
class SplitSurvey:
    """Files found for a split."""

    images: str  # path template of the layout in use, relative to the root, with {key}
    labels: str
    list_file: str | None
    records: list[DatasetRecord]  # ordered by key
    without_label: list[str]  # images without a label
    without_image: list[str]  # labels without an image; empty for splits with a list
    absent: list[str]  # list entries without an image
    other_format: list[str]  # images that match a label, but not the format in the definition


class _Place:
    """Layout for one split, with the split's folder inserted, and the split's list if it has one."""

    def __init__(self, layout: Layout, split: SplitDefinition) -> None:
        self.layout = layout
        self.folder = layout.folders.get(split.name, split.folder)
        self.images = PathPattern.from_template(layout.images, self.folder)
        self.labels = PathPattern.from_template(layout.labels, self.folder)
        of_layout = layout.keys and layout.keys.replace("{split}", self.folder)
        self.list_file = of_layout if split.keys is None else split.keys

    def match(self, tree: FileTree) -> tuple[dict[str, str], dict[str, str]]:
        """Return the mappings from key to path for images and for labels, which may share a folder and suffix."""
        labels = tree.match(self.labels)
        label_paths = set(labels.values())
        return {key: path for key, path in tree.match(self.images).items() if path not in label_paths}, labels


@dataclass(frozen=True)
class SplitFiles(DatasetFiles):
    """Files of a split with semantic labels."""

    def __call__(self) -> list[DatasetRecord]:
        """List the pairs of the split (see `DatasetFiles`)."""
        survey = self.survey()
        unlabeled, count = survey.without_label, len(survey.records)
        images, labels = (os.path.join(self.root, path) for path in (survey.images, survey.labels))
        skips = self.definition.skips_unpaired
        leave_out = "" if skips else ". Add them, or use 'unpaired: skip' in the definition to leave out such images"
        for files, problem, remedy in (
            (survey.absent, f"entries in '{survey.list_file}' have no image", f"Expected files like '{images}'"),
            (
                [] if skips and count else unlabeled,
                f"of {count + len(unlabeled)} images have no label",
                f"Expected files like '{labels}'{leave_out}",
            ),
            (
                survey.other_format,
                f"images do not have the format of '{survey.images}'",
                "Convert them, or split the data into two definitions",
            ),
        ):
            if files:
                raise self._error(f"{len(files)} {problem}: {first_few(files, _SHOWN)}. {remedy}")
        if not count:
            raise self._error(f"no images found. Expected files like '{images}'")
        if unlabeled:
            log_first_n(
                logging.WARNING,
                f"Dataset '{self.name}' in '{self.root}': leaving out {len(unlabeled)} images without a label and "
                f"{len(survey.without_image)} labels without an image, using {count} pairs.",
                key="message",
            )
        return survey.records

    def label_reader(self) -> LabelReader:
        """Return the reader for the label files in any layout."""
        return label_reader_of(self.definition)

    def survey(self) -> SplitSurvey:
        """Find the files. Raises a DatasetError if the root or every layout is missing, or a list cannot be read."""
        if not os.path.isdir(self.root):
            raise self._missing(f"its folder '{self.root}' does not exist")
        tree = FileTree(self.root, self._cannot_list)
        place = self._choose_layout(tree)
        images, labels = place.match(tree)
        without_image: list[str] = []
        other_format: list[str] = []
        if place.list_file is None:
            listed: dict[str, str | None] = {key: key for key in sorted(images)}
            # Labels in a different encoding may share the folder, e.g. 1_labelTrainIds.png next to 1.png.
            found = (tree.match(_Place(layout, self.split).labels) for layout in self.definition.layouts)
            with_image = {path for paths in found for key, path in paths.items() if key in images}
            without_image = sorted(path for key, path in labels.items() if key not in images and path not in with_image)
            others, label_paths = tree.match(place.images, other_formats=True), set(labels.values())
            keys = sorted(labels.keys() & others.keys() - images.keys())
            other_format = [others[key] for key in keys if others[key] not in label_paths]
        else:
            listed = resolve_keys(self._read_list(place, as_on_disk(os.path.join(tree.root, place.list_file))), images)
        skipped = {one_form(key) for key in self.split.skip}
        absent = [entry for entry, key in listed.items() if key is None and entry not in skipped]
        keys = sorted({key for key in listed.values() if key} - set(resolve_keys(self.split.skip, images).values()))
        paired = [key for key in keys if key in labels]
        names = ["label_file_name"]
        if place.layout.encoding.is_identity and _have_plain_values([labels[key] for key in paired]):
            names.append("sem_seg_file_name")
        return SplitSurvey(
            images=place.images.path_of(),
            labels=place.labels.path_of(),
            list_file=place.list_file,
            records=[
                DatasetRecord(
                    file_name=images[key], **dict.fromkeys(names, labels[key]), image_id=key, dataset_name=self.name
                )
                for key in paired
            ],
            without_label=[images[key] for key in keys if key not in labels],
            without_image=without_image,
            absent=absent,
            other_format=other_format,
        )

    def _choose_layout(self, tree: FileTree) -> _Place:
        """Return the first layout that has a pair and, if it needs one, a list."""
        layouts = [layout for layout in self.definition.layouts if layout.has_split(self.split.name)]
        places = [_Place(layout, self.split) for layout in layouts]
        searched = []
        for number, place in enumerate(places, 1):
            images, labels = place.match(tree)
            list_file = place.list_file
            has_list = list_file is None or os.path.isfile(as_on_disk(os.path.join(tree.root, list_file)))
            if (has_list or self.split.keys) and images.keys() & labels.keys():
                return place
            parts = []
            for kind, pattern, found in (("image", place.images, images), ("label", place.labels, labels)):
                is_there = os.path.isdir(tree.folder_of(pattern))
                if len(places) == 1 and not is_there:
                    raise self._missing(f"its folder '{tree.folder_of(pattern)}' does not exist")
                state = f"{len(found)} found" if is_there else "no such folder"
                parts.append(f"{kind} {pattern.path_of()} ({state})")
            searched.append(f"{number}) {', '.join(parts)}{'' if has_list else f', list {list_file} (missing)'}")
        if len(places) == 1:
            return places[0]
        raise self._missing(f"folder '{tree.root}' contains no image/label pair in any layout: {'; '.join(searched)}")

    def _read_list(self, place: _Place, path: str) -> list[str]:
        try:
            lines = read_split_list(Path(path), place.folder)
        except (OSError, ValueError) as error:
            whole = [self.definition.dataset_name(split) for split in self.definition.splits if split.keys is None]
            remedy = f", or use {' or '.join(whole)}, which needs no list" if whole else ""
            raise self._error(
                f"cannot read its key list '{path}': {error}. Put a text file with one key per line there{remedy}"
            ) from error
        outside = [line for line in lines if os.path.isabs(line) or ".." in line.split("/")]
        if outside:
            raise self._error(f"'{path}' must list keys, file names or paths below the root, got {first_few(outside)}")
        keys = [place.images.key_of_line(line) for line in lines]
        repeated = sorted(key for key, count in Counter(keys).items() if count > 1)
        if repeated:
            raise self._error(f"'{path}' lists {len(repeated)} key(s) more than once: {first_few(repeated)}")
        return sorted(keys)
