"""Classes that predictions for a dataset are scored on: those of the dataset, or those that TEST.CLASSES lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from famix.data.classes import is_panoptic, panoptic_classes
from famix.data.vocabulary import IGNORED, unseen_names, vocabulary_of
from famix.evaluation.counting.scores import class_subset


@dataclass(frozen=True)
class ScoredClasses:
    """Classes of predictions, and their relation to the labels of a dataset."""

    names: tuple[str, ...]  # by class id
    ignore_label: int
    things: tuple[int, ...] = ()  # ids of thing classes in a panoptic dataset
    scored: tuple[int, ...] = ()  # ids of the classes that means include
    unseen: tuple[int, ...] = ()  # ids of scored classes without labels in training
    ids: NDArray[np.uint8] | None = None  # (256,) train id in the dataset -> class id; None if they are equal

    def label_ids(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return class ids for train ids of the dataset, integers of any shape below 256."""
        return labels if self.ids is None else self.ids[labels]

    def segments(self, segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return segments of the dataset with class ids as "category_id"."""
        return [
            {**segment, "category_id": int(self.label_ids(np.array(segment["category_id"])))} for segment in segments
        ]


def classes_of_dataset(dataset_name: str) -> ScoredClasses:
    """Return the classes of a registered dataset, all of which are scored."""
    metadata = MetadataCatalog.get(dataset_name)
    names = tuple(metadata.stuff_classes)
    things = panoptic_classes(dataset_name).things if is_panoptic(dataset_name) else ()
    return ScoredClasses(names, metadata.ignore_label, things, tuple(range(len(names))))


def scored_classes(cfg: CfgNode, dataset_name: str) -> ScoredClasses:
    """Return the classes for the evaluation of a registered dataset.

    Args:
        cfg: config; uses TEST.CLASSES, and DATASETS.UNLABELED to find unseen classes.
        dataset_name: name of the dataset.

    Raises:
        ConfigError: TEST.CLASSES is invalid for the network or the dataset.
    """
    own, vocabulary = classes_of_dataset(dataset_name), vocabulary_of(cfg)
    if vocabulary is None:
        names, ids = own.names, None
        scored = class_subset(cfg.TEST.CLASSES, names)
    else:
        names, ids = vocabulary.table.names, vocabulary.ids_in(dataset_name)
        scored = tuple(range(len(names)))
    unseen = unseen_names(cfg, names)
    return ScoredClasses(
        names,
        own.ignore_label if ids is None else IGNORED,
        own.things if ids is None else tuple(sorted({int(ids[train_id]) for train_id in own.things} - {IGNORED})),
        scored,
        tuple(class_id for class_id in scored if names[class_id] in unseen),
        ids,
    )
