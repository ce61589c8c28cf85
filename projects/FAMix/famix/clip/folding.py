"""Frozen batch norms folded into the convolutions before them: the same map up to rounding, with one pass over memory.

The network's own weights stay what they are, in memory and in checkpoints. What is folded lies beside them: it is made
when it is first needed, in the order of memory that convolutions work in fastest (channels last), and made anew when
anything that it was made of has been loaded, moved or changed since.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["conv_norm", "is_frozen"]


@dataclass(frozen=True)
class _Folded:
    """A convolution that does its norm's work, too."""

    weight: Tensor
    bias: Tensor
    # Aliases of what was folded. They keep its memory, so that nothing else can come to lie at the same address.
    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def is_made_of(self, sources: tuple[Tensor, ...]) -> bool:
        """Whether these are still the tensors that were folded, unchanged."""
        return self.versions == tuple(source._version for source in sources) and all(
            old.data_ptr() == new.data_ptr() for old, new in zip(self.sources, sources, strict=True)
        )


_folded: WeakKeyDictionary[nn.Conv2d, _Folded] = WeakKeyDictionary()


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, dilation: int = 1) -> Tensor:
    """A convolution and the batch norm behind it, in one where both are frozen.

    Args:
        x: (B, C, H, W).
        conv: without bias; its own dilation is 1.
        norm: of its output.
        dilation: of the kernel and the padding.

    Returns:
        (B, C', H', W').
    """
    padding = [dilation * int(side) for side in conv.padding]
    if not is_frozen(conv, norm):
        return norm(F.conv2d(x, conv.weight, None, conv.stride, padding, dilation))
    weight, bias = _fold(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, padding, dilation)


def is_frozen(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether neither learns nor gathers statistics, and may be folded.

    A graph that is being traced keeps both as they are, as whoever traces it wants to find the network's own weights.
    """
    learns = conv.weight.requires_grad or norm.weight.requires_grad or norm.bias.requires_grad
    return not (learns or norm.training or torch.compiler.is_compiling() or conv.weight.is_inference())


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    sources = (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    folded = _folded.get(conv)
    if folded is None or not folded.is_made_of(sources):
        # What is made in inference mode could not take part in a training later.
        with torch.inference_mode(False), torch.no_grad():
            folded = _Folded(
                *_folded_weights(*sources, norm.eps),
                sources=tuple(source.detach() for source in sources),
                versions=tuple(source._version for source in sources),
            )
        _folded[conv] = folded
    return folded.weight, folded.bias


def _folded_weights(
    weight: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    scale = gain.float() * (var.float() + eps).rsqrt()
    bias = offset.float() - mean.float() * scale
    folded = (weight.float() * scale[:, None, None, None]).to(weight.dtype)
    return folded.contiguous(memory_format=torch.channels_last), bias.to(weight.dtype)
