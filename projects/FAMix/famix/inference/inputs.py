"""Which images a command line means."""

import glob
from collections.abc import Sequence
from pathlib import Path

from famix.errors import ConfigError
from famix.paths import expand_path
from famix.wording import first_few

__all__ = ["IMAGE_SUFFIXES", "find_images"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Of the files that are images, in a folder; a file that is named itself may have any."""


def find_images(words: Sequence[str]) -> list[Path]:
    """Find the files that are meant, each once.

    Args:
        words: files; folders, which stand for all images in and below them; or patterns with * ? [] and **.

    Returns:
        The files in the order of the words, those of a folder or a pattern by name.

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
            once.setdefault(file.resolve(), file)
    return list(once.values())


def _files_of(word: str) -> list[Path]:
    path = Path(expand_path(word, "the input"))
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)) and file.is_file())
    if path.exists():
        return [path]
    return sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)
