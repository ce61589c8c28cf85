"""Loader for style banks of the reference implementation. They are pickles, but nothing in them is executed."""

import os
from typing import Any

import torch
from torch import Tensor

from famix.io import load_pickled_tensors
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import BankError, CorruptFileError
from famix.utils.messages import first_few, first_line

# In the order of Cityscapes train ids; the file identifies classes by name.
RELEASED_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_CLASS_IDS = {name: class_id for class_id, name in enumerate(RELEASED_CLASSES)} | {"255": IGNORE_CLASS}
_MAX_BYTES = 4 << 30  # the original file is about 25 MB
_MAX_CHANNELS = 1 << 16  # a few bytes can claim any size; RN50x64 has 512 channels at its first stage


def read_released_styles(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Read a `saved_params.pkl` file: a pickled dict with lists of (C, 1, 1) tensors as "<class>_mu" and "<class>_std".

    Returns:
        class_ids (N,) int64, mean (N, C) and std (N, C) float32. The class named "255" has the id 255.

    Raises:
        BankError: the file is missing or damaged, has a different structure, or refers to objects other than tensors.
    """
    if not os.path.isfile(path):
        raise BankError(f"Style bank not found: '{path}'. Pass the saved_params.pkl of the reference implementation.")
    try:
        content = _unpickle(path)
        class_ids: list[int] = []
        styles: dict[str, list[Tensor]] = {"mu": [], "std": []}
        for name, class_id in _CLASS_IDS.items():
            for kind, found in styles.items():
                found += _styles(content.pop(f"{name}_{kind}", None), f"{name}_{kind}")
            class_ids += [class_id] * (len(styles["mu"]) - len(class_ids))
            if len(styles["mu"]) != len(styles["std"]):
                raise CorruptFileError(f"different numbers of means and standard deviations for {name!r}")
        if content:
            raise CorruptFileError(f"unknown entries: {first_few(list(content))}")
        channels = sorted({len(style) for style in styles["mu"] + styles["std"]})
        if len(channels) != 1:
            raise CorruptFileError(
                f"styles with different numbers of channels: {channels}" if channels else "no styles"
            )
        if 2 * len(class_ids) * channels[0] > os.path.getsize(path):  # a list can repeat one tensor any number of times
            raise CorruptFileError(
                f"{len(class_ids)} styles of {channels[0]} channels in only {os.path.getsize(path)} bytes"
            )
        mean, std = (torch.stack([style.detach().float().flatten() for style in found]) for found in styles.values())
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise CorruptFileError("NaN or infinite values")
    except CorruptFileError as error:
        raise BankError(
            f"Cannot import styles from '{path}': {error}. Expected a pickle with styles for the 19 Cityscapes classes and "
            "255. Copy saved_params.pkl again, or mine a bank with --mine-styles-only."
        ) from error
    return torch.tensor(class_ids), mean, std


def _styles(entry: Any, key: str) -> list[Tensor]:
    if not isinstance(entry, list) or not all(
        isinstance(style, Tensor)
        and style.is_floating_point()
        and style.dim() == 3
        and style.shape[1:] == (1, 1)
        and 0 < len(style) <= _MAX_CHANNELS
        for style in entry
    ):
        raise CorruptFileError(f"entry {key!r} is not a list of floating-point (C, 1, 1) tensors")
    return entry


def _unpickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise CorruptFileError(f"{os.path.getsize(path) >> 20} MiB, more than the limit of {_MAX_BYTES >> 20} MiB")
        with open(path, "rb") as file:
            content = load_pickled_tensors(file)
    except CorruptFileError:
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        raise CorruptFileError(f"the file cannot be unpickled ({type(error).__name__}: {first_line(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CorruptFileError(f"expected a dict with string keys, found a {type(content).__name__}")
    return content
