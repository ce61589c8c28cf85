"""Confusion matrices of semantic segmentation, on the device of the predictions, and the scores that follow from them."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["ABSENT_CLASSES", "MEAN_IOUS", "NUM_LABELS", "SKIP", "ZERO", "ConfusionCounts", "segmentation_scores"]

NUM_LABELS = 256
"""Labels are of 8 bits."""

SKIP, ZERO = "skip", "zero"
ABSENT_CLASSES = (SKIP, ZERO)
"""What a class is in mIoU that is predicted but nowhere labelled: left out, or 0. Values of TEST.ABSENT_CLASSES."""

MEAN_IOUS = {rule: f"mIoU-{rule}" for rule in ABSENT_CLASSES}
"""Rule -> name of the mean that follows it; "mIoU" is the one of them that was asked for."""


class ConfusionCounts:
    """Numbers of pixels by label and predicted class; as large after a million images as after one.

    There is a row for every value that a label can have, so that a pixel costs one multiplication, one addition and
    one increment, whatever is ignored, and unexpected labels can be found afterwards.

    Args:
        num_classes: K, 1-256.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts = torch.zeros(NUM_LABELS * num_classes, dtype=torch.int64)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count the pixels of an image, on the device of the prediction.

        Args:
            predicted: integers from 0 to K - 1.
            labels: uint8, of the same shape, on any device.
        """
        device = predicted.device
        # In 32 bits: several times faster than in 64, and 256 * 256 - 1 fits. Labels travel to the device in 8 bits.
        pairs = labels.to(device).to(torch.int32).mul_(self.num_classes).add_(predicted.to(torch.int32))
        counts = torch.bincount(pairs.flatten(), minlength=self._counts.numel())
        self._counts = self._counts.to(device).add_(counts)

    def total(self, over_processes: bool = True) -> np.ndarray | None:
        """The numbers so far.

        Args:
            over_processes: add up those of all processes, which must all call this.

        Returns:
            (256, K) int64; None where other processes are the main one.
        """
        own = self._counts.cpu().numpy().reshape(NUM_LABELS, self.num_classes)
        if not over_processes:
            return own
        parts = comm.gather(own)  # through memory, so that it works whatever the devices and the backend are
        return np.sum(parts, axis=0) if comm.is_main_process() else None


def segmentation_scores(
    confusion: np.ndarray, class_names: Sequence[str], classes: Sequence[int] | None = None, absent: str = SKIP
) -> dict[str, float]:
    """Scores of a confusion matrix, under the names and by the rules of Detectron2's SemSegEvaluator.

    A class without a labelled pixel has no accuracy (NaN), and pixels that were taken for it count as missed. Where it
    is predicted, its IoU is NaN and left out of mIoU as in Detectron2, or 0 as in Cityscapes' own script and in the
    released programs of FAMix and RobustNet. Where it is not predicted either, its IoU is NaN by both rules.

    With `classes`, mIoU and mACC are the means over these, fwIoU and pACC are over their pixels, and the others have
    no score. The IoU of a class stays what it is among all classes, as in the papers on SYNTHIA, whose means over 16
    and over 13 classes are means of one row of IoUs.

    Args:
        confusion: (K, K) numbers of pixels; rows are true, columns predicted classes.
        class_names: of the K classes.
        classes: train ids that count; None for all.
        absent: rule for classes that are predicted but nowhere labelled, one of ABSENT_CLASSES.

    Returns:
        mIoU, fwIoU, mACC, pACC and, for every class, IoU-<name> and ACC-<name>, in percent; mIoU by either rule.
    """
    counts = confusion.astype(np.float64)
    correct, labelled, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    counting = np.isin(np.arange(len(class_names)), np.arange(len(class_names)) if classes is None else list(classes))
    valid, only_predicted = counting & (labelled > 0), counting & (labelled == 0) & (predicted > 0)
    iou, accuracy = np.full((2, len(class_names)), np.nan)
    iou[valid] = correct[valid] / (labelled + predicted - correct)[valid]
    accuracy[valid] = correct[valid] / labelled[valid]
    with np.errstate(invalid="ignore"):  # without any labelled pixel, the means are 0 / 0 = NaN
        pixels = labelled[valid].sum()
        total = iou[valid].sum()
        means = {SKIP: total / valid.sum(), ZERO: total / (valid | only_predicted).sum()}
        fw_iou = (iou[valid] * labelled[valid]).sum() / pixels
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
    return {name: 100 * float(value) for name, value in scores.items()}
