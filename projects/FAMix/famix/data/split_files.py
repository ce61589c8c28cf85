"""The files of a split: its images, and the label of each image."""

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from detectron2.utils.logger import log_first_n

from famix.data.definition import DATASETS_VARIABLE, DatasetDefinition, Layout, SplitDefinition
from famix.data.file_tree import FileTree, PathPattern, read_split_list, resolve_keys
from famix.data.labels import LabelReader
from famix.data.layout_reader import label_reader_of
from famix.data.records import DatasetRecord, read_as_train_ids
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few
from famix.utils.paths import as_on_disk, local_path, one_form

__all__ = ["DatasetFiles", "SplitFiles", "SplitSurvey"]

_SHOWN = 5  # files of a list that an error names


@dataclass(frozen=True)
class DatasetFiles(ABC):
    """The function that Detectron2's catalog calls for a split; equal for equal definitions.

    Attributes:
        definition: the dataset.
        split: one of its splits.
    """

    definition: DatasetDefinition
    split: SplitDefinition

    @abstractmethod
    def __call__(self) -> list[DatasetRecord]:
        """List the pairs of image and label as Detectron2's standard dicts.

        Returns:
            Dicts with `file_name`, `label_file_name` (absolute), `image_id` (the key) and `dataset_name`.

        Raises:
            DatasetError: if files are missing or do not match the definition.
        """

    @abstractmethod
    def label_reader(self) -> LabelReader:
        """Reader of the label files."""

    @property
    def name(self) -> str:
        """Name under which the split is registered."""
        return self.definition.dataset_name(self.split)

    @property
    def root(self) -> str:
        """Absolute folder of the dataset."""
        return self.definition.root_folder()

    def metadata(self) -> dict[str, Any]:
        """Entries for Detectron2's MetadataCatalog."""
        return {
            "stuff_classes": [entry.name for entry in self.definition.classes],
            "stuff_colors": [entry.color for entry in self.definition.classes],
            "ignore_label": self.definition.ignore_label,
            "evaluator_type": "sem_seg",
            "label_reader": self.label_reader(),
            "definition": self.definition,
            "domain": self.split.domain,
        }

    def _error(self, problem: str) -> DatasetError:
        return DatasetError(f"Dataset '{self.name}' ({self.definition.source}): {problem}.")

    def _missing(self, problem: str) -> DatasetError:
        """An error about a missing folder, with the way to set it."""
        if os.path.isabs(local_path(self.definition.root, "root", DatasetError)):
            return self._error(f"{problem}. Correct 'root' in the definition, or unpack the data there")
        value = os.environ.get(DATASETS_VARIABLE)
        state = f"is {value!r}" if value is not None else "is not set, so its default 'datasets' applies"
        return self._error(
            f"{problem}. ${DATASETS_VARIABLE} {state}. Set it to the folder that contains '{self.definition.root}', or "
            "unpack the data there; datasets/README.md shows the expected tree"
        )

    def _cannot_list(self, error: OSError) -> NoReturn:
        raise self._error(f"its folder {error.filename} cannot be listed: {error.strerror}") from error


@dataclass(frozen=True)
class _Place:
    """A layout with the folder of a split inserted: path patterns, and the list if the split has one."""

    layout: Layout
    folder: str
    images: PathPattern
    labels: PathPattern
    list_file: str | None


@dataclass(frozen=True)
class SplitSurvey:
    """The files that were found for a split.

    Attributes:
        images, labels: path templates of the layout in use, relative to the root, with {key}.
        records: Detectron2's standard dicts of the pairs, ordered by key.
        without_label: images of the split without a label.
        without_image: labels without an image; empty for splits with a list.
        absent: entries of the split's list without an image.
        list_file: the list; None for splits without one.
        other_format: images of labels without an image, in another format than the definition demands.
    """

    images: str
    labels: str
    records: list[DatasetRecord]
    without_label: list[str]
    without_image: list[str]
    absent: list[str]
    list_file: str | None
    other_format: list[str]


