"""Training loss of the semantic head: cross-entropy of logits upsampled to the resolution of the labels.

The upsampled logits of a batch are larger than any feature map, and F.cross_entropy keeps several copies of them. Here they
are computed in stripes of rows that fit in the CPU cache, along with the gradient for the logits before upsampling.

Shapes: B images, K classes, logits of h x w, labels of H x W.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_STRIPE = 2**20  # number of logits per stripe


def segmentation_loss(
    logits: Tensor, targets: Tensor, ignore_value: int, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the mean cross-entropy over labeled pixels, or return 0 for a batch without labels.

    With class weights, the result equals F.cross_entropy's, a mean weighted by the class of each pixel.

    Args:
        logits: (B, K, h, w); they are upsampled bilinearly to the resolution of the targets.
        targets: (B, H, W) int64 in [0, K) or `ignore_value`.
        ignore_value: label id of pixels excluded from the loss.
        label_smoothing: share of the target distribution that is spread over all classes, in [0, 1).
        class_weights: (K,) non-negative weights of the classes, float32; None for equal weights.

    Returns:
        Scalar float32 tensor that can be differentiated once.
    """
    total = _UpsampledCrossEntropy.apply(logits, targets, ignore_value, label_smoothing, class_weights)
    labeled = targets != ignore_value
    if class_weights is None:
        return total / labeled.sum().clamp(min=1)
    weight = class_weights[targets[labeled]].sum()
    return total / weight.where(weight > 0, 1)


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy over the labeled pixels, with the arguments of `segmentation_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        ignore_value: int,
        label_smoothing: float,
        class_weights: Tensor | None,
    ) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            total, gradient = _loss_and_gradient(
                logits.float(), targets, ignore_value, label_smoothing, class_weights, ctx.needs_input_grad[0]
            )
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(ctx.dtype), None, None, None, None


def _loss_and_gradient(
    logits: Tensor,
    targets: Tensor,
    ignore_value: int,
    smoothing: float,
    class_weights: Tensor | None,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss sum and, on request, its gradient with respect to the logits (B, K, h, w)."""
    small, large = logits.shape[-2:], targets.shape[-2:]
    down, right = (_bilinear(*sides, logits) for sides in zip(small, large, strict=True))
    wide = logits @ right.t()
    total, wide_gradient = logits.new_zeros(()), torch.zeros_like(wide)
    height = max(1, _STRIPE * small[0] // max(1, wide.numel()))
    for first in range(0, large[0], height):
        stripe = slice(first, min(first + height, large[0]))
        # The rows that contribute to the stripe, plus up to one more at each end.
        top, bottom = ((row + 0.5) * small[0] / large[0] - 0.5 for row in (stripe.start, stripe.stop - 1))
        used = slice(max(0, math.floor(top) - 1), min(small[0], math.floor(bottom) + 3))
        weights = down[stripe, used]
        upsampled = weights @ wide[:, :, used]
        total += _cross_entropy_(upsampled, targets[:, stripe], ignore_value, smoothing, class_weights, with_gradient)
        if with_gradient:
            wide_gradient[:, :, used] += weights.t() @ upsampled
    return total, wide_gradient @ right if with_gradient else None


def _cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    ignore_value: int,
    smoothing: float,
    class_weights: Tensor | None,
    with_gradient: bool,
) -> Tensor:
    """Return the loss sum over the pixels of logits (B, K, s, W) and, on request, replace the logits with its gradient.

    With smoothing e and weights w (1 without class weights), the loss of a pixel of class y is the sum over all classes c of
    t_c (log(sum of exp z) - z_c), with the targets t_c = w_c e / K, plus w_y (1 - e) for c = y.
    """
    num_classes = logits.shape[1]
    labeled = (targets != ignore_value).unsqueeze(1)
    classes, labeled = targets.unsqueeze(1).masked_fill(~labeled, 0), labeled.to(logits.dtype)
    logits.sub_(logits.amax(1, keepdim=True))
    each: Tensor | float
    if class_weights is None:
        own, each, mass, spread = labeled, 1.0, labeled, logits.sum(1, keepdim=True)
    else:
        own, each = labeled * class_weights[classes], class_weights.view(-1, 1, 1)
        mass = (1 - smoothing) * own + smoothing / num_classes * class_weights.sum() * labeled
        spread = torch.einsum("bkhw,k->bhw", logits, class_weights).unsqueeze(1)
    expected = (1 - smoothing) * own * logits.gather(1, classes) + smoothing / num_classes * spread * labeled
    exponentials = logits.exp_().sum(1, keepdim=True)
    if with_gradient:
        logits.mul_(mass / exponentials)
        logits.scatter_add_(1, classes, own * (smoothing - 1))
        logits.sub_(labeled * (smoothing / num_classes * each))
    return (exponentials.log() * mass - expected).sum()


def _bilinear(side: int, upsampled: int, like: Tensor) -> Tensor:
    """Return the (upsampled, side) weights for bilinear interpolation from `side` to `upsampled` cells."""
    unit = torch.eye(side, device=like.device, dtype=like.dtype)
    return F.interpolate(unit[None, None], size=(upsampled, side), mode="bilinear", align_corners=False)[0, 0]
