"""Streaming evaluation of semantic segmentation: the confusion matrix is the only state."""

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
from famix.evaluation.counting.confusion import (
    CONFUSION_FILE,
    NUM_LABELS,
    ConfusionCounts,
    argmax_classes,
    write_confusion,
)
from famix.evaluation.counting.scores import SKIP, segmentation_scores
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few

__all__ = ["StreamingSemSegEvaluator"]

ReadLabels = Callable[[str], np.ndarray]


class StreamingSemSegEvaluator(DatasetEvaluator):
    """Detectron2's SemSegEvaluator without stored predictions and boundary scores.

    Pixels are counted on the device of the predictions. While the network predicts an image, a thread decodes the next
    label.

    Args:
        dataset_name: a registered dataset with `stuff_classes` and `ignore_label` in its metadata.
        read_labels: label file -> (H, W) train ids; None for the dataset's `label_reader`.
        prepare_labels: train ids -> (h, w) train ids for scoring, e.g. `Protocol.prepare_labels`.
        classes: train ids of the means, see `segmentation_scores`; None for all.
        absent: rule for classes that are predicted but nowhere labeled, one of ABSENT_CLASSES.
        distributed: sum the counts over all processes.
        output_folder: for the file of `write_confusion`; None writes no file.
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
        self._next_image = dict(pairwise(self._files))
        self._read = read_labels or metadata.label_reader.read
        self._prepare = prepare_labels
        self._classes = classes
        self._absent = absent
        self._distributed = distributed
        self._output_folder = output_folder
        self.reset()

    def reset(self) -> None:
        """Discard all counts."""
        self._counts = ConfusionCounts(len(self._class_names))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._ahead: tuple[str, Future[np.ndarray]] | None = None

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: dicts with "file_name", an image file of the dataset.
            outputs: dicts with "sem_seg", scores (K, H, W) of its K classes at the size of the prepared labels.

        Raises:
            DatasetError: a prediction differs from its label in classes or size, or a label cannot be read or exceeds
                8 bits.
        """
        for image, output in zip(inputs, outputs, strict=True):
            labels = self._read_labels(image["file_name"])
            if self._prepare is not None:
                labels = self._prepare(labels)
            self._check_shapes(output["sem_seg"], labels, image["file_name"])
            self._counts.add(
                argmax_classes(output["sem_seg"]), torch.from_numpy(np.ascontiguousarray(labels, dtype=np.uint8))
            )

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Compute the scores of all images so far.

        Returns:
            {"sem_seg": scores in percent, see `segmentation_scores`} on the main process, None on others.

        Raises:
            DatasetError: labels contained ids that are neither a class nor the ignore label.
        """
        counts = self._counts.total(self._distributed)
        if counts is None:
            return None
        num_classes = len(self._class_names)
        strange = [value for value in np.flatnonzero(counts.sum(axis=1)) if num_classes <= value != self._ignore_label]
        if strange:
            raise DatasetError(
                f"dataset {self._name}: labels must be train ids from 0 to {num_classes - 1}, or {self._ignore_label} for "
                f"ignored pixels, got {first_few(strange)}. Correct the dataset's definition."
            )
        confusion = counts[:num_classes]
        if self._output_folder is not None:
            write_confusion(Path(self._output_folder) / CONFUSION_FILE, self._class_names, confusion)
        return OrderedDict(sem_seg=segmentation_scores(confusion, self._class_names, self._classes, self._absent))

    def _read_labels(self, image_file: str) -> np.ndarray:
        """Labels of an image; while the caller works, a thread reads those of the next image, at most one ahead."""
        ahead, self._ahead = self._ahead, None
        labels = ahead[1].result() if ahead and ahead[0] == image_file else self._read(self._files[image_file])
        following = self._next_image.get(image_file)
        if following is not None:
            self._ahead = following, self._thread.submit(self._read, self._files[following])
        return labels

    def _check_shapes(self, scores: Tensor, labels: np.ndarray, image_file: str) -> None:
        expected = (len(self._class_names), *labels.shape)
        if tuple(scores.shape) != expected:
            got, wanted = (" x ".join(map(str, shape)) for shape in (scores.shape, expected))
            raise DatasetError(
                f"dataset {self._name}: the prediction for '{image_file}' must have the shape {wanted} (classes x height x "
                f"width) of its label '{self._files[image_file]}', got {got}. Return scores of the input's 'height' and "
                "'width' from the model."
            )
        if labels.dtype != np.uint8 and not (labels.min() >= 0 and labels.max() < NUM_LABELS):
            raise DatasetError(
                f"dataset {self._name}: labels of '{self._files[image_file]}' must be train ids from 0 to "
                f"{NUM_LABELS - 1}, got {labels.min()} to {labels.max()}. Correct read_labels or prepare_labels."
            )
