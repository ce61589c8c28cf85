"""Semantic segmentation evaluators: streaming, Detectron2's and the Cityscapes script."""

import glob
import importlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import CityscapesSemSegEvaluator, DatasetEvaluator, SemSegEvaluator
from detectron2.utils import comm
from torch import Tensor

from famix.data.classes import CITYSCAPES_CLASSES
from famix.data.layout.split_files import label_file_of
from famix.evaluation.counting.calibration import CALIBRATION_FILE, CalibrationCounts, write_calibration
from famix.evaluation.counting.confusion import (
    CONFUSION_FILE,
    NUM_LABELS,
    ConfusionCounts,
    argmax_classes,
    write_confusion,
)
from famix.evaluation.counting.scored_classes import ScoredClasses, classes_of_dataset
from famix.evaluation.counting.scores import MEAN_IOUS, SKIP, ZERO, segmentation_scores
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.messages import first_few

Scores = OrderedDict[str, dict[str, float]]  # {"sem_seg": scores in percent}

_SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
_LABEL_SUFFIX = "_gtFine_labelIds.png"


class StreamingSemSegEvaluator(DatasetEvaluator):
    """Variant of Detectron2's SemSegEvaluator that neither stores predictions nor computes boundary scores.

    The confusion matrix is the only state. Pixels are counted on the device of the predictions, and a thread decodes the
    next label file while the network predicts.

    Args:
        dataset_name: name of a registered dataset with `stuff_classes` and `ignore_label` in its metadata.
        read_labels: function that maps a label file to (H, W) train ids. None uses the dataset's `label_reader`.
        prepare_labels: function that maps them to (h, w) train ids for scoring, e.g. `Protocol.prepare_labels`.
        classes: classes of the predictions, which the prepared labels are mapped to. None scores those of the dataset.
        absent: see `segmentation_scores`.
        output_folder: folder for the confusion matrix and the calibration. None writes no file.
        are_logits: whether predictions are logits or proportional to probabilities. None does not score the calibration.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        read_labels: Callable[[str], np.ndarray] | None = None,
        prepare_labels: Callable[[np.ndarray], np.ndarray] | None = None,
        classes: ScoredClasses | None = None,
        absent: str = SKIP,
        output_folder: str | os.PathLike[str] | None = None,
        are_logits: bool | None = None,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._classes = classes or classes_of_dataset(dataset_name)
        self._class_names, self._ignore_label = self._classes.names, self._classes.ignore_label
        self._files = {record["file_name"]: label_file_of(record) for record in DatasetCatalog.get(dataset_name)}
        self._next_image = dict(pairwise(self._files))
        self._read = read_labels or metadata.label_reader.read
        self._prepare = prepare_labels or (lambda labels: labels)
        self._absent = absent
        self._output_folder = output_folder
        self._are_logits = are_logits
        self.reset()

    def reset(self) -> None:
        """Discard all counts."""
        self._counts = ConfusionCounts(len(self._class_names))
        self._calibration = None if self._are_logits is None else CalibrationCounts(self._are_logits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._ahead: tuple[str, Future[np.ndarray]] | None = None

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Count the pixels of a batch of images.

        Args:
            inputs: dicts with "file_name", an image file of the dataset.
            outputs: dicts with "sem_seg", scores (K, H, W) at the size of the prepared labels.

        Raises:
            DatasetError: a prediction has the wrong number of classes or size, or a label cannot be read or exceeds
                8 bits.
        """
        for image, output in zip(inputs, outputs, strict=True):
            file, scores = image["file_name"], output["sem_seg"]
            labels = self._classes.label_ids(self._prepare(self._read_labels(file)))
            expected = (len(self._class_names), *labels.shape)
            if tuple(scores.shape) != expected:
                got, wanted = (" x ".join(map(str, shape)) for shape in (scores.shape, expected))
                raise DatasetError(
                    f"Dataset '{self._name}': the prediction for '{file}' has the shape {got} (classes x height x width), but "
                    f"its label '{self._files[file]}' requires {wanted}. Return scores with the input's 'height' and 'width' "
                    "from the model."
                )
            if labels.dtype != np.uint8 and not (labels.min() >= 0 and labels.max() < NUM_LABELS):
                raise DatasetError(
                    f"Dataset '{self._name}': labels in '{self._files[file]}' must be train ids from 0 to "
                    f"{NUM_LABELS - 1}, got {labels.min()} to {labels.max()}. Fix read_labels or prepare_labels."
                )
            truth = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.uint8))
            self._counts.add(argmax_classes(scores), truth)
            if self._calibration is not None:
                self._calibration.add(scores, truth)

    def evaluate(self) -> Scores | None:
        """Compute the scores over all images so far.

        Returns:
            {"sem_seg": scores} on the main process, see `segmentation_scores`, and None elsewhere. With calibration, also
            {"calibration": {"ECE": error, "overconfidence": mean confidence - accuracy}}, in percent (see `Calibration`).

        Raises:
            DatasetError: labels contain ids that are neither a class nor the ignore label.
        """
        counts = self._counts.total()
        calibration = self._calibration.total() if self._calibration is not None else None
        if counts is None:
            return None
        num_classes = len(self._class_names)
        strange = [value for value in np.flatnonzero(counts.sum(axis=1)) if num_classes <= value != self._ignore_label]
        if strange:
            raise DatasetError(
                f"Dataset '{self._name}': labels must be train ids from 0 to {num_classes - 1}, or {self._ignore_label} for "
                f"ignored pixels, got {first_few(strange)}. Fix the dataset definition."
            )
        if self._output_folder is not None:
            write_confusion(Path(self._output_folder) / CONFUSION_FILE, self._class_names, counts[:num_classes])
        scored, unseen = self._classes.scored, self._classes.unseen
        scores = segmentation_scores(counts[:num_classes], self._class_names, scored, self._absent, unseen)
        results = OrderedDict(sem_seg=scores)
        if calibration is not None:
            results["calibration"] = {"ECE": calibration.error, "overconfidence": calibration.overconfidence}
            if self._output_folder is not None:
                write_calibration(Path(self._output_folder) / CALIBRATION_FILE, calibration)
        return results

    def _read_labels(self, image_file: str) -> np.ndarray:
        """Return the labels of an image, and start reading those of the next one."""
        ahead, self._ahead = self._ahead, None
        labels = ahead[1].result() if ahead and ahead[0] == image_file else self._read(self._files[image_file])
        following = self._next_image.get(image_file)
        if following is not None:
            self._ahead = following, self._thread.submit(self._read, self._files[following])
        return labels


