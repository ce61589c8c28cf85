"""The files of a split: which images there are, and which label belongs to which image.

An image and its label are a pair when the part of their paths that {key} stands for is the same.
"""

import os
import posixpath
from dataclasses import dataclass
from typing import NoReturn

from famix.data.definition import DATASETS_VARIABLE, DatasetDefinition, SplitDefinition
from famix.errors import DatasetError
from famix.wording import first_few

__all__ = ["SplitFiles"]


@dataclass(frozen=True)
class _PathPattern:
    """A path template, cut at {key}: <folder>/<prefix>{key}<suffix>, relative to the root."""

    folder: str
    prefix: str
    suffix: str

    @classmethod
    def from_template(cls, template: str, split_folder: str) -> "_PathPattern":
        head, suffix = template.replace("{split}", split_folder).split("{key}")
        folder, _, prefix = head.rpartition("/")
        return cls(posixpath.normpath(folder), prefix, suffix)

    def key_of(self, path: str) -> str | None:
        """Key of a path relative to the folder; None for other files."""
        if len(path) <= len(self.prefix) + len(self.suffix):
            return None
        if not (path.startswith(self.prefix) and path.endswith(self.suffix)):
            return None
        return path[len(self.prefix) : len(path) - len(self.suffix)]

    def key_of_line(self, line: str) -> str:
        """Key that a line of a list of keys means: lists in use name keys, files, or paths from the root."""
        path = line.removeprefix(f"{self.folder}/")
        return self.key_of(path) or path


@dataclass(frozen=True)
class SplitFiles:
    """The function that Detectron2's catalogue calls for a split; equal for equal definitions.

    Attributes:
        definition: the dataset.
        split: one of its splits.
    """

    definition: DatasetDefinition
    split: SplitDefinition

    def __call__(self) -> list[dict[str, str]]:
        """List the pairs of the split, ordered by key.

        Returns:
            Detectron2's standard dicts with `file_name`, `sem_seg_file_name` (absolute), `image_id` (the key) and
            `dataset_name`. The files themselves are not opened.

        Raises:
            DatasetError: a folder or list is missing, there is no image, an image has no label, or the list names
                an image twice or one that is not there.
        """
        root = self.definition.root_folder()
        if not os.path.isdir(root):
            raise self._missing(f"its folder {root} does not exist")
        labels = self._scan(root, self._pattern(self.definition.labels))
        images = self._scan(root, self._pattern(self.definition.images))
        label_paths = set(labels.values())  # both may lie in one folder and have the same suffix
        images = {key: path for key, path in images.items() if path not in label_paths}
        keys = self._select(root, images)
        self._require_labels(keys, images, labels)
        name = self.definition.dataset_name(self.split)
        return [
            {"file_name": images[key], "sem_seg_file_name": labels[key], "image_id": key, "dataset_name": name}
            for key in keys
        ]

    def _pattern(self, template: str) -> _PathPattern:
        return _PathPattern.from_template(template, self.split.folder)

    def _scan(self, root: str, pattern: _PathPattern) -> dict[str, str]:
        """Key -> absolute path of every file that matches, in one walk and without asking for any single file."""
        top = os.path.normpath(os.path.join(root, pattern.folder))
        if not os.path.isdir(top):
            raise self._missing(f"its folder {top} does not exist")
        found = {}
        for folder, subfolders, names in os.walk(top, onerror=self._cannot_list, followlinks=True):
            # Hidden files are other programs' (thumbnails, "._name.png" of macOS).
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            below = folder[len(top) :].replace(os.sep, "/").strip("/")
            for name in names:
                key = pattern.key_of(posixpath.join(below, name))
                if key is not None and not name.startswith("."):
                    found[key] = os.path.join(folder, name)
        return found

    def _select(self, root: str, images: dict[str, str]) -> list[str]:
        listed = sorted(images) if self.split.keys is None else self._read_keys(root)
        keys = [key for key in listed if key not in self.split.skip]
        absent = [key for key in keys if key not in images]
        if absent:
            raise self._error(
                f"{len(absent)} key(s) of {self.split.keys} have no image, the first: {first_few(absent)}; expected "
                f"files like {self._example(root, self.definition.images, absent[0])}"
            )
        if not keys:
            raise self._error(f"no image found; expected files like {self._example(root, self.definition.images)}")
        return keys

    def _read_keys(self, root: str) -> list[str]:
        path = os.path.join(root, self.split.keys or "")
        try:
            with open(path, encoding="utf-8") as stream:
                lines = [line.strip() for line in stream]
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(f"its list of keys {path} cannot be read: {error}.{self._without_list()}") from error
        pattern = self._pattern(self.definition.images)
        keys = [pattern.key_of_line(line) for line in lines if line]
        if len(set(keys)) < len(keys):
            repeated = sorted({key for key in keys if keys.count(key) > 1})
            raise self._error(f"{path} lists {len(repeated)} key(s) more than once: {first_few(repeated)}")
        return sorted(keys)

    def _require_labels(self, keys: list[str], images: dict[str, str], labels: dict[str, str]) -> None:
        unlabelled = [images[key] for key in keys if key not in labels]
        if unlabelled:
            raise self._error(
                f"{len(unlabelled)} of {len(keys)} images have no label, the first: {first_few(unlabelled)}; expected "
                f"files like {self._example(self.definition.root_folder(), self.definition.labels)}"
            )

    def _example(self, root: str, template: str, key: str = "{key}") -> str:
        pattern = self._pattern(template)
        return os.path.normpath(os.path.join(root, pattern.folder, f"{pattern.prefix}{key}{pattern.suffix}"))

    def _without_list(self) -> str:
        whole = [self.definition.dataset_name(split) for split in self.definition.splits if split.keys is None]
        remedy = f", or use {' or '.join(whole)}, which needs no list" if whole else ""
        return f" Put a text file with one key a line there{remedy}"

    def _error(self, problem: str) -> DatasetError:
        name = self.definition.dataset_name(self.split)
        return DatasetError(f"Dataset '{name}' ({self.definition.source}): {problem}.")

    def _missing(self, problem: str) -> DatasetError:
        if os.path.isabs(os.path.expanduser(os.path.expandvars(self.definition.root))):
            return self._error(f"{problem}. Correct 'root' in the definition, or unpack the data there")
        value = os.environ.get(DATASETS_VARIABLE)
        state = f"is {value!r}" if value is not None else "is not set, so that 'datasets' is used"
        return self._error(
            f"{problem}. ${DATASETS_VARIABLE} {state}. Set it to the folder that holds '{self.definition.root}', or "
            "unpack the data there; datasets/README.md shows the expected tree"
        )

    def _cannot_list(self, error: OSError) -> NoReturn:
        raise self._error(f"its folder {error.filename} cannot be listed: {error.strerror}") from error
