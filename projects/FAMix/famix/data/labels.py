"""Label files: images of ids, which are converted to train ids."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from famix.data.classes import CITYSCAPES_CLASSES, HIGHEST_LABEL_ID, cityscapes_label_ids
from famix.data.images import (
    MAX_PIXELS,
    has_wide_colors,
    header_orientation,
    open_label,
    stored_ids,
    turn,
    upright,
    upright_size,
)
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few

_NUM_IDS = 65536  # in a 16-bit file
_UNKNOWN = -1
_ONE_CHANNEL = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow modes; palette indices are ids
_OPENCV_CHANNELS = (2, 1, 0, 3)  # red, green, blue, alpha in OpenCV's channel order
_MANY_IDS = 40  # a file with more unknown ids is probably a photograph


class WrongEncodingError(DatasetError):
    """Raised when the encoding of a label file contradicts the dataset definition."""


class UnknownIdsError(WrongEncodingError):
    """Raised when a label file contains ids that the dataset definition lacks."""


@dataclass(frozen=True)
class LabelReader:
    """Reader that converts label files to train ids."""

    label_ids: Mapping[int, int]  # id in the files, 0-65535 -> train id, 0-255, or `ignore_label`
    ignore_label: int = 255
    other_ids_ignored: bool = False  # map ids missing from `label_ids` to `ignore_label`; if False, raise
    channel: int | None = None  # 0-3 (red, green, blue, alpha) in multi-channel files; None for one channel
    source: str = field(default="the dataset definition", compare=False)  # definition file, for error messages
    highest_id: int | None = None  # higher ids missing from `label_ids` are an error in any case
    bits: int | None = None  # bits per channel, 8 or 16; None accepts both
    max_pixels: int = field(default=MAX_PIXELS, compare=False)  # pixel limit, as in INPUT.MAX_PIXELS
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = np.full(_NUM_IDS, self.ignore_label if self.other_ids_ignored else _UNKNOWN, dtype=np.int16)
        table[(_NUM_IDS if self.highest_id is None else self.highest_id + 1) :] = _UNKNOWN
        table[list(self.label_ids.keys())] = list(self.label_ids.values())
        object.__setattr__(self, "_table", table)

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Read a label file as train ids (H, W) uint8, rotated upright like images.

        Raises:
            DatasetError: the file is missing, damaged or lossy, or has unexpected channels or an id without a class.
        """
        reader = self.for_file(path)
        ids = reader._read_ids(path)
        train_ids = reader._table[ids]
        if train_ids.min() == _UNKNOWN:
            raise reader._unknown_ids(path, np.unique(ids).tolist())
        return train_ids.astype(np.uint8)

    def size_of(self, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Return the (height, width) of a label file, reading only its header. Raises the errors it reveals."""
        with open_label(path, whole=False, max_pixels=self.max_pixels) as image:
            return upright_size(image)

    def for_file(self, path: str | os.PathLike[str]) -> "LabelReader":
        """Return the reader for a file's encoding."""
        return self

    def _read_ids(self, path: str | os.PathLike[str]) -> np.ndarray:
        with open_label(path, max_pixels=self.max_pixels) as image:
            ids = _decode_single(path, image) if self.channel is None else _decode_channel(path, image, self.channel)
        found = 8 * ids.dtype.itemsize
        if self.bits not in (None, found):
            # Programs that cannot handle 16 bits keep the upper eight bits, which are 0 for all SYNTHIA classes.
            cause = "have been reduced to 8 bits, which destroys ids" if found == 8 else "belong to a different dataset"
            raise WrongEncodingError(
                f"Label '{path}' must have {self.bits} bits per channel, got {found}. The file seems to {cause}. Use "
                "the published file."
            )
        if dict(self.label_ids) == cityscapes_label_ids(self.ignore_label) and _has_train_ids(ids):
            raise WrongEncodingError(
                f"Label '{path}' seems to contain train ids (0 to 18 and 255; files named labelTrainIds), but "
                f"'{self.source}' expects Cityscapes' label ids (files named labelIds). Use those files, or set "
                "'label_ids: identity'."
            )
        return ids

    def _unknown_ids(self, path: str | os.PathLike[str], present: list[int]) -> UnknownIdsError:
        unknown = [label_id for label_id in present if self._table[label_id] == _UNKNOWN]
        expected = f"at most {self.highest_id}" if self.other_ids_ignored else first_few(sorted(self.label_ids), 40)
        return UnknownIdsError(
            f"Label '{path}': ids must be {expected}, got {first_few(unknown, 10)}."
            f"{_guess_from_ids(unknown, present, self.label_ids)} If the file is correct, add these ids to "
            f"'label_ids' in {self.source}, or ignore them there with 'other_ids: ignore'."
        )


def _decode_single(path: str | os.PathLike[str], image: Image.Image) -> np.ndarray:
    if image.mode not in _ONE_CHANNEL:
        raise WrongEncodingError(
            f"Label '{path}' must have one channel of ids (gray or palette), got mode {image.mode} with "
            f"{len(image.getbands())} channels. If one of the channels contains the ids, select it with "
            "'label_channel' in the dataset definition. If the file shows class colors, use the id file instead "
            "(in BDD100K, from 'masks' rather than 'colormaps')."
        )
    ids = stored_ids(image)
    if ids.min() < 0 or ids.max() >= _NUM_IDS:
        raise WrongEncodingError(f"Label '{path}': ids must be in [0, {_NUM_IDS - 1}], got {ids.min()} to {ids.max()}.")
    return ids if ids.dtype == np.uint8 else ids.astype(np.uint16)


def _decode_channel(path: str | os.PathLike[str], image: Image.Image, channel: int) -> np.ndarray:
    num_channels = len(image.getbands())
    if image.mode == "P" or (image.mode == "RGB" and "transparency" in image.info):  # both decode to colors
        num_channels = 4 if "transparency" in image.info else 3
    if channel >= num_channels or image.mode not in ("P", "RGB", "RGBA"):
        raise WrongEncodingError(
            f"Label '{path}' must have its ids in channel {channel} (red, green, blue, alpha = 0 to 3), got "
            f"{num_channels} channel(s) in mode {image.mode}, possibly from a conversion. Use the original file, or "
            "correct 'label_channel' in the dataset definition; remove it for one-channel labels."
        )
    if not has_wide_colors(image):
        return np.asarray(upright(image).convert("RGB" if num_channels == 3 else "RGBA"))[:, :, channel]
    # Pillow would reduce 16 bits to 8, and OpenCV rotates formats other than PNG.
    pixels = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED) if image.format == "PNG" else None
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
        raise WrongEncodingError(f"Label '{path}' with 16 bits per channel must be an RGB PNG, got {image.format}.")
    return np.asarray(turn(Image.fromarray(pixels[:, :, _OPENCV_CHANNELS[channel]]), header_orientation(image)))