class Detectron2Evaluator(SemSegEvaluator):
    """Variant of Detectron2's SemSegEvaluator with mIoU under each rule for absent classes.

    `load` maps a label file and a dtype to (H, W) train ids. For `absent`, see `segmentation_scores`.
    """

    def __init__(
        self, dataset_name: str, load: Callable[[str, type], np.ndarray], output_folder: str, absent: str
    ) -> None:
        # SemSegEvaluator logs about 80 numbers in one line. The report logs them as a table.
        logging.getLogger(SemSegEvaluator.__module__).setLevel(logging.WARNING)
        # SemSegEvaluator reads "sem_seg_file_name", which only datasets with train id files have.
        twin, metadata = f"{dataset_name}, label files", MetadataCatalog.get(dataset_name).as_dict()
        records = [
            {"file_name": record["file_name"], "sem_seg_file_name": label_file_of(record)}
            for record in DatasetCatalog.get(dataset_name)
        ]
        DatasetCatalog.register(twin, lambda: records)
        try:
            MetadataCatalog.get(twin).set(**{key: value for key, value in metadata.items() if key != "name"})
            super().__init__(twin, distributed=True, output_dir=output_folder, sem_seg_loading_fn=load)
        finally:
            DatasetCatalog.remove(twin)
            MetadataCatalog.remove(twin)
        self._absent = absent

    def evaluate(self) -> Scores | None:
        """Compute SemSegEvaluator's scores, with mIoU and the IoU of absent classes following the rule."""
        results: Scores | None = super().evaluate()
        if results is None:
            return None
        confusion = self._conf_matrix[:-1, :-1].T  # transposed to true x predicted, without the ignored label
        scores = segmentation_scores(confusion, self._class_names, absent=self._absent)
        replaced = ["mIoU", *(f"IoU-{name}" for name in self._class_names)] if self._absent == ZERO else []
        results["sem_seg"] |= {name: scores[name] for name in (*MEAN_IOUS.values(), *replaced)}
        return results


