"""Path templates, the files that match them, and the lists that select among these files.

An image and a label form a pair if {key} matches the same text in both paths.
"""

import errno
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from famix.data.images import PICTURE_SUFFIXES
from famix.io import read_text
from famix.io.matlab import read_matlab_arrays
from famix.utils.paths import as_on_disk, one_form

_DIGITS = 5  # digits in GTA5 file names
_MAX_NUMBER = 10**9 - 1  # highest image number in a MATLAB file
_MAX_LIST_BYTES = 256 << 20
_AROUND_LINES = " \t\r\f\v\ufeff"  # includes byte order marks from concatenated lists


@dataclass(frozen=True)
class PathPattern:
    """Path template relative to the root, split at {key} into <folder>/<prefix>{key}<suffix>."""

    folder: str
    prefix: str
    suffix: str

    @classmethod
    def from_template(cls, template: str, split_folder: str) -> "PathPattern":
        """Create the pattern for a split folder from a template."""
        head, suffix = template.replace("{split}", split_folder).split("{key}")
        folder, _, prefix = head.rpartition("/")
        return cls(posixpath.normpath(folder), prefix, suffix)

    def key_of(self, path: str) -> str | None:
        """Return the key in a path relative to the folder, in Unicode form NFC, or None if the path does not match.

        The case of the extension is ignored, because cameras and programs write names such as 1.PNG and 1.Jpg.
        """
        path, prefix, suffix = one_form(path), one_form(self.prefix), one_form(self.suffix)
        end = len(path) - len(suffix)
        if end <= len(prefix) or not path.startswith(prefix) or plain_extension(path[end:]) != plain_extension(suffix):
            return None
        return path[len(prefix) : end]

    def key_of_other_format(self, path: str) -> str | None:
        """Return the key in an image path that matches except for its format, or None if it does not match."""
        stem, extension = posixpath.splitext(path)
        own = posixpath.splitext(f"x{self.suffix}")[1]
        return self.key_of(f"{stem}{own}") if extension.lower() in PICTURE_SUFFIXES - {own.lower()} else None

    def key_of_line(self, line: str) -> str:
        """Return the key for a line in a list, which is a key, a file name or a path relative to the root."""
        path = one_form(line).removeprefix(f"{one_form(self.folder)}/")
        return self.key_of(path) or path

    def path_of(self, key: str = "{key}") -> str:
        """Return the path for a key, relative to the root."""
        return posixpath.normpath(posixpath.join(self.folder, f"{self.prefix}{key}{self.suffix}"))


class FileTree:
    """Files below an absolute root folder. Each folder is listed once, and individual files are not accessed.

    If a folder cannot be listed or is ambiguous, `on_error` is called with the error and must raise an exception.
    """

    def __init__(self, root: str, on_error: Callable[[OSError], NoReturn]) -> None:
        self.root = root
        self._on_error = on_error
        self._listed: dict[str, dict[str, str]] = {}

    def folder_of(self, pattern: PathPattern) -> str:
        """Return the absolute folder of a pattern."""
        return as_on_disk(os.path.normpath(os.path.join(self.root, pattern.folder)))

    def match(self, pattern: PathPattern, other_formats: bool = False) -> dict[str, str]:
        """Return a mapping from key to absolute path for all files that match a pattern.

        The mapping is empty if the folder is missing. With `other_formats`, images in any other format match instead.
        """
        top = self.folder_of(pattern)
        if top not in self._listed:
            self._listed[top] = dict(self._walk(top)) if os.path.isdir(top) else {}
        found: dict[str, str] = {}
        for below, path in self._listed[top].items():
            key = pattern.key_of_other_format(below) if other_formats else pattern.key_of(below)
            if key in found and not other_formats:
                names = f"'{os.path.basename(found[key])}' and '{os.path.basename(path)}'"
                problem = f"{names} differ only in case or Unicode form. Remove or rename one of them"
                self._on_error(OSError(errno.EEXIST, problem, os.path.dirname(path)))
            if key is not None:
                found[key] = path
        return found

    def _walk(self, top: str) -> Iterator[tuple[str, str]]:
        """Yield (path relative to `top`, absolute path) for all files below a folder."""
        walked = {os.path.realpath(top): top}
        for folder, subfolders, names in os.walk(top, onerror=self._on_error, followlinks=True):
            # Hidden files belong to other programs (thumbnails, "._name.png" on macOS).
            visible = [os.path.join(folder, name) for name in subfolders if not name.startswith(".")]
            subfolders[:] = [os.path.basename(path) for path in visible if self._is_new(path, walked)]
            below = folder[len(top) :].replace(os.sep, "/").strip("/")
            for name in names:
                if not name.startswith("."):
                    yield posixpath.join(below, name), os.path.join(folder, name)

    def _is_new(self, folder: str, walked: dict[str, str]) -> bool:
        """Return whether a folder is new, and record it. Links are followed, but must not duplicate a dataset."""
        first = walked.setdefault(os.path.realpath(folder), folder)
        if first != folder and not folder.startswith(first + os.sep):  # a link to its own parent adds nothing
            self._on_error(OSError(errno.ELOOP, f"it is the same folder as '{first}'. Remove one of the links", folder))
        return first == folder


def resolve_keys(listed: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Map list entries to image keys, or to None if no image or more than one image matches.

    Lists often contain paths from a different machine, so the last path component is enough ("00001" for
    "train/folder/00001") if only one key ends with it.
    """
    known = set(known)
    by_name: dict[str, str | None] = {}
    for key in known:
        name = posixpath.basename(key)
        by_name[name] = None if name in by_name else key
    forms = {entry: one_form(entry) for entry in listed}
    return {entry: key if key in known else by_name.get(posixpath.basename(key)) for entry, key in forms.items()}


def read_split_list(path: Path, split_folder: str) -> list[str]:
    """Read the entries of a split list, which is a text file with one entry per line or a MATLAB file.

    Each line is a key, a file name or a path. A MATLAB file, such as GTA5's split.mat, has arrays of image numbers
    named after the folder of their split (e.g. trainIds). Raises an OSError or a ValueError if the file cannot be read
    or has no array for the split.
    """
    if path.suffix != ".mat":
        lines = (line.strip(_AROUND_LINES) for line in read_text(path, _MAX_LIST_BYTES).split("\n"))
        return [line for line in lines if line]
    arrays = read_matlab_arrays(path)
    names = [name for name in arrays if name.lower().startswith(split_folder.lower())]
    numbers = arrays[names[0]] if len(names) == 1 else None
    if numbers is None:
        there = ", ".join(arrays) or "(none)"
        raise ValueError(f"it must have one numeric array whose name starts with '{split_folder}', got {there}")
    values = numbers.astype(np.float64)
    if not ((values >= 0) & (values <= _MAX_NUMBER) & (values == np.floor(values))).all():
        raise ValueError(f"its array '{names[0]}' must contain integers from 0 to {_MAX_NUMBER}")
    return [f"{int(value):0{_DIGITS}d}" for value in values]


def plain_extension(path: str) -> str:
    """Return a path with a lowercase extension."""
    stem, dot, extension = path.rpartition(".")
    return f"{stem}{dot}{extension.lower()}" if dot else path
