"""Prompt-driven instance normalisation: styles of patches, optimised towards texts in CLIP's embedding space."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from famix.style.patches import check_shape
from famix.style.statistics import channel_mean_std
from famix.utils.errors import ConfigError

__all__ = ["OptimizedStyles", "optimize_styles"]


@dataclass(frozen=True)
class OptimizedStyles:
    """What `optimize_styles` returns, for N patches of C channels.

    Attributes:
        mean: (N, C), the optimised means.
        std: (N, C), the optimised standard deviations.
        style_losses: (steps + 1, N), 1 - cosine similarity of every style before each step and after the last.
    """

    mean: Tensor
    std: Tensor
    style_losses: Tensor

    @property
    def losses(self) -> Tensor:
        """(steps,), the mean over the styles at each step, which is the objective where there are no weights."""
        return self.style_losses[:-1].mean(1)


def optimize_styles(
    patches: Tensor,
    text_embeddings: Tensor,
    encode_image: Callable[[Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    basis: Tensor | None = None,
    weights: Tensor | None = None,
    rectify: bool = True,
) -> OptimizedStyles:
    """Find for every patch the statistics under which CLIP sees its text.

    Each patch is normalised by its own statistics z; mean and std, started at those statistics, are optimised by SGD
    so that the image embedding of relu(std * z + mean) points where the text embedding does.

    Args:
        patches: (N, C, h, w), features that are not normalised.
        text_embeddings: (N, D), unit length, the target of every patch.
        encode_image: maps restyled patches (N, C, h, w) to image embeddings (N, D) of any length. Its weights should
            not require gradients: only mean and std are optimised.
        steps: number of SGD steps, >= 0.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD, on means and standard deviations alike; with a basis, on the changes of them.
        basis: (2C, 2C), in which the changes are optimised, see `source_basis`; None optimises means and standard
            deviations themselves.
        weights: (N,), of every style's loss in the objective; None gives each 1 / N. Styles do not see each other, so
            that those of several objectives can be optimised at once.
        rectify: apply the ReLU. Leave it out for features that are not outputs of one.

    Returns:
        The optimised statistics in float32, with the losses of every style.

    Raises:
        ConfigError: an argument, or what `encode_image` returns, has another shape; or `steps` is negative.
    """
    check_shape("patches", patches, ("N", "C", "h", "w"))
    number, channels = patches.shape[:2]
    check_shape("text_embeddings", text_embeddings, ("N", "D"), (number, None), "Pass one embedding for each patch.")
    if basis is not None:
        check_shape("basis", basis, ("2C", "2C"), (2 * channels, 2 * channels))
    if weights is not None:
        check_shape("weights", weights, ("N",), (number,))
    if not hasattr(steps, "__index__") or steps < 0:
        raise ConfigError(
            f"steps must be an integer of at least 0, got {steps!r}. Use 0 for the statistics of the patches themselves."
        )
    patches = patches.detach().float()
    own_mean, own_std = channel_mean_std(patches)
    normalised = (patches - own_mean) / own_std
    own = torch.cat([own_mean, own_std], dim=1).flatten(1)
    shares = own.new_full((len(own),), 1 / max(1, len(own))) if weights is None else weights.to(own)
    free = (own.clone() if basis is None else torch.zeros_like(own)).requires_grad_()
    optimizer = torch.optim.SGD([free], lr=lr, momentum=momentum, weight_decay=weight_decay)

    def mean_std() -> tuple[Tensor, Tensor]:
        style = free if basis is None else own + free @ basis.t()
        mean, std = style[:, :, None, None].chunk(2, dim=1)
        return mean, std

    def style_losses() -> Tensor:
        mean, std = mean_std()
        restyled = _Restyled.apply(normalised, mean, std) if rectify else torch.addcmul(mean, normalised, std)
        images = encode_image(restyled)
        check_shape("encode_image's result", images, ("N", "D"), text_embeddings.shape, "It must fit text_embeddings.")
        return 1 - F.cosine_similarity(images.float(), text_embeddings.float())

    history = []
    for _ in range(steps):
        with torch.enable_grad():
            losses = style_losses()
            (free.grad,) = torch.autograd.grad((losses * shares).sum(), (free,))
        optimizer.step()
        history.append(losses.detach())
    with torch.no_grad():
        history.append(style_losses())
        mean, std = mean_std()
    return OptimizedStyles(mean.detach().flatten(1), std.detach().flatten(1), torch.stack(history))


class _Restyled(torch.autograd.Function):
    """relu(std * normalised + mean) with gradients of mean and std alone, in few passes over memory.

    normalised is (N, C, h, w), mean and std are (N, C, 1, 1).
    """

    @staticmethod
    def forward(ctx: Any, normalised: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        restyled = torch.addcmul(mean, normalised, std).relu_()
        ctx.save_for_backward(normalised, restyled)
        return restyled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[None, Tensor, Tensor]:
        normalised, restyled = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(outer, restyled, 0)
        mean = gradient.sum((2, 3), keepdim=True)
        return None, mean, gradient.mul_(normalised).sum((2, 3), keepdim=True)