class CityscapesScriptEvaluator(CityscapesSemSegEvaluator):
    """Variant of CityscapesSemSegEvaluator for datasets that pass `require_cityscapes_files`.

    Instance-level scores are missing, because the script's iIoU code calls functions that NumPy 2.4 removed, and needs
    additional files.
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        self._metadata = SimpleNamespace(gt_dir=require_cityscapes_files(dataset_name))
        self._script = importlib.import_module(_SCRIPT)

    def evaluate(self) -> Scores | None:
        """Compute the scores over all images.

        Returns:
            {"sem_seg": scores} on the main process, and None elsewhere. The scores are the script's mean over classes as
            mIoU and mIoU-zero, its mean over categories as mIoU-categories, mIoU-skip, and IoU-<name> and ACC-<name> for
            every class.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        args = self._script.args
        args.predictionPath, args.predictionWalk = os.path.abspath(self._temp_dir), None
        args.JSONOutput = args.colorized = args.evalInstLevelScore = False
        args.quiet = True
        truths = sorted(glob.glob(os.path.join(self._metadata.gt_dir, "*", f"*{_LABEL_SUFFIX}")))
        predictions = [self._script.getPrediction(args, truth) for truth in truths]
        found = self._script.evaluateImgLists(predictions, truths, args)
        self._working_dir.cleanup()

        names = [entry.name for entry in CITYSCAPES_CLASSES]
        ids = [found["labels"][name] for name in names]
        confusion = np.array(found["confMatrix"])[np.ix_(ids, ids)]  # rows and columns are indexed by label id
        own = segmentation_scores(confusion, names, absent=ZERO)
        scores = {
            "mIoU": 100 * float(found["averageScoreClasses"]),
            "mIoU-categories": 100 * float(found["averageScoreCategories"]),
            **{f"IoU-{name}": 100 * float(found["classScores"][name]) for name in names},
            **{name: value for name, value in own.items() if name.startswith(("ACC-", "mIoU-"))},
        }
        return OrderedDict(sem_seg=scores)


def require_cityscapes_files(dataset_name: str) -> str:
    """Check that the Cityscapes script can score a registered dataset.

    Returns:
        The label folder, which contains <city>/<image>_gtFine_labelIds.png.

    Raises:
        ConfigError: the script is not installed, the labels have other names, or the folder contains other labels.
    """
    try:
        importlib.import_module(_SCRIPT)
    except ImportError as error:
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes requires the package cityscapesscripts ({error}). Run pip install "
            "cityscapesscripts, or set TEST.EVALUATOR to streaming."
        ) from error
    labels = [label_file_of(record) for record in DatasetCatalog.get(dataset_name)]
    folder = os.path.dirname(os.path.dirname(labels[0]))
    found = glob.glob(os.path.join(glob.escape(folder), "*", f"*{_LABEL_SUFFIX}"))
    if {*map(os.path.realpath, found)} != {*map(os.path.realpath, labels)}:  # the script requires a prediction for each
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes scores all label files CITY/*{_LABEL_SUFFIX} in a folder, but '{folder}' contains "
            f"{len(found)}, and dataset '{dataset_name}' has {len(labels)} label files, e.g. '{labels[0]}'. Set "
            "TEST.EVALUATOR to streaming."
        )
    return folder
