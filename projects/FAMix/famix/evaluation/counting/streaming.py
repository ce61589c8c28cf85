"""Semantic segmentation scored image by image: a confusion matrix is all that is kept."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor

from famix.data.records import label_file_of
from famix.evaluation.counting.confusion import NUM_LABELS, SKIP, ConfusionCounts, segmentation_scores
from famix.evaluation.counting.confusion_file import CONFUSION_FILE, write_confusion
from famix.evaluation.protocols.argmax import best_classes
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few

__all__ = ["StreamingSemSegEvaluator"]

ReadLabels = Callable[[str], np.ndarray]


class StreamingSemSegEvaluator(DatasetEvaluator):
    """Detectron2's SemSegEvaluator without its memory of every prediction, and without its boundary scores.

    Pixels are counted on the device of the predictions. While the network works on an image, the label of the next one
    is decoded in a thread.

    Args:
        dataset_name: a registered data set with `stuff_classes` and `ignore_label` in its metadata.
        read_labels: label file -> (H, W) train ids; None for the data set's own `label_reader`.
        prepare_labels: train ids -> (h, w) train ids as they are scored, e.g. `Protocol.prepare_labels`.
        classes: train ids that the means are over, see `segmentation_scores`; None for all.
        absent: what classes are in the mean that are predicted but nowhere labelled, one of ABSENT_CLASSES.
        distributed: add up the counts of all processes.
        output_folder: gets the confusion matrix, see `famix.evaluation.counting.confusion_file`; None keeps it in memory.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        read_labels: ReadLabels | None = None,
        prepare_labels: Callable[[np.ndarray], np.ndarray] | None = None,
        classes: Sequence[int] | None = None,
        absent: str = SKIP,
        distributed: bool = True,
        output_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._class_names: list[str] = list(metadata.stuff_classes)
        self._ignore_label: int = metadata.ignore_label
        self._files = {record["file_name"]: label_file_of(record) for record in DatasetCatalog.get(dataset_name)}
        self._read = read_labels or metadata.label_reader.read
        self._prepare = prepare_labels
        self._classes = classes
        self._absent = absent
        self._distributed = distributed
        self._output_folder = output_folder
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counts = ConfusionCounts(len(self._class_names))
        self._labels = _LabelsAhead(self._files, self._read)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: dicts with "file_name", an image file of the data set.
            outputs: dicts with "sem_seg", scores (K, H, W) of its K classes at the size of the labels.

        Raises:
            DatasetError: a prediction has other classes or another size than its labels; a label cannot be read or has
                an id that is neither a class nor the ignore label.
        """
        for image, output in zip(inputs, outputs, strict=True):
            labels = self._labels.of(image["file_name"])
            if self._prepare is not None:
                labels = self._prepare(labels)
            self._require_fit(output["sem_seg"], labels, image["file_name"])
            self._counts.add(
                best_classes(output["sem_seg"]), torch.from_numpy(np.ascontiguousarray(labels, dtype=np.uint8))
            )

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Scores of all images so far.

        Returns:
            {"sem_seg": scores in percent, see `segmentation_scores`} on the main process, None on others.

        Raises:
            DatasetError: labels had ids that are neither a class nor the ignore label.
        """
        counts = self._counts.total(self._distributed)
        if counts is None:
            return None
        num_classes = len(self._class_names)
        strange = [value for value in np.flatnonzero(counts.sum(axis=1)) if num_classes <= value != self._ignore_label]
        if strange:
            raise DatasetError(
                f"labels of {self._name} have the train id(s) {first_few(strange)}, expected 0 to {num_classes - 1} or "
                f"{self._ignore_label} for ignored pixels; correct the data set's definition"
            )
        confusion = counts[:num_classes]
        if self._output_folder is not None:
            write_confusion(Path(self._output_folder) / CONFUSION_FILE, self._class_names, confusion)
        return OrderedDict(sem_seg=segmentation_scores(confusion, self._class_names, self._classes, self._absent))

    def _require_fit(self, scores: Tensor, labels: np.ndarray, image_file: str) -> None:
        expected = (len(self._class_names), *labels.shape)
        if tuple(scores.shape) != expected:
            raise DatasetError(
                f"data set {self._name}: the prediction for {image_file} has the shape {_shape(scores.shape)}, expected "
                f"{_shape(expected)} (classes x height x width) as its label {self._files[image_file]} is scored; the "
                "model must return scores of its input's 'height' and 'width'"
            )
        if labels.dtype != np.uint8 and not (labels.min() >= 0 and labels.max() < NUM_LABELS):
            raise DatasetError(
                f"data set {self._name}: {self._files[image_file]} has labels from {labels.min()} to {labels.max()}, "
                f"expected train ids from 0 to {NUM_LABELS - 1}; correct what reads or prepares the labels"
            )


class _LabelsAhead:
    """Reads labels, the next one of the data set in a thread while the caller works: never more than one ahead.

    The thread ends with the object.

    Args:
        files: image file -> label file, in the order in which they are asked for; another order is only slower.
        read: reads a label file.
    """

    def __init__(self, files: Mapping[str, str], read: ReadLabels) -> None:
        self._files = files
        self._read = read
        self._following = dict(pairwise(files))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._ahead: tuple[str, Future[np.ndarray]] | None = None

    def of(self, image_file: str) -> np.ndarray:
        """Labels of an image; an error of reading them is raised here, not before they are asked for."""
        ahead, self._ahead = self._ahead, None
        expected = ahead is not None and ahead[0] == image_file
        labels = ahead[1].result() if ahead and expected else self._read(self._files[image_file])
        following = self._following.get(image_file)
        if following is not None:
            self._ahead = following, self._thread.submit(self._read, self._files[following])
        return labels


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
