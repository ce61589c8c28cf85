"""The training loss of the semantic head."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["segmentation_loss"]


def segmentation_loss(logits: Tensor, targets: Tensor, ignore_value: int, label_smoothing: float) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 for a batch without any.

    Args:
        logits: (B, K, h, w), enlarged bilinearly to the targets' resolution.
        targets: (B, H, W) int64 in [0, K) or `ignore_value`.
        ignore_value: label id of the pixels to leave out.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar float32.
    """
    logits = F.interpolate(logits.float(), size=targets.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(
        logits, targets, ignore_index=ignore_value, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (targets != ignore_value).sum().clamp(min=1)
