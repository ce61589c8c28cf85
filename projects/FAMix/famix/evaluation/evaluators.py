"""The evaluator of a dataset, and checks of the TEST settings before a run."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator

from famix.data import get_label_readers
from famix.data.classes import is_panoptic, panoptic_classes, require_same_things
from famix.data.records import label_file_of
from famix.evaluation.counting.cityscapes import CityscapesScriptEvaluator, require_cityscapes_files
from famix.evaluation.counting.scores import ABSENT_CLASSES, MEAN_IOUS, ZERO, class_subset, segmentation_scores
from famix.evaluation.counting.streaming import StreamingSemSegEvaluator
from famix.evaluation.panoptic.evaluators import InstanceAPEvaluator, PanopticQualityEvaluator, require_panopticapi
from famix.evaluation.panoptic.truth import TruthReader
from famix.evaluation.protocols.protocol import protocol_of
from famix.evaluation.protocols.transforms import UNCHANGED
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean
from famix.utils.meta_architecture import predicts

__all__ = [
    "EVALUATORS",
    "absent_rule",
    "build_evaluator",
    "check_evaluation",
    "check_panoptic",
    "scored_classes",
]

EVALUATORS = ("streaming", "detectron2", "cityscapes")
"""Values of TEST.EVALUATOR."""


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Build the evaluator of a dataset.

    Args:
        cfg: reads TEST, MODEL.META_ARCHITECTURE and INPUT.MAX_PIXELS.
        dataset_name: a registered dataset.
        output_folder: for the files of Detectron2's SemSegEvaluator and the confusion matrix of "streaming"; None for
            OUTPUT_DIR/inference/<dataset>.

    Returns:
        The evaluator of "sem_seg" that TEST.EVALUATOR names. On a panoptic dataset it is combined with evaluators of
        "panoptic_seg" (PQ) and "segm" (mask AP), as far as the model predicts them. Labels are prepared by the
        dataset's protocol.

    Raises:
        ConfigError: see `check_evaluation`.
    """
    check_evaluation(cfg, [dataset_name])
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    evaluators = [_build_semantic_evaluator(cfg, dataset_name, folder)]
    if is_panoptic(dataset_name):
        truths = TruthReader(panoptic_classes(dataset_name).things, cfg.INPUT.MAX_PIXELS)
        if "panoptic_seg" in predicts(cfg):
            evaluators.append(PanopticQualityEvaluator(dataset_name, truths))
        if "instances" in predicts(cfg):
            evaluators.append(InstanceAPEvaluator(dataset_name, truths))
    return DatasetEvaluators(evaluators) if len(evaluators) > 1 else evaluators[0]


def _build_semantic_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    if cfg.TEST.EVALUATOR == "cityscapes":
        return CityscapesScriptEvaluator(dataset_name)
    prepare, absent = protocol_of(cfg, dataset_name).prepare_labels, absent_rule(cfg, dataset_name)
    reader = get_label_readers([dataset_name], cfg.INPUT.MAX_PIXELS)[dataset_name]

    def read_labels(path: str, dtype: type = np.uint8) -> np.ndarray:
        return reader.read(path).astype(dtype, copy=False)

    if cfg.TEST.EVALUATOR == "streaming":
        return StreamingSemSegEvaluator(
            dataset_name,
            read_labels=read_labels,
            prepare_labels=prepare,
            classes=scored_classes(cfg, dataset_name),
            absent=absent,
            output_folder=output_folder,
        )
    load = lambda path, dtype: prepare(read_labels(path, dtype))  # noqa: E731
    return _Detectron2Evaluator(dataset_name, load, output_folder, absent)


