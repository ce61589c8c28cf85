"""Which evaluator scores a data set, and whether it can."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator

from famix.data import get_label_readers
from famix.data.records import label_file_of
from famix.evaluation.counting.cityscapes import CityscapesScriptEvaluator, require_cityscapes_files
from famix.evaluation.counting.class_subsets import class_subset
from famix.evaluation.counting.confusion import ABSENT_CLASSES, MEAN_IOUS, ZERO, segmentation_scores
from famix.evaluation.counting.streaming import StreamingSemSegEvaluator
from famix.evaluation.protocols.protocol import protocol_of
from famix.evaluation.protocols.transforms import Frame
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

__all__ = ["EVALUATORS", "absent_rule", "build_evaluator", "check_evaluation", "scored_classes"]

EVALUATORS = ("streaming", "detectron2", "cityscapes")
"""Values of TEST.EVALUATOR."""


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator of a data set.

    Args:
        cfg: reads TEST.
        dataset_name: a registered data set.
        output_folder: where Detectron2's SemSegEvaluator writes, and "streaming" its confusion matrix; None for
            OUTPUT_DIR/inference/<data set>.

    Returns:
        The one that TEST.EVALUATOR names, scoring labels as the protocol of the data set prepares them:
        "streaming", "detectron2" (SemSegEvaluator, which keeps all predictions) or "cityscapes" (the script of that
        data set).

    Raises:
        ConfigError: see `check_evaluation`.
    """
    check_evaluation(cfg, [dataset_name])
    if cfg.TEST.EVALUATOR == "cityscapes":
        return CityscapesScriptEvaluator(dataset_name)
    prepare = protocol_of(cfg, dataset_name).prepare_labels
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    reader = get_label_readers([dataset_name], cfg.INPUT.MAX_PIXELS)[dataset_name]

    def read_labels(path: str, dtype: type = np.uint8) -> np.ndarray:
        return reader.read(path).astype(dtype, copy=False)

    absent = absent_rule(cfg, dataset_name)
    if cfg.TEST.EVALUATOR == "streaming":
        return StreamingSemSegEvaluator(
            dataset_name,
            read_labels=read_labels,
            prepare_labels=prepare,
            classes=scored_classes(cfg, dataset_name),
            absent=absent,
            output_folder=folder,
        )
    return _Detectron2Evaluator(dataset_name, lambda path, dtype: prepare(read_labels(path, dtype)), folder, absent)


def check_evaluation(cfg: CfgNode, names: Sequence[str]) -> None:
    """Find out whether data sets can be scored as the config says, without reading an image.

    Args:
        cfg: reads TEST.
        names: of registered data sets.

    Raises:
        ConfigError: TEST.EVALUATOR, PROTOCOL, PROTOCOL_OF, WINDOW_BATCH, CLASSES or ABSENT_CLASSES cannot work, alone
            or together.
    """
    kind = cfg.TEST.EVALUATOR
    if kind not in EVALUATORS:
        raise ConfigError(
            f"TEST.EVALUATOR is {kind!r}, expected one of {', '.join(EVALUATORS)}.{did_you_mean(kind, EVALUATORS)}"
        )
    rule = cfg.TEST.ABSENT_CLASSES
    if rule not in ABSENT_CLASSES:
        raise ConfigError(
            f"TEST.ABSENT_CLASSES must be {' or '.join(ABSENT_CLASSES)}, got {rule!r}. Set skip to leave classes out of "
            "the mean that are predicted but nowhere labelled, zero to count them as 0."
        )
    if cfg.TEST.WINDOW_BATCH < 1:
        raise ConfigError(f"TEST.WINDOW_BATCH is {cfg.TEST.WINDOW_BATCH}, expected at least 1")
    for name in names:
        protocol, classes = protocol_of(cfg, name), scored_classes(cfg, name)
        if kind != "streaming" and len(classes) < len(MetadataCatalog.get(name).stuff_classes):
            raise ConfigError(f"TEST.CLASSES {cfg.TEST.CLASSES} needs TEST.EVALUATOR streaming, got {kind}")
        if kind == "cityscapes":
            if protocol.truth != Frame():
                raise ConfigError(
                    f"TEST.EVALUATOR cityscapes scores labels as they are; the protocol '{protocol.name}' of {name} "
                    "resizes them: set TEST.EVALUATOR streaming"
                )
            require_cityscapes_files(name)


def scored_classes(cfg: CfgNode, dataset_name: str) -> tuple[int, ...]:
    """Train ids that TEST.CLASSES makes the means of a data set's scores be over."""
    return class_subset(cfg.TEST.CLASSES, MetadataCatalog.get(dataset_name).stuff_classes)


def absent_rule(cfg: CfgNode, dataset_name: str) -> str:
    """What a data set's classes are in mIoU that are predicted but nowhere labelled.

    Args:
        cfg: reads TEST.
        dataset_name: a registered data set.

    Returns:
        "zero" where Cityscapes' script scores, or a protocol repeats a released program; otherwise
        TEST.ABSENT_CLASSES.
    """
    if cfg.TEST.EVALUATOR == "cityscapes" or protocol_of(cfg, dataset_name).counts_absent_classes:
        return ZERO
    return str(cfg.TEST.ABSENT_CLASSES)


class _Detectron2Evaluator(SemSegEvaluator):
    """Detectron2's SemSegEvaluator, with the mean by either rule for classes that are nowhere labelled."""

    def __init__(
        self, dataset_name: str, load: Callable[[str, type], np.ndarray], output_folder: str, absent: str
    ) -> None:
        # It logs a dictionary of some 80 numbers in one line; famix.reports.report_text lays the same out.
        logging.getLogger(SemSegEvaluator.__module__).setLevel(logging.WARNING)
        with _label_files_as_sem_seg(dataset_name) as twin:
            super().__init__(twin, distributed=True, output_dir=output_folder, sem_seg_loading_fn=load)
        self._absent = absent

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """See SemSegEvaluator; mIoU and the IoU of absent classes follow the rule."""
        results = super().evaluate()
        if results is None:
            return None
        confusion = self._conf_matrix[:-1, :-1].T  # rows become true classes; the last is what is ignored
        scores = segmentation_scores(confusion, self._class_names, absent=self._absent)
        means = {name: scores[name] for name in MEAN_IOUS.values()}
        by_rule = {name: value for name, value in scores.items() if name == "mIoU" or name.startswith("IoU-")}
        results["sem_seg"] |= {**means, **(by_rule if self._absent == ZERO else {})}
        return results


@contextmanager
def _label_files_as_sem_seg(dataset_name: str) -> Iterator[str]:
    """Register a dataset for a moment with its label files under the key that SemSegEvaluator looks them up by.

    It is given a function that reads them; the dataset itself has that key for files of train ids alone.
    """
    twin = f"{dataset_name}, label files"
    files = [
        {"file_name": record["file_name"], "sem_seg_file_name": label_file_of(record)}
        for record in DatasetCatalog.get(dataset_name)
    ]
    metadata = {key: value for key, value in MetadataCatalog.get(dataset_name).as_dict().items() if key != "name"}
    DatasetCatalog.register(twin, lambda: files)
    try:
        MetadataCatalog.get(twin).set(**metadata)
        yield twin
    finally:
        DatasetCatalog.remove(twin)
        MetadataCatalog.remove(twin)
