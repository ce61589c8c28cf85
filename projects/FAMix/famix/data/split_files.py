"""The files of a split: which images there are, and which label belongs to which image."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from detectron2.utils.logger import log_first_n

from famix.data.definition import DATASETS_VARIABLE, DatasetDefinition, SplitDefinition
from famix.data.layout import LabelEncoding, Layout
from famix.data.path_templates import FileTree, PathPattern, resolve_keys
from famix.data.records import DatasetRecord, read_as_train_ids
from famix.data.split_lists import read_split_list
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few
from famix.utils.paths import as_on_disk, local_path, one_form

__all__ = ["SplitFiles", "SplitSurvey"]

_SHOWN = 5  # files of a list that an error names


@dataclass(frozen=True)
class SplitSurvey:
    """What was found of a split.

    Attributes:
        images, labels: where they lie, relative to the root, with {key}.
        records: Detectron2's standard dicts of the pairs, ordered by key.
        without_label: images of the split that have no label.
        without_image: labels that have no image; of splits that a list makes, none.
        absent: entries of the split's list without an image.
        list_file: the list; None where the split has none.
        other_format: images of labels without an image, in a format that the definition does not ask for.
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
class SplitFiles:
    """The function that Detectron2's catalogue calls for a split; equal for equal definitions.

    Attributes:
        definition: the dataset.
        split: one of its splits.
    """

    definition: DatasetDefinition
    split: SplitDefinition

    def __call__(self) -> list[DatasetRecord]:
        """List the pairs of the split, ordered by key.

        Returns:
            Detectron2's standard dicts with `file_name`, `label_file_name` (absolute), `image_id` (the key) and
            `dataset_name`, and `sem_seg_file_name` (the label file) where that holds train ids. Of the files, the headers
            of some labels are read.

        Raises:
            DatasetError: a folder or list is missing, there is no image, an image has no label, or the list names
                an image twice or one that is not there.
        """
        survey = self.survey()
        self._require_complete(survey)
        if survey.without_label:
            name, there = self.definition.dataset_name(self.split), len(survey.records)
            log_first_n(
                logging.WARNING,
                f"Dataset '{name}' in {self.definition.root_folder()}: {len(survey.without_label)} images without a "
                f"label and {len(survey.without_image)} labels without an image are left out, {there} pairs are used.",
                key="message",
            )
        return survey.records

    def _require_complete(self, survey: SplitSurvey) -> None:
        """Raise unless a split can be used.

        Raises:
            DatasetError: what is missing, and where it was expected.
        """
        absent, without_label = survey.absent, survey.without_label
        if absent:
            raise self._error(
                f"{len(absent)} key(s) of {survey.list_file} have no image, the first: {first_few(absent, _SHOWN)}; "
                f"expected files like {self._example(survey.images, absent[0])}"
            )
        if without_label and not self.definition.skips_unpaired:
            total = len(survey.records) + len(without_label)
            raise self._error(
                f"{len(without_label)} of {total} images have no label, the first: {first_few(without_label)}; "
                f"expected files like {self._example(survey.labels)}. Add them, or leave such images out with "
                "'unpaired: skip' in the definition"
            )
        if survey.other_format:
            raise self._error(
                f"{len(survey.other_format)} images are in another format than {survey.images} asks for, the first: "
                f"{first_few(survey.other_format, _SHOWN)}; convert them, or divide the data into two definitions"
            )
        if not survey.records and without_label:
            raise self._error(
                f"none of its {len(without_label)} images has a label; expected files like {self._example(survey.labels)}"
            )
        if not survey.records:
            raise self._error(f"no image found; expected files like {self._example(survey.images)}")

    def survey(self) -> SplitSurvey:
        """Look for the files of the split.

        Raises:
            DatasetError: the root or every layout is missing, or a list cannot be read.
        """
        root = self.definition.root_folder()
        if not os.path.isdir(root):
            raise self._missing(f"its folder {root} does not exist")
        tree = FileTree(root, self._cannot_list)
        layouts = [layout for layout in self.definition.layouts if layout.holds(self.split.name)]
        return self._survey_layout(tree, self._choose(tree, layouts))

    def _choose(self, tree: FileTree, layouts: list[Layout]) -> Layout:
        """The first layout of which there is a pair, and the list if it needs one."""
        if len(layouts) == 1:
            self._require_folders(tree, layouts[0])
            return layouts[0]
        for layout in layouts:
            list_file = self._list_file(layout)
            if list_file is None or self.split.keys or os.path.isfile(as_on_disk(os.path.join(tree.root, list_file))):
                images, labels = self._match(tree, layout)
                if images.keys() & labels.keys():
                    return layout
        looked_for = "; ".join(f"{place}) {self._describe(tree, layout)}" for place, layout in enumerate(layouts, 1))
        raise self._missing(f"{tree.root} holds no pair of image and label, looked for: {looked_for}")

    def _survey_layout(self, tree: FileTree, layout: Layout) -> SplitSurvey:
        images, labels = self._match(tree, layout)
        list_file = self._list_file(layout)
        skipped = {key for key in resolve_keys(self.split.skip, images).values() if key is not None}
        if list_file is None:
            listed: dict[str, str | None] = {key: key for key in sorted(images)}
        else:
            listed = resolve_keys(self._read_keys(tree.root, list_file, layout), images)
        keys = sorted({key for key in listed.values() if key is not None} - skipped)
        name, left_out = self.definition.dataset_name(self.split), {one_form(key) for key in self.split.skip}
        return SplitSurvey(
            images=self._pattern(layout.images, layout).path_of(),
            labels=self._pattern(layout.labels, layout).path_of(),
            records=_records(name, images, {key: labels[key] for key in keys if key in labels}, layout.encoding),
            without_label=[images[key] for key in keys if key not in labels],
            without_image=[] if list_file else self._without_image(tree, images, labels),
            absent=[key for key, found in listed.items() if found is None and key not in left_out],
            list_file=list_file,
            other_format=[] if list_file else self._other_format(tree, layout, images, labels),
        )

    def _match(self, tree: FileTree, layout: Layout) -> tuple[dict[str, str], dict[str, str]]:
        labels = tree.match(self._pattern(layout.labels, layout))
        label_paths = set(labels.values())  # both may lie in one folder and have the same suffix
        images = tree.match(self._pattern(layout.images, layout))
        return {key: path for key, path in images.items() if path not in label_paths}, labels

    def _without_image(self, tree: FileTree, images: dict[str, str], labels: dict[str, str]) -> list[str]:
        # The same label in another encoding may lie beside it: 1_labelTrainIds.png beside 1.png.
        others = {
            path
            for layout in self.definition.layouts
            for key, path in tree.match(self._pattern(layout.labels, layout)).items()
            if key in images
        }
        return sorted(path for key, path in labels.items() if key not in images and path not in others)

    def _other_format(
        self, tree: FileTree, layout: Layout, images: Mapping[str, str], labels: Mapping[str, str]
    ) -> list[str]:
        others, label_paths = tree.other_pictures(self._pattern(layout.images, layout)), set(labels.values())
        keys = sorted(labels.keys() & others.keys() - images.keys())
        return [others[key] for key in keys if others[key] not in label_paths]

    def _pattern(self, template: str, layout: Layout) -> PathPattern:
        return PathPattern.from_template(template, layout.folders.get(self.split.name, self.split.folder))

    def _list_file(self, layout: Layout) -> str | None:
        if self.split.keys is not None or layout.keys is None:
            return self.split.keys
        return layout.keys.replace("{split}", layout.folders.get(self.split.name, self.split.folder))

    def _read_keys(self, root: str, list_file: str, layout: Layout) -> list[str]:
        path = as_on_disk(os.path.join(root, list_file))
        try:
            lines = read_split_list(Path(path), layout.folders.get(self.split.name, self.split.folder))
        except (OSError, ValueError) as error:
            raise self._error(f"its list of keys {path} cannot be read: {error}.{self._without_list()}") from error
        outside = [line for line in lines if os.path.isabs(line) or ".." in line.split("/")]
        if outside:
            raise self._error(
                f"{path} names {first_few(outside)}, expected keys, names of files or paths below the root: no list reaches "
                "out of a dataset"
            )
        pattern = self._pattern(layout.images, layout)
        keys = [pattern.key_of_line(line) for line in lines]
        repeated = sorted(key for key, count in Counter(keys).items() if count > 1)
        if repeated:
            raise self._error(f"{path} lists {len(repeated)} key(s) more than once: {first_few(repeated)}")
        return sorted(keys)

    def _require_folders(self, tree: FileTree, layout: Layout) -> None:
        for template in (layout.labels, layout.images):
            pattern = self._pattern(template, layout)
            if not tree.has_folder(pattern):
                raise self._missing(f"its folder {tree.folder_of(pattern)} does not exist")

    def _describe(self, tree: FileTree, layout: Layout) -> str:
        """What a layout expects, and what of it is there."""
        parts = []
        for what, files, template in zip(
            ("image", "label"), self._match(tree, layout), (layout.images, layout.labels), strict=True
        ):
            pattern = self._pattern(template, layout)
            found = f"{len(files)} found" if tree.has_folder(pattern) else "no such folder"
            parts.append(f"{what} {pattern.path_of()} ({found})")
        list_file = self._list_file(layout)
        if list_file is not None and not os.path.isfile(as_on_disk(os.path.join(tree.root, list_file))):
            parts.append(f"list {list_file} (missing)")
        return ", ".join(parts)

    def _example(self, path: str, key: str = "{key}") -> str:
        return os.path.join(self.definition.root_folder(), path.replace("{key}", key))

    def _without_list(self) -> str:
        whole = [self.definition.dataset_name(split) for split in self.definition.splits if split.keys is None]
        remedy = f", or use {' or '.join(whole)}, which needs no list" if whole else ""
        return f" Put a text file with one key a line there{remedy}"

    def _error(self, problem: str) -> DatasetError:
        name = self.definition.dataset_name(self.split)
        return DatasetError(f"Dataset '{name}' ({self.definition.source}): {problem}.")

    def _missing(self, problem: str) -> DatasetError:
        if os.path.isabs(local_path(self.definition.root, "root", DatasetError)):
            return self._error(f"{problem}. Correct 'root' in the definition, or unpack the data there")
        value = os.environ.get(DATASETS_VARIABLE)
        state = f"is {value!r}" if value is not None else "is not set, so that 'datasets' is used"
        return self._error(
            f"{problem}. ${DATASETS_VARIABLE} {state}. Set it to the folder that holds '{self.definition.root}', or "
            "unpack the data there; datasets/README.md shows the expected tree"
        )

    def _cannot_list(self, error: OSError) -> NoReturn:
        raise self._error(f"its folder {error.filename} cannot be listed: {error.strerror}") from error


def _records(
    name: str, images: Mapping[str, str], labels: Mapping[str, str], encoding: LabelEncoding
) -> list[DatasetRecord]:
    keys_of_label = ["label_file_name"]
    if encoding.is_identity and read_as_train_ids(list(labels.values())):
        keys_of_label.append("sem_seg_file_name")
    return [
        DatasetRecord(file_name=images[key], **dict.fromkeys(keys_of_label, label), image_id=key, dataset_name=name)
        for key, label in labels.items()
    ]
