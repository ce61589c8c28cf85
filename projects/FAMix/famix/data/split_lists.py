"""Lists of the images of a split: text files, and the split.mat that GTA5 comes with."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.io import loadmat

__all__ = ["read_split_list"]

_DIGITS = 5  # of GTA5's file names


def read_split_list(path: Path, split_folder: str) -> list[str]:
    """Read what a list names, in its order.

    Args:
        path: a text file with one key, file name or path a line; or a MATLAB file (.mat) with arrays of numbers of
            images, whose names start with that of the split, such as trainIds.
        split_folder: name of the split in a MATLAB file.

    Returns:
        The lines that are not empty, or the numbers with five digits.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no text, or no MATLAB file with an array of the split.
    """
    if path.suffix == ".mat":
        return _read_matlab(path, split_folder)
    with open(path, encoding="utf-8") as stream:
        return [line.strip() for line in stream if line.strip()]


def _read_matlab(path: Path, split_folder: str) -> list[str]:
    with open(path, "rb") as stream:
        try:
            arrays = loadmat(stream)
        except Exception as error:  # SciPy raises whatever a damaged or foreign file leads it to
            raise ValueError(f"it is no MATLAB file that SciPy reads ({error})") from error
    names = [name for name in arrays if name.lower().startswith(split_folder.lower())]
    if len(names) != 1 or not np.issubdtype(arrays[names[0]].dtype, np.number):
        there = _public_names(arrays)
        raise ValueError(f"it has the arrays {there}, expected one of numbers whose name starts with '{split_folder}'")
    return [f"{int(number):0{_DIGITS}d}" for number in arrays[names[0]].ravel()]


def _public_names(names: Iterable[str]) -> str:
    return ", ".join(name for name in names if not name.startswith("_")) or "(none)"
