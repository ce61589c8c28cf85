"""Prompt-driven instance normalization: optimize patch styles toward prompts in CLIP's embedding space."""

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

_RELATIVE_SCALE = 10**0.5  # scale of relative changes that lets a learning rate of 1 suit all CLIP families


@dataclass(frozen=True)
class OptimizedStyles:
    """Result of `optimize_styles` for N patches with C channels."""

    mean: Tensor  # (N, C)
    std: Tensor  # (N, C)
    style_losses: Tensor  # (steps + 1, N), 1 - cosine similarity before each step and after the last one

    @property
    def losses(self) -> Tensor:
        """Unweighted objective at each step, averaged over the styles: (steps,)."""
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
    relative: bool = False,
) -> OptimizedStyles:
    """Optimize the statistics of each patch toward its text embedding.

    z is the patch normalized by its own statistics. SGD starts from these statistics and maximizes the cosine similarity
    between the text embedding and the image embedding of relu(std * z + mean).

    Args:
        patches: (N, C, h, w), features before normalization.
        text_embeddings: (N, D), unit-length target embedding for each patch.
        encode_image: maps restyled patches (N, C, h, w) to image embeddings (N, D) of any norm. Only mean and std are
            optimized; its weights should not require gradients.
        steps: number of SGD steps, >= 0.
        lr: learning rate of SGD.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD, applied to means and standard deviations, or to their changes with `basis` or
            `relative`.
        basis: (2C, 2C), basis in which changes are optimized (see `source_basis`). None optimizes means and standard
            deviations directly. It cannot be combined with `relative`.
        weights: (N,), weights of the losses in the objective; None uses 1 / N. Styles are independent of each other, so
            several objectives can be optimized at once.
        rectify: whether to apply the ReLU. Use False for features that are not ReLU outputs.
        relative: whether to optimize a and b in mean = m + s * a and std = s * exp(b), where m and s are the patch's own
            statistics. Standard deviations stay positive, and one learning rate suits features of any scale.

    Returns:
        The optimized statistics in float32 and the loss history of each style.

    Raises:
        ConfigError: an argument or the result of `encode_image` has the wrong shape, or `steps` is negative.
    """
    _check_arguments(patches, text_embeddings, steps, basis, weights, relative)
    patches = patches.detach().float()
    own_mean, own_std = channel_mean_std(patches)
    normalized = (patches - own_mean) / own_std
    own = torch.cat([own_mean, own_std], dim=1).flatten(1)
    changes = relative or basis is not None  # from the patch's own statistics
    shares = own.new_full((len(own),), 1 / max(1, len(own))) if weights is None else weights.to(own)
    free = (torch.zeros_like(own) if changes else own.clone()).requires_grad_()
    optimizer = torch.optim.SGD([free], lr=lr, momentum=momentum, weight_decay=weight_decay)

    def mean_std() -> tuple[Tensor, Tensor]:
        if relative:
            shift, growth = (_RELATIVE_SCALE * free[:, :, None, None]).chunk(2, dim=1)
            return own_mean + own_std * shift, own_std * growth.exp()
        style = free if basis is None else own + free @ basis.t()
        mean, std = style[:, :, None, None].chunk(2, dim=1)
        return mean, std

    def style_losses() -> Tensor:
        mean, std = mean_std()
        restyled = _Restyled.apply(normalized, mean, std) if rectify else torch.addcmul(mean, normalized, std)
        images = encode_image(restyled)
        check_shape("encode_image's result", images, ("N", "D"), text_embeddings.shape, "Match text_embeddings.")
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


def _check_arguments(
    patches: Tensor, text_embeddings: Tensor, steps: int, basis: Tensor | None, weights: Tensor | None, relative: bool
) -> None:
    check_shape("patches", patches, ("N", "C", "h", "w"))
    number, channels = patches.shape[:2]
    check_shape("text_embeddings", text_embeddings, ("N", "D"), (number, None), "Pass one embedding per patch.")
    if basis is not None:
        check_shape("basis", basis, ("2C", "2C"), (2 * channels, 2 * channels))
    if relative and basis is not None:
        raise ConfigError("relative and basis are mutually exclusive. Use basis with absolute statistics only.")
    if weights is not None:
        check_shape("weights", weights, ("N",), (number,))
    if not hasattr(steps, "__index__") or steps < 0:
        raise ConfigError(f"steps must be a non-negative integer, got {steps!r}. Use 0 to keep the statistics.")


class _Restyled(torch.autograd.Function):
    """relu(std * normalized + mean) with gradients only for mean and std, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, normalized: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        restyled = torch.addcmul(mean, normalized, std).relu_()
        ctx.save_for_backward(normalized, restyled)
        return restyled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[None, Tensor, Tensor]:
        normalized, restyled = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(outer, restyled, 0)
        mean = gradient.sum((2, 3), keepdim=True)
        return None, mean, gradient.mul_(normalized).sum((2, 3), keepdim=True)


def source_basis(statistics: Tensor, ridge: float = 1.0) -> Tensor:
    """Compute a basis of style changes in which the statistics of source patches vary equally in all directions.

    Changes in light, contrast and color affect the statistics of many channels together. Gradient steps in this basis
    are preconditioned by the covariance of the statistics and follow such joint changes.

    Args:
        statistics: (P, D), one row per patch, with P >= 2. D is usually 2C: the means and standard deviations of C channels.
        ridge: positive value added to the diagonal of the covariance, in units of the mean variance, so that steps in
            every direction remain possible.

    Returns:
        (D, D) lower triangular matrix L with L L^T proportional to the covariance plus the ridge. The sum of its squared
        entries is D, as for the identity, so a step in a random direction keeps its length on average.

    Raises:
        ConfigError: `statistics` has the wrong shape or fewer than two rows.
    """
    check_shape("statistics", statistics, ("P", "D"))
    if len(statistics) < 2:
        raise ConfigError(
            f"STYLE_MINING.METRIC source requires at least 2 labeled patches, got {len(statistics)}. Mine more images, "
            "increase MODEL.STYLE.GRID, or use METRIC euclidean."
        )
    covariance = torch.cov(statistics.double().t())
    spread = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    covariance = covariance / spread + ridge * torch.eye(len(covariance), dtype=torch.float64, device=statistics.device)
    basis = torch.linalg.cholesky(covariance)
    return (basis * (len(basis) ** 0.5 / torch.linalg.matrix_norm(basis))).float()
