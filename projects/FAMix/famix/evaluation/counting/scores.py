"""Semantic segmentation scores from confusion matrices, and the class subsets that they average over."""

from collections.abc import Sequence

import numpy as np

from famix.data.classes import CITYSCAPES_CLASSES
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

SKIP, ZERO = "skip", "zero"
ABSENT_CLASSES = (SKIP, ZERO)
"""Allowed values of TEST.ABSENT_CLASSES: exclude predicted but never labeled classes from mIoU, or count them as 0."""

MEAN_IOUS = {rule: f"mIoU-{rule}" for rule in ABSENT_CLASSES}
"""Rule -> name of its mean. "mIoU" is the mean under the configured rule."""

SEEN, UNSEEN = "mIoU-seen", "mIoU-unseen"
"""Means over the classes with and without labels in training, if both exist."""

_NOT_IN_16 = ("terrain", "truck", "train")
_EXCLUDED = {"all": (), "16": _NOT_IN_16, "13": (*_NOT_IN_16, "wall", "fence", "pole")}
CLASS_SUBSETS = (*_EXCLUDED, "synthia16", "synthia13")
"""Subsets for TEST.CLASSES. The last two are aliases of 16 and 13 that need no quotes on a command line."""


def class_subset(name: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the train ids that a value of TEST.CLASSES selects in a dataset, in ascending order.

    Raises:
        ConfigError: the name is unknown, or the dataset lacks a class of the subset.
    """
    if name not in CLASS_SUBSETS:
        raise ConfigError(
            f"TEST.CLASSES must be one of {', '.join(CLASS_SUBSETS)}, a list of class names or a .txt file, got {name!r}."
            f"{did_you_mean(name, CLASS_SUBSETS) or ' Set it to all to score every class.'}"
        )
    if name == "all":
        return tuple(range(len(class_names)))
    excluded = _EXCLUDED[name.removeprefix("synthia")]
    subset = [entry.name for entry in CITYSCAPES_CLASSES if entry.name not in excluded]
    missing = [wanted for wanted in subset if wanted not in class_names]
    if missing:
        raise ConfigError(
            f"TEST.CLASSES is {name}, but the {len(class_names)} classes of the dataset lack {', '.join(missing)}. Set "
            "TEST.CLASSES to all."
        )
    return tuple(train_id for train_id, present in enumerate(class_names) if present in subset)


def segmentation_scores(
    confusion: np.ndarray,
    class_names: Sequence[str],
    classes: Sequence[int] | None = None,
    absent: str = SKIP,
    unseen: Sequence[int] = (),
) -> dict[str, float]:
    """Compute scores from a confusion matrix, with the names and rules of Detectron2's SemSegEvaluator.

    A class without labeled pixels has no accuracy (NaN). If it is predicted, its IoU is NaN and excluded from mIoU as in
    Detectron2, or 0 as in the Cityscapes script and the reference implementations of FAMix and RobustNet. If it is not
    predicted either, its IoU is NaN under both rules.

    Args:
        confusion: (K, K) pixel counts; rows are true classes, columns are predicted classes.
        class_names: names of the K classes.
        classes: train ids to score; None scores all. mIoU and mACC are means over these classes, fwIoU and pACC cover
            their pixels, and other classes have no score. The IoU of a class counts confusions with all classes.
        absent: rule for classes that are predicted but never labeled, one of ABSENT_CLASSES.
        unseen: ids of classes without labels in training. If there are any, SEEN and UNSEEN are the means over the other
            scored classes and over these, under the rule.

    Returns:
        mIoU, fwIoU, mACC, pACC, IoU-<name> and ACC-<name> for every class, and mIoU under each rule, all in percent.
    """
    counts = confusion.astype(np.float64)
    correct, labeled, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    selected = np.isin(range(len(class_names)), range(len(class_names)) if classes is None else classes)
    valid, only_predicted = selected & (labeled > 0), selected & (labeled == 0) & (predicted > 0)
    iou, accuracy = np.full((2, len(class_names)), np.nan)
    iou[valid] = correct[valid] / (labeled + predicted - correct)[valid]
    accuracy[valid] = correct[valid] / labeled[valid]
    with np.errstate(invalid="ignore"):  # without labeled pixels, the means are 0 / 0 = NaN
        pixels, total = labeled[valid].sum(), iou[valid].sum()
        means = {SKIP: total / valid.sum(), ZERO: total / (valid | only_predicted).sum()}
        fw_iou = (iou[valid] * labeled[valid]).sum() / pixels
        if absent == ZERO:
            iou[only_predicted] = 0
        scores = {
            "mIoU": means[absent],
            "fwIoU": fw_iou,
            **{f"IoU-{name}": value for name, value in zip(class_names, iou, strict=True)},
            "mACC": accuracy[valid].sum() / valid.sum(),
            "pACC": correct[valid].sum() / pixels,
            **{f"ACC-{name}": value for name, value in zip(class_names, accuracy, strict=True)},
            **{MEAN_IOUS[rule]: mean for rule, mean in means.items()},
        }
    if unseen:
        is_unseen = np.isin(range(len(class_names)), unseen)
        for name, group in ((SEEN, selected & ~is_unseen), (UNSEEN, selected & is_unseen)):
            counted = iou[group & ~np.isnan(iou)]
            scores[name] = counted.mean() if len(counted) else np.nan
    return {name: 100 * float(value) for name, value in scores.items()}
