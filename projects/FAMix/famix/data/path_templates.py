"""Path templates and the files that fit them.

An image and its label are a pair when the part of their paths that {key} stands for is the same.
"""

import errno
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from famix.data.images import PICTURE_SUFFIXES
from famix.utils.paths import as_on_disk, one_form

__all__ = ["FileTree", "PathPattern", "resolve_keys"]


@dataclass(frozen=True)
class PathPattern:
    """A path template, cut at {key}: <folder>/<prefix>{key}<suffix>, relative to the root."""

    folder: str
    prefix: str
    suffix: str

    @classmethod
    def from_template(cls, template: str, split_folder: str) -> "PathPattern":
        """Put a split's folder into a template and cut it."""
        head, suffix = template.replace("{split}", split_folder).split("{key}")
        folder, _, prefix = head.rpartition("/")
        return cls(posixpath.normpath(folder), prefix, suffix)

    def key_of(self, path: str) -> str | None:
        """Key of a path relative to the folder, in one Unicode form; None for other files.

        Capitals in the extension do not matter: cameras and programs write 1.PNG and 1.Jpg.
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
        """Key that a picture would have if it were in the format that the pattern asks for; None for other files."""
        stem, extension = posixpath.splitext(path)
        own = posixpath.splitext(f"x{self.suffix}")[1]
        is_other = extension.lower() in PICTURE_SUFFIXES - {own.lower()}
        return self.key_of(f"{stem}{own}") if is_other else None

    def key_of_line(self, line: str) -> str:
        """Key that a line of a list of keys means: lists in use name keys, files, or paths from the root."""
        path = one_form(line).removeprefix(f"{one_form(self.folder)}/")
        return self.key_of(path) or path

    def path_of(self, key: str = "{key}") -> str:
        """Path of a key, relative to the root."""
        return posixpath.normpath(posixpath.join(self.folder, f"{self.prefix}{key}{self.suffix}"))


class FileTree:
    """The files below a root; every folder is walked once, and no single file is asked for.

    Args:
        root: absolute folder.
        on_error: called with what `os.walk` meets when a folder cannot be listed; it must raise.
    """

    def __init__(self, root: str, on_error: Callable[[OSError], NoReturn]) -> None:
        self.root = root
        self._on_error = on_error
        self._walked: dict[str, dict[str, str] | None] = {}

    def has_folder(self, pattern: PathPattern) -> bool:
        """Whether the folder of a pattern is there."""
        return os.path.isdir(self.folder_of(pattern))

    def folder_of(self, pattern: PathPattern) -> str:
        """Absolute folder of a pattern."""
        return as_on_disk(os.path.normpath(os.path.join(self.root, pattern.folder)))

    def match(self, pattern: PathPattern) -> dict[str, str]:
        """Key -> absolute path of every file that fits a pattern; empty where its folder is missing."""
        found: dict[str, str] = {}
        for below, path in self._files(self.folder_of(pattern)).items():
            key = pattern.key_of(below)
            if key is None:
                continue
            if key in found:
                names = f"{os.path.basename(found[key])} and {os.path.basename(path)}"
                problem = f"{names} differ in capitals or their Unicode form alone; remove or rename one"
                self._on_error(OSError(errno.EEXIST, problem, os.path.dirname(path)))
            found[key] = path
        return found

    def other_pictures(self, pattern: PathPattern) -> dict[str, str]:
        """Key -> absolute path of pictures that fit a pattern but for their format."""
        files = self._files(self.folder_of(pattern)).items()
        keys = ((pattern.key_of_other_picture(below), path) for below, path in files)
        return {key: path for key, path in keys if key is not None}

    def _files(self, top: str) -> Mapping[str, str]:
        """Path relative to a folder -> absolute path, of every file below it."""
        if top not in self._walked:
            self._walked[top] = dict(self._walk(top))
        return self._walked[top] or {}

    def _walk(self, top: str) -> Iterable[tuple[str, str]]:
        if not os.path.isdir(top):
            return
        walked = {os.path.realpath(top): top}
        for folder, subfolders, names in os.walk(top, onerror=self._on_error, followlinks=True):
            # Hidden files are other programs' (thumbnails, "._name.png" of macOS).
            visible = [name for name in subfolders if not name.startswith(".")]
            subfolders[:] = [name for name in visible if self._is_new(os.path.join(folder, name), walked)]
            below = folder[len(top) :].replace(os.sep, "/").strip("/")
            for name in names:
                if not name.startswith("."):
                    yield posixpath.join(below, name), os.path.join(folder, name)

    def _is_new(self, folder: str, walked: dict[str, str]) -> bool:
        """Whether a folder was not walked before: links are followed, but must not multiply a dataset.

        Args:
            folder: to be walked.
            walked: those that were, by their path without links; gets this one.
        """
        path = os.path.realpath(folder)
        first = walked.setdefault(path, folder)
        if first != folder and not folder.startswith(first + os.sep):  # a link to a folder that it lies in adds nothing
            self._on_error(OSError(errno.ELOOP, f"it is the same folder as {first}; remove one of the links", folder))
        return first == folder


def resolve_keys(listed: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Find the keys that a list means.

    A list names an image as it lay where the list was made. So the last part of a path is enough ("00001" for
    "train/folder/00001"), as long as only one key ends so.

    Args:
        listed: keys as a list names them.
        known: keys of the images that there are.

    Returns:
        Listed key -> key, or None where there is no such image, or several.
    """
    known = set(known)
    by_name: dict[str, str | None] = {}
    for key in known:
        name = posixpath.basename(key)
        by_name[name] = None if name in by_name else key
    forms = {entry: one_form(entry) for entry in listed}
    return {entry: key if key in known else by_name.get(posixpath.basename(key)) for entry, key in forms.items()}


def _plain_extension(suffix: str) -> str:
    """The end of a file name with its extension in small letters."""
    stem, dot, extension = suffix.rpartition(".")
    return f"{stem}{dot}{extension.lower()}" if dot else suffix
