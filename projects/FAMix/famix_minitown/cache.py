"""The town's data sets are made where and when they are first used, and kept."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from iopath.common.file_io import file_lock

from famix.utils.errors import DatasetError
from famix.utils.paths import local_path
from famix_minitown.scene import SIZE
from famix_minitown.splits import FORMAT_VERSION, MinitownSplit
from famix_minitown.writer import write_tree

__all__ = ["CACHE_VARIABLE", "cache_folder", "generated_folder", "make_once", "town_folder"]

CACHE_VARIABLE = "FAMIX_CACHE"
"""Environment variable of the folder for what FAMix makes and keeps; "~/.cache/famix" where it is unset."""

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Absolute folder for what FAMix makes and keeps, from today's environment variables.

    Raises:
        ConfigError: $FAMIX_CACHE names an environment variable that is not set.
    """
    folder = os.environ.get(CACHE_VARIABLE) or os.path.join("~", ".cache", "famix")
    return Path(os.path.abspath(local_path(folder, f"${CACHE_VARIABLE}")))


def town_folder() -> Path:
    """Folder of all data sets of the town, of today's look; it need not exist."""
    return cache_folder() / "minitown" / f"v{FORMAT_VERSION}-{SIZE[0]}x{SIZE[1]}"


def generated_folder(name: str, split: MinitownSplit) -> Path:
    """The folder of a data set, which is made now unless it is there already.

    Args:
        name: of the data set, and of its folder.
        split: the scenes of it.

    Returns:
        Root of a tree as `write_tree` writes it.

    Raises:
        DatasetError: the folder cannot be written.
    """
    return make_once(
        name,
        f"{split.count} images",
        lambda folder: write_tree(folder, split.folder, [split.condition], split.seeds),
    )


def make_once(name: str, what: str, write: Callable[[Path], None]) -> Path:
    """A folder of the town, which is made now unless it is there already.

    It appears whole or not at all, however many processes ask for it at once and wherever one of them ends.

    Args:
        name: of the data set, and of its folder.
        what: it holds, for the log.
        write: makes it, under another name that it is given.

    Returns:
        The folder.

    Raises:
        DatasetError: it cannot be written.
    """
    folder = town_folder() / name
    if folder.is_dir():
        return folder  # not even a lock: a finished cache may be read-only
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(folder, what, write)
    except OSError as error:
        raise DatasetError(
            f"Got no folder {folder} for the dataset '{name}', which is made on first use ({error}). Set "
            f"${CACHE_VARIABLE} to a folder with free space that can be written."
        ) from error
    return folder


def _make(folder: Path, what: str, write: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a process that was killed: the lock says that nobody works on it any more
    logger.info(f"Making {what} in {folder}, once, in a minute or less...")
    start = time.perf_counter()
    try:
        write(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info(f"Made {what} in {time.perf_counter() - start:.1f} s.")