def _has_train_ids(ids: NDArray[np.integer]) -> bool:
    """Return whether ids look like Cityscapes' train ids: some 255, and all others at most 18."""
    is_ignored = ids == 255
    if not is_ignored.any() or is_ignored.all():
        return False
    return bool(ids[~is_ignored].max() < len(CITYSCAPES_CLASSES))


def _guess_from_ids(unknown: Collection[int], present: Collection[int], label_ids: Mapping[int, int]) -> str:
    """Return a sentence about the probable cause of unknown ids, or "" if there is no guess."""
    if len(unknown) > _MANY_IDS:
        return " The file looks like a photograph (gray values or colors) rather than a label."
    expects_train_ids = all(train_id == label_id for label_id, train_id in label_ids.items())
    if expects_train_ids and 255 not in present and max(unknown) <= HIGHEST_LABEL_ID:
        return (
            f" The file seems to contain Cityscapes' label ids (0 to {HIGHEST_LABEL_ID - 1}; files named labelIds) "
            "instead of train ids (0 to 18 and 255; files named labelTrainIds)."
        )
    if not expects_train_ids and _has_train_ids(np.array(list(present))):
        return " The file seems to contain train ids (0 to 18 and 255; files named labelTrainIds) instead of label ids."
    return ""


def count_train_ids(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the pixels with each of the 256 train ids in labels (H, W), as (256,)."""
    # Count in parts, because counting needs eight bytes per pixel.
    parts = np.array_split(labels, 1 + labels.size // 2**20)
    return np.sum([np.bincount(part.ravel(), minlength=256) for part in parts], axis=0, dtype=np.int64)