@dataclass(frozen=True)
class SplitFiles(DatasetFiles):
    """The files of a split with semantic labels.

    Its records, ordered by key, have `sem_seg_file_name` (the label file) if that file holds train ids. Listing reads
    the headers of some labels only.
    """

    def __call__(self) -> list[DatasetRecord]:
        """List the pairs of the split, see `DatasetFiles`."""
        survey = self.survey()
        without_label, there = survey.without_label, len(survey.records)
        if survey.absent:
            raise self._error(
                f"{len(survey.absent)} key(s) of {survey.list_file} have no image, the first: "
                f"{first_few(survey.absent, _SHOWN)}; expected files like {self._example(survey.images, survey.absent[0])}"
            )
        if without_label and not self.definition.skips_unpaired:
            raise self._error(
                f"{len(without_label)} of {there + len(without_label)} images have no label, the first: "
                f"{first_few(without_label)}; expected files like {self._example(survey.labels)}. Add them, or leave out "
                "such images with 'unpaired: skip' in the definition"
            )
        if survey.other_format:
            raise self._error(
                f"{len(survey.other_format)} images must have the format of {survey.images}, got "
                f"{first_few(survey.other_format, _SHOWN)}. Convert them, or split the data into two definitions"
            )
        if not survey.records and without_label:
            expected = self._example(survey.labels)
            raise self._error(f"none of its {len(without_label)} images has a label; expected files like {expected}")
        if not survey.records:
            raise self._error(f"no image found; expected files like {self._example(survey.images)}")
        if without_label:
            log_first_n(
                logging.WARNING,
                f"Dataset '{self.name}' in {self.root}: leaving out {len(without_label)} images without a label and "
                f"{len(survey.without_image)} labels without an image, using {there} pairs.",
                key="message",
            )
        return survey.records

    def label_reader(self) -> LabelReader:
        """Reader of the label files, in any layout."""
        return label_reader_of(self.definition)

    def survey(self) -> SplitSurvey:
        """Search for the files of the split.

        Raises:
            DatasetError: if the root or every layout is missing, or a list cannot be read.
        """
        if not os.path.isdir(self.root):
            raise self._missing(f"its folder {self.root} does not exist")
        tree = FileTree(self.root, self._cannot_list)
        place = self._choose_layout(tree)
        images, labels = _match(tree, place)
        skipped = {key for key in resolve_keys(self.split.skip, images).values() if key is not None}
        left_out = {one_form(key) for key in self.split.skip}
        without_image: list[str] = []
        other_format: list[str] = []
        if place.list_file is None:
            listed: dict[str, str | None] = {key: key for key in sorted(images)}
            # Labels of another encoding may share the folder: 1_labelTrainIds.png beside 1.png.
            found = (tree.match(self._place(layout).labels) for layout in self.definition.layouts)
            with_image = {path for labels_ in found for key, path in labels_.items() if key in images}
            without_image = sorted(path for key, path in labels.items() if key not in images and path not in with_image)
            others, label_paths = tree.other_pictures(place.images), set(labels.values())
            keys = sorted(labels.keys() & others.keys() - images.keys())
            other_format = [others[key] for key in keys if others[key] not in label_paths]
        else:
            listed = resolve_keys(self._read_list(tree.root, place, place.list_file), images)
        keys = sorted({key for key in listed.values() if key is not None} - skipped)
        return SplitSurvey(
            images=place.images.path_of(),
            labels=place.labels.path_of(),
            records=self._records(place.layout, images, {key: labels[key] for key in keys if key in labels}),
            without_label=[images[key] for key in keys if key not in labels],
            without_image=without_image,
            absent=[key for key, found in listed.items() if found is None and key not in left_out],
            list_file=place.list_file,
            other_format=other_format,
        )

    def _place(self, layout: Layout) -> _Place:
        folder = layout.folders.get(self.split.name, self.split.folder)
        images, labels = (PathPattern.from_template(path, folder) for path in (layout.images, layout.labels))
        of_layout = None if layout.keys is None else layout.keys.replace("{split}", folder)
        list_file = of_layout if self.split.keys is None else self.split.keys
        return _Place(layout, folder, images, labels, list_file)

    def _choose_layout(self, tree: FileTree) -> _Place:
        """The first layout that has a pair, and its list if it needs one."""
        places = [self._place(layout) for layout in self.definition.layouts if layout.holds(self.split.name)]
        if len(places) == 1:
            for pattern in (places[0].labels, places[0].images):
                if not os.path.isdir(tree.folder_of(pattern)):
                    raise self._missing(f"its folder {tree.folder_of(pattern)} does not exist")
            return places[0]
        searched = []
        for number, place in enumerate(places, 1):
            files, list_file = _match(tree, place), place.list_file
            has_list = list_file is None or os.path.isfile(as_on_disk(os.path.join(tree.root, list_file)))
            if (has_list or self.split.keys) and files[0].keys() & files[1].keys():
                return place
            parts = []
            for kind, pattern, found in zip(("image", "label"), (place.images, place.labels), files, strict=True):
                state = f"{len(found)} found" if os.path.isdir(tree.folder_of(pattern)) else "no such folder"
                parts.append(f"{kind} {pattern.path_of()} ({state})")
            searched.append(f"{number}) {', '.join(parts)}{'' if has_list else f', list {list_file} (missing)'}")
        raise self._missing(f"{tree.root} contains no pair of image and label in any layout: {'; '.join(searched)}")

    def _read_list(self, root: str, place: _Place, list_file: str) -> list[str]:
        path = as_on_disk(os.path.join(root, list_file))
        try:
            lines = read_split_list(Path(path), place.folder)
        except (OSError, ValueError) as error:
            whole = [self.definition.dataset_name(split) for split in self.definition.splits if split.keys is None]
            remedy = f", or use {' or '.join(whole)}, which needs no list" if whole else ""
            raise self._error(
                f"its list of keys {path} cannot be read: {error}. Put a text file with one key per line there{remedy}"
            ) from error
        outside = [line for line in lines if os.path.isabs(line) or ".." in line.split("/")]
        if outside:
            raise self._error(f"{path} must list keys, file names or paths below the root, got {first_few(outside)}")
        keys = [place.images.key_of_line(line) for line in lines]
        repeated = sorted(key for key, count in Counter(keys).items() if count > 1)
        if repeated:
            raise self._error(f"{path} lists {len(repeated)} key(s) more than once: {first_few(repeated)}")
        return sorted(keys)

    def _records(self, layout: Layout, images: Mapping[str, str], labels: Mapping[str, str]) -> list[DatasetRecord]:
        names = ["label_file_name"]
        if layout.encoding.is_identity and read_as_train_ids(list(labels.values())):
            names.append("sem_seg_file_name")
        return [
            DatasetRecord(file_name=images[key], **dict.fromkeys(names, label), image_id=key, dataset_name=self.name)
            for key, label in labels.items()
        ]

    def _example(self, path: str, key: str = "{key}") -> str:
        return os.path.join(self.root, path.replace("{key}", key))


def _match(tree: FileTree, place: _Place) -> tuple[dict[str, str], dict[str, str]]:
    """Key -> path of the images and of the labels, which may share folder and suffix."""
    labels = tree.match(place.labels)
    label_paths = set(labels.values())
    return {key: path for key, path in tree.match(place.images).items() if path not in label_paths}, labels
