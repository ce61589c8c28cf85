"""Which images a command line means."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from famix.data.images import PICTURE_SUFFIXES
from famix.utils.errors import ConfigError
from famix.utils.messages import first_few
from famix.utils.paths import as_on_disk, expand_path

__all__ = ["IMAGE_SUFFIXES", "find_images", "is_picture"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Of the files that are read and written; a file that is named itself may have any."""

_MOST_LINKS = 64  # to one folder


def find_images(words: Sequence[str]) -> list[Path]:
    """Find the files that are meant, each once.

    Args:
        words: files; folders, which stand for all images in and below them; or patterns with * ? [] and **.

    Returns:
        The files in the order of the words, those of a folder or a pattern by name. Of a folder, all pictures that are
        not hidden: capitals and links do not matter, and those that cannot be read are errors later.

    Raises:
        ConfigError: a word stands for nothing.
    """
    found = {word: _files_of(word) for word in words}
    empty = [word for word, files in found.items() if not files]
    if empty:
        raise ConfigError(
            f"no input matched {first_few(empty)}; expected images, folders of images "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}) or quoted patterns such as 'frames/*.png'"
        )
    once: dict[Path, Path] = {}
    for files in found.values():
        for file in files:
            once.setdefault(_place(file), file)
    return list(once.values())


def is_picture(name: str) -> bool:
    """Whether a file of this name is meant as an image; also where it can only be refused. Hidden files are not."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith(".")


def _place(file: Path) -> Path:
    """The absolute path without "..", but with links: two links to one file are two inputs."""
    parts = file.absolute().parts
    behind = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    return Path(Path(*parts[:behind]).resolve(), *parts[behind:]) if behind else Path(*parts)


def _files_of(word: str) -> list[Path]:
    path = Path(as_on_disk(expand_path(word, "the input")))
    if path.is_dir():
        return sorted(_below(path, (), Counter()))
    if os.path.lexists(path):
        return [path]
    return sorted(file for file in map(Path, glob.glob(_any_capitals(str(path)), recursive=True)) if not file.is_dir())


def _below(folder: Path, above: tuple[str, ...], visits: Counter[str]) -> Iterator[Path]:
    """Pictures in and below a folder, also behind links.

    Args:
        folder: to be listed.
        above: folders that it lies in, without links: a link to one of them adds nothing.
        visits: how often every folder was listed; many times only where links were made to last for ever.
    """
    place = os.path.realpath(folder)
    if place in above:
        return
    visits[place] += 1
    if visits[place] > _MOST_LINKS:
        raise ConfigError(
            f"--input must lead to a folder at most {_MOST_LINKS} times, got more links to {place}. Remove some of them."
        )
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ConfigError(
            f"--input must be folders that can be listed, got {folder} ({error.strerror}). Change its permissions, or name "
            "other inputs."
        ) from error
    for name in names:
        path = folder / name
        if path.is_dir() and not name.startswith("."):
            yield from _below(path, (*above, place), visits)
        elif is_picture(name) and not path.is_dir():
            yield path


def _any_capitals(pattern: str) -> str:
    """A pattern of images, such as *.jpg, matches *.JPG, too, as folders do."""
    stem, suffix = os.path.splitext(pattern)
    if suffix.lower() not in PICTURE_SUFFIXES:
        return pattern
    return stem + "".join(f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else letter for letter in suffix)
