"""Dataset dicts as Detectron2 knows them, for label files that Detectron2 itself may not be able to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from famix.data.images import MOST_PIXELS, image_size
from famix.utils.errors import DatasetError

__all__ = ["DatasetRecord", "label_file_of", "read_as_train_ids"]

_SIZE = ("height", "width")
_TRAIN_IDS = ("sem_seg_file_name", "sem_seg")
_SAMPLES = 16  # label files of a split whose headers are read: on a network drive, all of them would take minutes
_HEADER = 26  # bytes of a PNG up to its depth and colour type
_GREY_BYTES = b"\x08\x00"  # 8 bits, grey


class DatasetRecord(dict[str, Any]):
    """A dataset dict of Detectron2 that explains which of its entries are missing.

    `label_file_name` is the label file, which the dataset's `label_reader` reads. `sem_seg_file_name`, the same file, is
    an entry only if the file holds train ids as Detectron2 reads them. Otherwise Detectron2's `SemSegEvaluator`,
    `Visualizer` and, for training, `DatasetMapper` raise the error of this class. `height` and `width` (of the image, in
    pixels) are read from the image's header when they are asked for.
    """

    def __missing__(self, key: str) -> Any:
        if key in _SIZE:
            self["height"], self["width"] = image_size(self["file_name"], MOST_PIXELS)
            return self[key]
        if key in _TRAIN_IDS:
            raise self._no_train_ids()
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        # DatasetMapper asks for this after it has read the image, for training only. Without an error here, the network
        # would get no labels, and fail in its loss.
        if key == "annotations" and super().__contains__("image") and self._lacks_train_ids():
            raise self._no_train_ids()
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Value of an entry, or `default`.

        Raises:
            DatasetError: `key` is "sem_seg", which Visualizer asks for, and there is nothing for it to draw.
        """
        if key in _SIZE or (key == "sem_seg" and self._lacks_train_ids() and "pan_seg_file_name" not in self):
            return self[key]
        return super().get(key, default)

    def _lacks_train_ids(self) -> bool:
        return not any(super(DatasetRecord, self).__contains__(key) for key in _TRAIN_IDS)

    def _no_train_ids(self) -> DatasetError:
        return DatasetError(
            f"Dataset '{super().get('dataset_name')}': sem_seg_file_name must be an 8-bit grey PNG of train ids, got "
            f"{super().get('label_file_name')}, which Detectron2's own tools would misread. Read 'label_file_name' with "
            "the 'label_reader' of the dataset's metadata, as FAMixDatasetMapper and StreamingSemSegEvaluator do, or "
            "convert the labels: datasets/README.md, With Detectron2's own tools."
        )


def label_file_of(record: Mapping[str, Any]) -> str:
    """The label file of a dataset dict, also of datasets that other code registered.

    Raises:
        KeyError: it has none.
    """
    file: str = record["label_file_name" if "label_file_name" in record else "sem_seg_file_name"]
    return file


def read_as_train_ids(files: Sequence[str]) -> bool:
    """Whether Detectron2 reads the values of label files unchanged, by the headers of some of them.

    It turns palettes into grey values, and stretches fewer than 8 bits. Files that cannot be opened are left to the code
    that reads them.

    Args:
        files: of one split.
    """
    step = max(1, len(files) // _SAMPLES)
    return all(map(_is_grey_png, files[::step]))


def _is_grey_png(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            header = stream.read(_HEADER)
    except OSError:
        return True
    return header.startswith(b"\x89PNG") and header.endswith(_GREY_BYTES)
