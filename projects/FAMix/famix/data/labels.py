"""Label files: images of ids, read and mapped to train ids."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from famix.data.classes import cityscapes_label_ids
from famix.data.decoding import header_orientation, sixteen_bit_colors, stored_ids, turn, upright, upright_size
from famix.data.images import MAX_PIXELS, open_label
from famix.data.panoptic.coco_segments import VOID_ID, decode_categories
from famix.data.wrong_encodings import (
    UnknownIdsError,
    WrongEncodingError,
    guess_from_colors,
    guess_from_ids,
    has_train_ids,
)
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few

__all__ = ["LabelReader"]

_NUM_IDS = 65536  # of a 16-bit file
_UNKNOWN = -1
_PILLOW_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I;16N", "I")  # one channel; a palette's index is the id
_OPENCV_CHANNELS = (2, 1, 0, 3)  # red, green, blue, alpha in OpenCV's order of channels
_ROWS = 512  # whose pixels are counted at once: the count needs eight bytes a pixel


@dataclass(frozen=True)
class LabelReader:
    """Reads label files as train ids.

    Attributes:
        label_ids: id in the files -> train id, or `ignore_label`; ids are 0-65535, train ids 0-255.
        ignore_label: value of pixels without a class.
        other_ids_ignored: ids that `label_ids` lacks become `ignore_label`; otherwise they are an error.
        channel: 0, 1, 2 (red, green, blue) or 3 (alpha) of multi-channel files; None for files of one channel.
        source: the definition file, named in errors.
        highest_id: ids above this one are an error in any case; None sets no limit.
        bits: 8 or 16, of a channel; files of another depth are an error. None takes both.
        segments_file: JSON file of the segments where the files are COCO's panoptic PNGs.
        max_pixels: of a file, see INPUT.MAX_PIXELS.
    """

    label_ids: Mapping[int, int]
    ignore_label: int = 255
    other_ids_ignored: bool = False
    channel: int | None = None
    source: str = field(default="the definition of the dataset", compare=False)
    highest_id: int | None = None
    bits: int | None = None
    segments_file: Path | None = None
    max_pixels: int = field(default=MAX_PIXELS, compare=False)
    _table: np.ndarray = field(init=False, repr=False, compare=False)
    _refuses_train_ids: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = np.full(_NUM_IDS, self.ignore_label if self.other_ids_ignored else _UNKNOWN, dtype=np.int16)
        table[(_NUM_IDS if self.highest_id is None else self.highest_id + 1) :] = _UNKNOWN
        table[list(self.label_ids.keys())] = list(self.label_ids.values())
        if self.segments_file is not None:
            table[VOID_ID] = self.ignore_label
        object.__setattr__(self, "_table", table)
        has_label_ids = dict(self.label_ids) == cityscapes_label_ids(self.ignore_label)
        object.__setattr__(self, "_refuses_train_ids", has_label_ids)

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Read a label file.

        Args:
            path: a file in a lossless format with one id a pixel: 1 to 16 bits, palette or grey. It is turned upright as
                images are.

        Returns:
            (H, W) uint8 train ids, `ignore_label` where a pixel has no class.

        Raises:
            DatasetError: the file is missing, damaged, has other channels than expected, or an id without a class.
        """
        reader = self.for_file(path)
        ids = reader._read_ids(path)
        train_ids = reader._table[ids]
        if train_ids.min() == _UNKNOWN:
            raise reader._unknown_ids(path, np.unique(ids).tolist())
        return train_ids.astype(np.uint8)

    def count_pixels(self, path: str | os.PathLike[str]) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """Count the pixels of every train id in a label file, with little memory for large files.

        Args:
            path: as for `read`.

        Returns:
            (256,) number of pixels by train id, and (height, width) of the file in pixels.

        Raises:
            DatasetError: as for `read`.
        """
        reader = self.for_file(path)
        ids = reader._read_ids(path)
        by_id = np.zeros(_NUM_IDS, dtype=np.int64)
        for row in range(0, ids.shape[0], _ROWS):
            by_id += np.bincount(ids[row : row + _ROWS].ravel(), minlength=_NUM_IDS)
        (present,) = np.nonzero(by_id)
        train_ids = reader._table[present]
        if train_ids.min() == _UNKNOWN:
            raise reader._unknown_ids(path, present.tolist())
        counts = np.zeros(256, dtype=np.int64)
        np.add.at(counts, train_ids, by_id[present])
        return counts, (ids.shape[0], ids.shape[1])

    def size_of(self, path: str | os.PathLike[str]) -> tuple[int, int]:
        """(height, width) of a label file in pixels, from its header.

        Raises:
            DatasetError: the file is missing, no image, too large, or of a lossy format.
        """
        with open_label(path, whole=False, max_pixels=self.max_pixels) as image:
            return upright_size(image)

    def for_file(self, path: str | os.PathLike[str]) -> "LabelReader":
        """The reader that knows the encoding of a file: this one."""
        return self

    def _read_ids(self, path: str | os.PathLike[str]) -> np.ndarray:
        with open_label(path, max_pixels=self.max_pixels) as image:
            if self.segments_file is not None:
                return decode_categories(Path(path), image, self.segments_file)
            ids = _decode_single(path, image) if self.channel is None else _decode_channel(path, image, self.channel)
        if self.bits is not None:
            _require_bits(path, 8 * ids.dtype.itemsize, self.bits)
        if self._refuses_train_ids and has_train_ids(ids):
            raise WrongEncodingError(
                f"Label {path} looks like train ids (0 to 18 and 255; files named labelTrainIds), but {self.source} "
                "expects Cityscapes' label ids (files named labelIds). Use those files, or set 'label_ids: identity'."
            )
        return ids

    def _unknown_ids(self, path: str | os.PathLike[str], present: list[int]) -> UnknownIdsError:
        unknown = [label_id for label_id in present if self._table[label_id] == _UNKNOWN]
        expected = f"one of {first_few(sorted(self.label_ids), 40)}"
        if self.other_ids_ignored:
            expected = f"none above {self.highest_id}"
        return UnknownIdsError(
            f"Label {path} has the id(s) {first_few(unknown, 10)}, expected {expected}."
            f"{guess_from_ids(unknown, present, self.label_ids)} If the file is right, add them to 'label_ids' in "
            f"{self.source}, or ignore them there with 'other_ids: ignore'."
        )


