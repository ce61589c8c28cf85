"""Labels of another encoding than their definition says: the errors, and guesses at what the files are instead."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from famix.data.classes import CITYSCAPES_CLASSES, HIGHEST_LABEL_ID
from famix.utils.errors import DatasetError

__all__ = ["UnknownIdsError", "WrongEncodingError", "guess_from_colors", "guess_from_ids", "has_train_ids"]

_NUM_CLASSES = len(CITYSCAPES_CLASSES)
_TRAIN_IGNORE = 255
_MANY_IDS = 40  # more than any label of a street scene misses: such files are pictures
_MOST = 0.5  # of the pixels


class WrongEncodingError(DatasetError):
    """A label file that is no image of the ids that its dataset's definition announces."""


class UnknownIdsError(WrongEncodingError):
    """A label file with ids that its dataset's definition does not have."""


def guess_from_ids(unknown: Collection[int], present: Collection[int], label_ids: Mapping[int, int]) -> str:
    """Guess why a file has ids that its definition lacks.

    Args:
        unknown: these ids.
        present: all ids of the file.
        label_ids: id -> train id, of the definition.

    Returns:
        A sentence with a leading blank, or "".
    """
    if len(unknown) > _MANY_IDS:
        return " It looks like a picture (grey values or colours), not like ids."
    expects_train_ids = all(train_id == label_id for label_id, train_id in label_ids.items())
    if expects_train_ids and _TRAIN_IGNORE not in present and max(unknown) <= HIGHEST_LABEL_ID:
        return (
            f" It looks like Cityscapes' label ids (0 to {HIGHEST_LABEL_ID - 1}; files named labelIds), where train "
            "ids are expected (0 to 18 and 255; files named labelTrainIds)."
        )
    if not expects_train_ids and has_train_ids(np.array(list(present))):
        return " It looks like train ids (0 to 18 and 255; files named labelTrainIds), where label ids are expected."
    return ""


def has_train_ids(ids: NDArray[np.integer]) -> bool:
    """Whether ids look like Cityscapes' train ids, which include 255 and nothing else above 18.

    Args:
        ids: of any shape.
    """
    is_ignored = ids == _TRAIN_IGNORE
    if not is_ignored.any() or is_ignored.all():
        return False
    return bool(ids[~is_ignored].max() < _NUM_CLASSES)


def guess_from_colors(pixels: NDArray[np.uint8]) -> str:
    """Guess what an image is that has colours where ids are expected.

    Args:
        pixels: (H, W, C), C of at least 3, red, green and blue first.

    Returns:
        A sentence with a leading blank, or "".
    """
    colors = {entry.color for entry in CITYSCAPES_CLASSES} | {(0, 0, 0)}
    weights = np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    codes = pixels[..., :3].astype(np.uint32) @ weights
    share = np.isin(codes, np.array(list(colors), dtype=np.uint32) @ weights).mean()
    if share <= _MOST or not codes.any():
        return ""
    return (
        f" It looks like a picture in the classes' colours ({100 * share:.0f} % of its pixels have one): the dataset has "
        "another folder or file of ids (in BDD100K 'masks', not 'colormaps'; in GTA5 the palette PNGs as published)."
    )
