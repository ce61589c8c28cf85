"""Evaluators for datasets, and checks of the TEST settings before a run."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from famix.data import get_label_readers
from famix.data.classes import is_panoptic, require_same_things
from famix.data.meta_architecture import predicts, predicts_logits
from famix.data.vocabulary import vocabulary_of
from famix.evaluation.counting.scored_classes import scored_classes
from famix.evaluation.counting.scores import ABSENT_CLASSES, ZERO
from famix.evaluation.counting.semantic import (
    CityscapesScriptEvaluator,
    Detectron2Evaluator,
    StreamingSemSegEvaluator,
    require_cityscapes_files,
)
from famix.evaluation.panoptic import PanopticEvaluator, require_panopticapi
from famix.evaluation.protocols.protocol import protocol_of
from famix.evaluation.protocols.transforms import UNCHANGED
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean, shown

EVALUATORS = ("streaming", "detectron2", "cityscapes")
"""Allowed values of TEST.EVALUATOR."""


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Build the evaluator for a dataset.

    Args:
        cfg: config; uses TEST, MODEL.META_ARCHITECTURE and INPUT.MAX_PIXELS.
        dataset_name: name of a registered dataset.
        output_folder: folder for the evaluator's files. None means OUTPUT_DIR/inference/<dataset>.

    Returns:
        The "sem_seg" evaluator named by TEST.EVALUATOR, which scores against labels prepared by the dataset's protocol.
        For a panoptic dataset, it is combined with an evaluator for "panoptic_seg" (PQ) and "segm" (mask AP) if the
        model makes these predictions.

    Raises:
        ConfigError: see `check_evaluation`.
    """
    check_evaluation(cfg, [dataset_name])
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    reader = get_label_readers([dataset_name], cfg.INPUT.MAX_PIXELS)[dataset_name]
    prepare, absent = protocol_of(cfg, dataset_name).prepare_labels, absent_rule(cfg, dataset_name)
    classes = scored_classes(cfg, dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if cfg.TEST.EVALUATOR == "cityscapes":
        evaluators.append(CityscapesScriptEvaluator(dataset_name))
    elif cfg.TEST.EVALUATOR == "detectron2":
        load = lambda path, dtype: prepare(reader.read(path).astype(dtype, copy=False))  # noqa: E731
        evaluators.append(Detectron2Evaluator(dataset_name, load, folder, absent))
    else:
        streaming = StreamingSemSegEvaluator(
            dataset_name,
            read_labels=reader.read,
            prepare_labels=prepare,
            classes=classes,
            absent=absent,
            output_folder=folder,
            are_logits=scores_are_logits(cfg, dataset_name),
        )
        evaluators.append(streaming)
    panoptic = predicts(cfg) - {"sem_seg"}
    if panoptic and is_panoptic(dataset_name):
        evaluators.append(PanopticEvaluator(dataset_name, panoptic, cfg.INPUT.MAX_PIXELS, classes))
    return DatasetEvaluators(evaluators) if len(evaluators) > 1 else evaluators[0]


def check_evaluation(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that the TEST settings of a config can score registered datasets, without reading any image.

    Raises:
        ConfigError: TEST.EVALUATOR, PROTOCOL, PROTOCOL_OF, WINDOW_BATCH, CLASSES or ABSENT_CLASSES is invalid or
            conflicts with another of them.
    """
    kind = cfg.TEST.EVALUATOR
    if kind not in EVALUATORS:
        raise ConfigError(
            f"TEST.EVALUATOR must be one of {', '.join(EVALUATORS)}, got {kind!r}.{did_you_mean(kind, EVALUATORS)}"
        )
    if cfg.TEST.ABSENT_CLASSES not in ABSENT_CLASSES:
        raise ConfigError(
            f"TEST.ABSENT_CLASSES must be {' or '.join(ABSENT_CLASSES)}, got {cfg.TEST.ABSENT_CLASSES!r}. For "
            "classes that are predicted but never labeled, use skip to exclude them from the mean, or zero to count them as 0."
        )
    if cfg.TEST.WINDOW_BATCH < 1:
        raise ConfigError(f"TEST.WINDOW_BATCH must be at least 1, got {cfg.TEST.WINDOW_BATCH}. Set it to 1.")
    for name in names:
        protocol, classes = protocol_of(cfg, name), scored_classes(cfg, name)
        if kind != "streaming" and (classes.ids is not None or len(classes.scored) < len(classes.names)):
            raise ConfigError(
                f"TEST.CLASSES is {shown(cfg.TEST.CLASSES)}, but TEST.EVALUATOR {kind} scores the classes of the dataset. Set "
                "TEST.EVALUATOR to streaming."
            )
        if kind == "cityscapes":
            if protocol.truth != UNCHANGED:
                raise ConfigError(
                    f"TEST.PROTOCOL is '{protocol.name}' for '{name}', but TEST.EVALUATOR cityscapes requires the ground truth at "
                    "its original size. Set TEST.EVALUATOR to streaming."
                )
            require_cityscapes_files(name)


def check_panoptic(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that a panoptic model can be trained and scored on the datasets of a run. Other models pass.

    Raises:
        ConfigError: a setting or a dataset is incompatible with panoptic models.
    """
    if "panoptic_seg" not in predicts(cfg):
        return
    require_panopticapi()
    if not cfg.DATASETS.TRAIN:
        raise ConfigError(
            f"DATASETS.TRAIN is empty, but its first dataset defines the thing classes of {cfg.MODEL.META_ARCHITECTURE}. Set "
            "DATASETS.TRAIN to a panoptic dataset."
        )
    is_open = vocabulary_of(cfg) is not None  # test datasets are mapped by name
    require_same_things([cfg.DATASETS.TRAIN[0], *(name for name in names if not is_open or name in cfg.DATASETS.TRAIN)])
    for name in cfg.DATASETS.TEST:
        if name in names and not protocol_of(cfg, name).is_native:
            raise ConfigError(
                f"TEST.PROTOCOL is '{protocol_of(cfg, name).name}' for '{name}', but panoptic models require native, because "
                f"other protocols average class scores. Set TEST.PROTOCOL to native, and remove '{name}' from "
                "TEST.PROTOCOL_OF."
            )


def scores_are_logits(cfg: CfgNode, dataset_name: str) -> bool:
    """Return whether predictions under a dataset's protocol are logits rather than proportional to probabilities."""
    return predicts_logits(cfg) and not protocol_of(cfg, dataset_name).averages_probabilities


def absent_rule(cfg: CfgNode, dataset_name: str) -> str:
    """Return the rule for classes that are predicted but never labeled.

    Returns:
        "zero" for the Cityscapes script and for protocols of reference implementations, otherwise TEST.ABSENT_CLASSES.
    """
    if cfg.TEST.EVALUATOR == "cityscapes" or protocol_of(cfg, dataset_name).counts_absent_classes:
        return ZERO
    return str(cfg.TEST.ABSENT_CLASSES)