def _decode_single(path: str | os.PathLike[str], image: Image.Image) -> np.ndarray:
    if image.mode not in _PILLOW_MODES:
        guess = guess_from_colors(np.asarray(image)) if image.mode in ("RGB", "RGBA") else ""
        raise WrongEncodingError(
            f"Label {path} is an image of mode {image.mode} with {len(image.getbands())} channels, expected one channel "
            f"of ids (grey or palette).{guess} If one of its channels holds the ids, name it with 'label_channel' in "
            "the dataset's definition; a picture of colours must be converted to ids first."
        )
    ids = stored_ids(image)
    if ids.min() < 0 or ids.max() >= _NUM_IDS:
        raise WrongEncodingError(f"Label {path} has ids from {ids.min()} to {ids.max()}, expected 0 to {_NUM_IDS - 1}.")
    return ids if ids.dtype == np.uint8 else ids.astype(np.uint16)


def _decode_channel(path: str | os.PathLike[str], image: Image.Image, channel: int) -> np.ndarray:
    num_channels = len(image.getbands())
    if image.mode == "P" or (image.mode == "RGB" and "transparency" in image.info):  # colours all the same
        num_channels = 4 if "transparency" in image.info else 3
    if channel >= num_channels or num_channels < 3 or image.mode not in ("P", "RGB", "RGBA"):
        raise WrongEncodingError(
            f"Label {path} has {num_channels} channel(s) in mode {image.mode}, but the ids are expected in channel {channel} "
            "(red, green, blue, alpha = 0 to 3). It looks like a converted label. Use the original, or correct "
            "'label_channel' in the dataset's definition, or remove it for labels of one channel."
        )
    if sixteen_bit_colors(image):
        return _decode_wide_channel(path, image, channel)
    return np.asarray(upright(image).convert("RGB" if num_channels == 3 else "RGBA"))[:, :, channel]


def _decode_wide_channel(path: str | os.PathLike[str], image: Image.Image, channel: int) -> np.ndarray:
    """A channel of 16 bits, which Pillow would cut down to 8."""
    orientation = header_orientation(image)
    if image.format != "PNG" and orientation != 1:
        raise WrongEncodingError(
            f"Label {path} must be a PNG to have 16 bits a channel and the orientation {orientation}, got {image.format}. "
            "Turn it upright and save it anew."
        )
    pixels = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
        raise DatasetError(f"Label {path} cannot be decoded with 16 bits a channel. Save it as a PNG of RGB.")
    return np.asarray(turn(Image.fromarray(pixels[:, :, _OPENCV_CHANNELS[channel]]), orientation))


def _require_bits(path: str | os.PathLike[str], found: int, expected: int) -> None:
    if found != expected:
        # A program that cannot read 16 bits keeps the upper eight, in which SYNTHIA's classes are all 0.
        cause = "looks like a label that some program cut down to 8 bits, by which its ids are lost"
        raise WrongEncodingError(
            f"Label {path} has {found} bits a channel, expected {expected}. It "
            f"{cause if found < expected else 'looks like a label of another dataset'}: take the published file."
        )
