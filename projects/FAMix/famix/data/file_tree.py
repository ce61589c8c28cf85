"""Path templates, the files that match them, and the lists that select some of them.

An image and its label are a pair if {key} matches the same part of their paths.
"""

import errno
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from famix.data.images import PICTURE_SUFFIXES
from famix.io import read_text
from famix.io.matlab import read_matlab_arrays
from famix.utils.paths import as_on_disk, one_form

__all__ = ["FileTree", "PathPattern", "read_split_list", "resolve_keys"]

_DIGITS = 5  # of GTA5's file names
_MOST_IMAGES = 10**9
_MAX_LIST_BYTES = 256 << 20
_AROUND_LINES = " \t\r\f\v\ufeff"  # includes the byte order marks of concatenated lists


@dataclass(frozen=True)
class PathPattern:
    """A path template, split at {key}: <folder>/<prefix>{key}<suffix>, relative to the root."""

    folder: str
    prefix: str
    suffix: str

    @classmethod
    def from_template(cls, template: str, split_folder: str) -> "PathPattern":
        """Insert the folder of a split into a template and split it at {key}."""
        head, suffix = template.replace("{split}", split_folder).split("{key}")
        folder, _, prefix = head.rpartition("/")
        return cls(posixpath.normpath(folder), prefix, suffix)

    def key_of(self, path: str) -> str | None:
        """Key of a path relative to the folder, in Unicode form NFC, or None if the path does not match.

        The case of the extension is ignored, because cameras and programs write 1.PNG and 1.Jpg.
        """
        path, prefix, suffix = one_form(path), one_form(self.prefix), one_form(self.suffix)
        end = len(path) - len(suffix)
        if (
            end <= len(prefix)
            or not path.startswith(prefix)
            or _plain_extension(path[end:]) != _plain_extension(suffix)
        ):
            return None
        return path[len(prefix) : end]

    def key_of_other_picture(self, path: str) -> str | None:
        """Key of a picture that matches except for its format, or None."""
        stem, extension = posixpath.splitext(path)
        own = posixpath.splitext(f"x{self.suffix}")[1]
        return self.key_of(f"{stem}{own}") if extension.lower() in PICTURE_SUFFIXES - {own.lower()} else None

    def key_of_line(self, line: str) -> str:
        """Key of a line in a list: lists contain keys, file names, or paths from the root."""
        path = one_form(line).removeprefix(f"{one_form(self.folder)}/")
        return self.key_of(path) or path

    def path_of(self, key: str = "{key}") -> str:
        """Path of a key, relative to the root."""
        return posixpath.normpath(posixpath.join(self.folder, f"{self.prefix}{key}{self.suffix}"))


