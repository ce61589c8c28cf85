"""The town's data sets are made where and when they are first used, and kept."""

import logging
import os
import shutil
import time
from pathlib import Path

from iopath.common.file_io import file_lock

from famix.errors import DatasetError
from famix.minitown.scene import SIZE
from famix.minitown.splits import FORMAT_VERSION, MinitownSplit
from famix.minitown.writer import write_tree

__all__ = ["CACHE_VARIABLE", "cache_folder", "generated_folder"]

CACHE_VARIABLE = "FAMIX_CACHE"
"""Environment variable of the folder for what FAMix makes and keeps; "~/.cache/famix" where it is unset."""

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Absolute folder for what FAMix makes and keeps, from today's environment variables."""
    folder = os.environ.get(CACHE_VARIABLE) or os.path.join("~", ".cache", "famix")
    return Path(os.path.abspath(os.path.expanduser(os.path.expandvars(folder))))


def generated_folder(name: str, split: MinitownSplit) -> Path:
    """The folder of a data set, which is made now unless it is there already.

    It appears whole or not at all, however many processes ask for it at once and wherever one of them ends.

    Args:
        name: of the data set, and of its folder.
        split: the scenes of it.

    Returns:
        Root of a tree as `write_tree` writes it.

    Raises:
        DatasetError: the folder cannot be written.
    """
    folder = cache_folder() / "minitown" / f"v{FORMAT_VERSION}-{SIZE[0]}x{SIZE[1]}" / name
    if folder.is_dir():
        return folder  # not even a lock: a finished cache may be read-only
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if not folder.is_dir():  # another process may have made it meanwhile
                _generate(folder, split)
    except OSError as error:
        raise DatasetError(
            f"Got no folder {folder} for the dataset '{name}', which is made on first use ({error}). Set "
            f"${CACHE_VARIABLE} to a folder with free space that can be written."
        ) from error
    return folder


def _generate(folder: Path, split: MinitownSplit) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a process that was killed: the lock says that nobody works on it any more
    logger.info(f"Making {split.count} images in {folder}, once, in a minute or less...")
    start = time.perf_counter()
    try:
        write_tree(partial, split.folder, [split.condition], split.seeds)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info(f"Made {split.count} images in {time.perf_counter() - start:.1f} s.")
