"""Dataset dicts for Detectron2, with label files that Detectron2's own tools may not be able to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from famix.data.images import MOST_PIXELS, image_size
from famix.utils.errors import DatasetError

__all__ = ["DatasetRecord", "label_file_of", "read_as_train_ids"]

_SIZE = ("height", "width")
_TRAIN_IDS = ("sem_seg_file_name", "sem_seg")
_SAMPLES = 16  # headers per split: on a network drive, reading all of them would take minutes
_PNG, _GREY_BYTES = b"\x89PNG", b"\x08\x00"  # first bytes; 8 bits, grey at the bytes 24 and 25


class DatasetRecord(dict[str, Any]):
    """A dataset dict of Detectron2 that explains missing entries.

    `label_file_name` is the label file for the dataset's `label_reader`. `sem_seg_file_name`, the same file, exists only
    if the file holds train ids that Detectron2 reads unchanged. Otherwise Detectron2's `SemSegEvaluator`, `Visualizer`
    and, in training, `DatasetMapper` raise the error of this class. `height` and `width` (of the image, in pixels) are
    read from the image's header on access.
    """

    def __missing__(self, key: str) -> Any:
        if key in _SIZE:
            self["height"], self["width"] = image_size(self["file_name"], MOST_PIXELS)
            return self[key]
        if key in _TRAIN_IDS:
            raise self._no_train_ids()
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        # In training, DatasetMapper asks for this key after it has read the image. It would return a sample without
        # labels, with which the network fails in its loss.
        if key == "annotations" and super().__contains__("image") and self._lacks_train_ids():
            raise self._no_train_ids()
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Value of an entry, or `default`; raises a DatasetError for "sem_seg" if Visualizer has nothing to draw."""
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
    """Label file of a dataset dict, also of datasets that other code registered."""
    file: str = record["label_file_name" if "label_file_name" in record else "sem_seg_file_name"]
    return file


def read_as_train_ids(files: Sequence[str]) -> bool:
    """Whether Detectron2 reads the values of a split's label files unchanged, judged by the headers of some of them.

    It converts palettes to grey values and stretches fewer than 8 bits. Unreadable files count as fine: the label reader
    reports them.
    """
    for path in files[:: max(1, len(files) // _SAMPLES)]:
        try:
            with open(path, "rb") as stream:
                header = stream.read(26)
        except OSError:
            continue
        if not (header.startswith(_PNG) and header.endswith(_GREY_BYTES)):
            return False
    return True