class FileTree:
    """The files below a root. Each folder is listed once, and single files are not accessed.

    Args:
        root: absolute folder.
        on_error: called with the error of a folder that cannot be listed or is ambiguous; it must raise.
    """

    def __init__(self, root: str, on_error: Callable[[OSError], NoReturn]) -> None:
        self.root = root
        self._on_error = on_error
        self._walked: dict[str, dict[str, str]] = {}

    def folder_of(self, pattern: PathPattern) -> str:
        """Absolute folder of a pattern."""
        return as_on_disk(os.path.normpath(os.path.join(self.root, pattern.folder)))

    def match(self, pattern: PathPattern) -> dict[str, str]:
        """Key -> absolute path of all files that match a pattern; empty if its folder is missing."""
        found: dict[str, str] = {}
        for below, path in self._files(self.folder_of(pattern)).items():
            key = pattern.key_of(below)
            if key is None:
                continue
            if key in found:
                names = f"{os.path.basename(found[key])} and {os.path.basename(path)}"
                problem = f"{names} differ only in case or Unicode form; remove or rename one"
                self._on_error(OSError(errno.EEXIST, problem, os.path.dirname(path)))
            found[key] = path
        return found

    def other_pictures(self, pattern: PathPattern) -> dict[str, str]:
        """Key -> absolute path of pictures that match a pattern except for their format."""
        files = self._files(self.folder_of(pattern)).items()
        keys = ((pattern.key_of_other_picture(below), path) for below, path in files)
        return {key: path for key, path in keys if key is not None}

    def _files(self, top: str) -> Mapping[str, str]:
        """Path relative to a folder -> absolute path, of all files below it."""
        if top not in self._walked:
            self._walked[top] = dict(self._walk(top)) if os.path.isdir(top) else {}
        return self._walked[top]

    def _walk(self, top: str) -> Iterator[tuple[str, str]]:
        walked = {os.path.realpath(top): top}
        for folder, subfolders, names in os.walk(top, onerror=self._on_error, followlinks=True):
            # Hidden files belong to other programs (thumbnails, "._name.png" of macOS).
            visible = [name for name in subfolders if not name.startswith(".")]
            subfolders[:] = [name for name in visible if self._is_new(os.path.join(folder, name), walked)]
            below = folder[len(top) :].replace(os.sep, "/").strip("/")
            for name in names:
                if not name.startswith("."):
                    yield posixpath.join(below, name), os.path.join(folder, name)

    def _is_new(self, folder: str, walked: dict[str, str]) -> bool:
        """Add a folder to those that were walked: links are followed, but must not duplicate a dataset."""
        path = os.path.realpath(folder)
        first = walked.setdefault(path, folder)
        if first != folder and not folder.startswith(first + os.sep):  # a link to its own parent adds nothing
            self._on_error(OSError(errno.ELOOP, f"it is the same folder as {first}; remove one of the links", folder))
        return first == folder


def resolve_keys(listed: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Find the keys that a list refers to.

    Lists contain the paths of another machine, so the last part of a path is enough ("00001" for
    "train/folder/00001") if only one key ends with it.

    Args:
        listed: keys as a list names them.
        known: keys of the images.

    Returns:
        Listed key -> key, or None if no image or several match.
    """
    known = set(known)
    by_name: dict[str, str | None] = {}
    for key in known:
        name = posixpath.basename(key)
        by_name[name] = None if name in by_name else key
    forms = {entry: one_form(entry) for entry in listed}
    return {entry: key if key in known else by_name.get(posixpath.basename(key)) for entry, key in forms.items()}


def read_split_list(path: Path, split_folder: str) -> list[str]:
    """Read the entries of a list.

    Args:
        path: a text file with one key, file name or path per line; or a MATLAB file (.mat) such as GTA5's split.mat,
            with arrays of image numbers that are named after the splits (trainIds).
        split_folder: name of the split in a MATLAB file.

    Returns:
        The lines without blank ones, or the numbers with five digits.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is neither text nor a MATLAB file with an array for the split.
    """
    if path.suffix != ".mat":
        lines = (line.strip(_AROUND_LINES) for line in read_text(path, _MAX_LIST_BYTES).split("\n"))
        return [line for line in lines if line]
    arrays = read_matlab_arrays(path)
    names = [name for name in arrays if name.lower().startswith(split_folder.lower())]
    numbers = arrays[names[0]] if len(names) == 1 else None
    if numbers is None:
        there = ", ".join(arrays) or "(none)"
        raise ValueError(f"its arrays must include one of numbers that starts with '{split_folder}', got {there}")
    values = numbers.astype(np.float64)
    if not ((values >= 0) & (values < _MOST_IMAGES) & (values == np.floor(values))).all():
        raise ValueError(f"its array {names[0]} must hold integers from 0 to {_MOST_IMAGES - 1}")
    return [f"{int(value):0{_DIGITS}d}" for value in values]


def _plain_extension(suffix: str) -> str:
    """The end of a file name with its extension in lower case."""
    stem, dot, extension = suffix.rpartition(".")
    return f"{stem}{dot}{extension.lower()}" if dot else suffix
