"""Label files: PNGs of ids, read and mapped to train ids."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from famix.data.definition import DatasetDefinition
from famix.data.images import open_image
from famix.errors import DatasetError
from famix.wording import first_few

__all__ = ["LabelReader"]

_NUM_IDS = 65536  # of a 16-bit file
_UNKNOWN = -1
_PILLOW_MODES = ("1", "L", "P", "I;16", "I;16B", "I")  # one channel; a palette's index is the id
_OPENCV_CHANNELS = (2, 1, 0, 3)  # red, green, blue, alpha in OpenCV's order of channels


@dataclass(frozen=True)
class LabelReader:
    """Reads label files as train ids.

    Attributes:
        label_ids: id in the files -> train id, or `ignore_label`; ids are 0-65535, train ids 0-255.
        ignore_label: value of pixels without a class.
        other_ids_ignored: ids that `label_ids` lacks become `ignore_label`; otherwise they are an error.
        channel: 0, 1, 2 (red, green, blue) or 3 (alpha) of multi-channel files; None for files of one channel.
        source: the definition file, named in errors.
    """

    label_ids: Mapping[int, int]
    ignore_label: int = 255
    other_ids_ignored: bool = False
    channel: int | None = None
    source: str = field(default="the definition of the dataset", compare=False)
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = np.full(_NUM_IDS, self.ignore_label if self.other_ids_ignored else _UNKNOWN, dtype=np.int16)
        table[list(self.label_ids.keys())] = list(self.label_ids.values())
        object.__setattr__(self, "_table", table)

    @classmethod
    def from_definition(cls, definition: DatasetDefinition) -> "LabelReader":
        """Reader of a dataset's label files."""
        return cls(
            label_ids=definition.label_ids,
            ignore_label=definition.ignore_label,
            other_ids_ignored=definition.other_ids_ignored,
            channel=definition.label_channel,
            source=definition.source,
        )

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Read a label file.

        Args:
            path: an image file with one id a pixel: 8 bits, palette or 16 bits.

        Returns:
            (H, W) uint8 train ids, `ignore_label` where a pixel has no class.

        Raises:
            DatasetError: the file is missing, damaged, has other channels than expected, or an id without a class.
        """
        ids = self._read_ids(path)
        train_ids = self._table[ids]
        if train_ids.min() == _UNKNOWN:
            unknown = np.unique(ids[train_ids == _UNKNOWN]).tolist()
            raise DatasetError(
                f"Label {path} has the id(s) {first_few(unknown, 10)}, expected one of "
                f"{first_few(sorted(self.label_ids), 40)}. Add them to 'label_ids' in {self.source}, or ignore "
                "them there with 'other_ids: ignore'."
            )
        return train_ids.astype(np.uint8)

    def _read_ids(self, path: str | os.PathLike[str]) -> np.ndarray:
        with open_image(path) as image:
            if self.channel is not None:
                # Before decoding: OpenCV returns what it got of a damaged file, Pillow checks the checksums.
                image.verify()
                return _decode_channel(path, self.channel)
            return _decode_single(path, image)


def _decode_single(path: str | os.PathLike[str], image: Image.Image) -> np.ndarray:
    if image.mode not in _PILLOW_MODES:
        raise DatasetError(
            f"Label {path} is an image of mode {image.mode} with {len(image.getbands())} channels, expected one channel "
            "of ids (grey or palette). If one of its channels holds the ids, name it with 'label_channel' in "
            "the dataset's definition; a picture of colours must be converted to ids first."
        )
    ids = np.asarray(image)
    if ids.dtype == np.bool_:
        return ids.astype(np.uint8)
    if ids.min() < 0 or ids.max() >= _NUM_IDS:
        raise DatasetError(f"Label {path} has ids from {ids.min()} to {ids.max()}, expected 0 to {_NUM_IDS - 1}.")
    return ids


def _decode_channel(path: str | os.PathLike[str], channel: int) -> np.ndarray:
    # Pillow would cut 16 bits a channel down to 8.
    pixels = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DatasetError(f"Label {path} cannot be decoded, it is damaged or no image. Replace it.")
    num_channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channel >= num_channels or num_channels < 3:
        raise DatasetError(
            f"Label {path} has {num_channels} channel(s), but the ids are expected in channel {channel} "
            "(red, green, blue, alpha = 0 to 3). Correct 'label_channel' in the dataset's definition, or remove it "
            "for labels of one channel."
        )
    return pixels[:, :, _OPENCV_CHANNELS[channel]]