def check_evaluation(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that datasets can be scored with a config, without reading an image.

    Args:
        cfg: reads TEST.
        names: registered datasets.

    Raises:
        ConfigError: TEST.EVALUATOR, PROTOCOL, PROTOCOL_OF, WINDOW_BATCH, CLASSES or ABSENT_CLASSES is invalid by itself
            or in combination.
    """
    kind = cfg.TEST.EVALUATOR
    if kind not in EVALUATORS:
        raise ConfigError(
            f"TEST.EVALUATOR must be one of {', '.join(EVALUATORS)}, got {kind!r}.{did_you_mean(kind, EVALUATORS)}"
        )
    if cfg.TEST.ABSENT_CLASSES not in ABSENT_CLASSES:
        raise ConfigError(
            f"TEST.ABSENT_CLASSES must be {' or '.join(ABSENT_CLASSES)}, got {cfg.TEST.ABSENT_CLASSES!r}. Set skip to leave "
            "classes out of the mean that are predicted but nowhere labeled, zero to count them as 0."
        )
    if cfg.TEST.WINDOW_BATCH < 1:
        raise ConfigError(
            f"TEST.WINDOW_BATCH must be at least 1, got {cfg.TEST.WINDOW_BATCH}. Set TEST.WINDOW_BATCH 1."
        )
    for name in names:
        protocol, classes = protocol_of(cfg, name), scored_classes(cfg, name)
        if kind != "streaming" and len(classes) < len(MetadataCatalog.get(name).stuff_classes):
            raise ConfigError(
                f"TEST.CLASSES must be all with TEST.EVALUATOR {kind}, got {cfg.TEST.CLASSES}. Set TEST.EVALUATOR streaming."
            )
        if kind == "cityscapes":
            if protocol.truth != UNCHANGED:
                raise ConfigError(
                    f"TEST.PROTOCOL must keep the size of the ground truth of {name} with TEST.EVALUATOR cityscapes, got "
                    f"'{protocol.name}'. Set TEST.EVALUATOR streaming."
                )
            require_cityscapes_files(name)


def check_panoptic(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that a panoptic model can be trained and scored on the datasets of a config; other models pass.

    Args:
        cfg: the effective config.
        names: datasets that the run reads.

    Raises:
        ConfigError: a setting or a dataset does not fit a panoptic model.
    """
    if "panoptic_seg" not in predicts(cfg):
        return
    require_panopticapi()
    if not cfg.DATASETS.TRAIN:
        raise ConfigError(
            f"DATASETS.TRAIN must name the dataset that defines the things of {cfg.MODEL.META_ARCHITECTURE}, got []. Set "
            "DATASETS.TRAIN."
        )
    require_same_things([cfg.DATASETS.TRAIN[0], *names])
    for name in cfg.DATASETS.TEST:
        if name in names and not protocol_of(cfg, name).is_native:
            raise ConfigError(
                f"TEST.PROTOCOL must be native for panoptic models, because other protocols average scores of classes, got "
                f"'{protocol_of(cfg, name).name}' for {name}. Set TEST.PROTOCOL native, and remove {name} from "
                "TEST.PROTOCOL_OF."
            )


def scored_classes(cfg: CfgNode, dataset_name: str) -> tuple[int, ...]:
    """Return the train ids of TEST.CLASSES in a dataset."""
    return class_subset(cfg.TEST.CLASSES, MetadataCatalog.get(dataset_name).stuff_classes)


def absent_rule(cfg: CfgNode, dataset_name: str) -> str:
    """Return the rule for classes that are predicted but nowhere labeled.

    Args:
        cfg: reads TEST.
        dataset_name: a registered dataset.

    Returns:
        "zero" for Cityscapes' script and for protocols of released programs; otherwise TEST.ABSENT_CLASSES.
    """
    if cfg.TEST.EVALUATOR == "cityscapes" or protocol_of(cfg, dataset_name).counts_absent_classes:
        return ZERO
    return str(cfg.TEST.ABSENT_CLASSES)


class _Detectron2Evaluator(SemSegEvaluator):
    """Detectron2's SemSegEvaluator, with means by either rule for absent classes."""

    def __init__(
        self, dataset_name: str, load: Callable[[str, type], np.ndarray], output_folder: str, absent: str
    ) -> None:
        # It logs some 80 numbers in one line; the report logs them as a table.
        logging.getLogger(SemSegEvaluator.__module__).setLevel(logging.WARNING)
        with _label_files_as_sem_seg(dataset_name) as twin:
            super().__init__(twin, distributed=True, output_dir=output_folder, sem_seg_loading_fn=load)
        self._absent = absent

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """See SemSegEvaluator; mIoU and the IoU of absent classes follow the rule."""
        results = super().evaluate()
        if results is None:
            return None
        confusion = self._conf_matrix[:-1, :-1].T  # transposed to true x predicted, without the ignored label
        scores = segmentation_scores(confusion, self._class_names, absent=self._absent)
        means = {name: scores[name] for name in MEAN_IOUS.values()}
        by_rule = {name: value for name, value in scores.items() if name == "mIoU" or name.startswith("IoU-")}
        results["sem_seg"] |= {**means, **(by_rule if self._absent == ZERO else {})}
        return results


@contextmanager
def _label_files_as_sem_seg(dataset_name: str) -> Iterator[str]:
    """Register a temporary copy of a dataset with its label files under SemSegEvaluator's key.

    The dataset itself has "sem_seg_file_name" only for files of train ids.
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
