"""Lists of the images of a split: text files, and the split.mat that GTA5 comes with."""

from pathlib import Path

import numpy as np

from famix.io import read_text
from famix.io.matlab import read_matlab_arrays

__all__ = ["read_split_list"]

_DIGITS = 5  # of GTA5's file names
_MOST_IMAGES = 10**9
_MAX_BYTES = 256 << 20  # of a list
_AROUND = " \t\r\f\v\ufeff"  # a line: blanks, and the byte order marks of lists that were joined


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
    lines = (line.strip(_AROUND) for line in read_text(path, _MAX_BYTES).split("\n"))
    return [line for line in lines if line]


def _read_matlab(path: Path, split_folder: str) -> list[str]:
    arrays = read_matlab_arrays(path)
    names = [name for name in arrays if name.lower().startswith(split_folder.lower())]
    numbers = arrays[names[0]] if len(names) == 1 else None
    if numbers is None:
        there = ", ".join(arrays) or "(none)"
        raise ValueError(f"it has the arrays {there}, expected one of numbers whose name starts with '{split_folder}'")
    values = numbers.astype(np.float64)
    if not ((values >= 0) & (values < _MOST_IMAGES) & (values == np.floor(values))).all():
        raise ValueError(
            f"its array {names[0]} has numbers that no image has, expected whole ones below {_MOST_IMAGES}"
        )
    return [f"{int(value):0{_DIGITS}d}" for value in values]
