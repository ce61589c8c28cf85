"""Training loss of the semantic head: cross-entropy of logits that are enlarged to the resolution of the labels.

Enlarged logits of a batch are larger than any feature map, and F.cross_entropy keeps several copies of them. Here they are
computed in stripes of rows that fit a processor's cache. The gradient is computed with the loss, and only the gradient of
the small logits is kept for the backward pass.

Shapes: B images, K classes, logits of h x w, labels of H x W.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["segmentation_loss"]

_STRIPE = 2**20  # logits of a stripe


def segmentation_loss(logits: Tensor, targets: Tensor, ignore_value: int, label_smoothing: float) -> Tensor:
    """Compute the mean cross-entropy over the labeled pixels; 0 for a batch without any.

    Args:
        logits: (B, K, h, w), enlarged bilinearly to the targets' resolution.
        targets: (B, H, W) int64 in [0, K) or `ignore_value`.
        ignore_value: label id of pixels without loss.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar float32, which can be differentiated once.
    """
    total = _EnlargedCrossEntropy.apply(logits, targets, ignore_value, label_smoothing)
    return total / (targets != ignore_value).sum().clamp(min=1)


class _EnlargedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy over the labeled pixels, with the arguments of `segmentation_loss`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_value: int, label_smoothing: float) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            total, gradient = _loss_and_gradient(
                logits.float(), targets, ignore_value, label_smoothing, ctx.needs_input_grad[0]
            )
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(ctx.dtype), None, None, None


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, ignore_value: int, smoothing: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sum, and on request its gradient for the logits (B, K, h, w)."""
    small, large = logits.shape[-2:], targets.shape[-2:]
    down, right = (_bilinear(*sides, logits) for sides in zip(small, large, strict=True))
    wide = logits @ right.t()
    total, wide_gradient = logits.new_zeros(()), torch.zeros_like(wide)
    height = max(1, _STRIPE * small[0] // max(1, wide.numel()))
    for first in range(0, large[0], height):
        stripe = slice(first, min(first + height, large[0]))
        used = _rows_used(stripe, small[0], large[0])
        weights = down[stripe, used]
        enlarged = weights @ wide[:, :, used]
        total += _cross_entropy_(enlarged, targets[:, stripe], ignore_value, smoothing, with_gradient)
        if with_gradient:
            wide_gradient[:, :, used] += weights.t() @ enlarged
    return total, wide_gradient @ right if with_gradient else None


def _cross_entropy_(
    logits: Tensor, targets: Tensor, ignore_value: int, smoothing: float, with_gradient: bool
) -> Tensor:
    """Return the sum over the pixels of logits (B, K, s, W), and on request replace the logits by its gradient.

    With smoothing e a pixel of class y costs  log(sum of exp z) - (1 - e) z_y - e mean(z).
    """
    num_classes = logits.shape[1]
    labelled = (targets != ignore_value).unsqueeze(1)
    classes, labelled = targets.unsqueeze(1).masked_fill(~labelled, 0), labelled.to(logits.dtype)
    logits.sub_(logits.amax(1, keepdim=True))
    expected = (1 - smoothing) * logits.gather(1, classes) + smoothing / num_classes * logits.sum(1, keepdim=True)
    exponentials = logits.exp_().sum(1, keepdim=True)
    if with_gradient:
        logits.mul_(labelled / exponentials)
        logits.scatter_add_(1, classes, labelled * (smoothing - 1))
        logits.sub_(labelled * (smoothing / num_classes))
    return ((exponentials.log() - expected) * labelled).sum()


def _bilinear(side: int, enlarged: int, like: Tensor) -> Tensor:
    """(enlarged, side): weights of bilinear interpolation from `side` to `enlarged` cells."""
    unit = torch.eye(side, device=like.device, dtype=like.dtype)
    return F.interpolate(unit[None, None], size=(enlarged, side), mode="bilinear", align_corners=False)[0, 0]


def _rows_used(rows: slice, side: int, enlarged: int) -> slice:
    """The rows out of `side` that contribute to rows of the enlarged map, with up to one more at both ends."""
    first, last = ((row + 0.5) * side / enlarged - 0.5 for row in (rows.start, rows.stop - 1))
    return slice(max(0, math.floor(first) - 1), min(side, math.floor(last) + 3))
