"""Fold frozen batch norms into the preceding convolutions, which saves one pass over memory.

The network's parameters stay unchanged. A folded copy in channels-last memory format is created on first use and
whenever a source tensor has been loaded, moved or changed.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class _Folded:
    """Folded weights and their source tensors."""

    weight: Tensor
    bias: Tensor
    sources: tuple[Tensor, ...]  # aliases keep the memory alive, so no other tensor can get the same address
    versions: tuple[int, ...]

    def is_made_of(self, sources: tuple[Tensor, ...]) -> bool:
        """Return whether the weights were folded from these tensors in their current version."""
        return self.versions == tuple(source._version for source in sources) and all(
            old.data_ptr() == new.data_ptr() for old, new in zip(self.sources, sources, strict=True)
        )


_folded: WeakKeyDictionary[nn.Conv2d, _Folded] = WeakKeyDictionary()


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, dilation: int = 1) -> Tensor:
    """Apply a convolution and a batch norm, as one operation if both are frozen.

    Args:
        x: (B, C, H, W).
        conv: convolution without bias and with dilation 1.
        norm: batch norm after the convolution.
        dilation: dilation of the convolution. Its padding is multiplied by the same factor.

    Returns:
        (B, C', H', W').
    """
    padding = [dilation * int(side) for side in conv.padding]
    learns = conv.weight.requires_grad or norm.weight.requires_grad or norm.bias.requires_grad
    # Traced graphs must contain the original weights.
    if learns or norm.training or torch.compiler.is_compiling() or conv.weight.is_inference():
        return norm(F.conv2d(x, conv.weight, None, conv.stride, padding, dilation))
    folded = _fold(conv, norm)
    return F.conv2d(x, folded.weight, folded.bias, conv.stride, padding, dilation)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> _Folded:
    assert norm.running_mean is not None and norm.running_var is not None
    sources = (conv.weight, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    folded = _folded.get(conv)
    if folded is None or not folded.is_made_of(sources):
        # Inference tensors could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            weight, mean, var, gain, offset = (source.float() for source in sources)
            # torch.nn.utils.fusion rounds the bias differently, so mining could not resume runs of 0.1 exactly.
            scale = gain * (var + norm.eps).rsqrt()
            weight, bias = weight * scale[:, None, None, None], offset - mean * scale
            folded = _Folded(
                weight.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last),
                bias.to(conv.weight.dtype),
                sources=tuple(source.detach() for source in sources),
                versions=tuple(source._version for source in sources),
            )
        _folded[conv] = folded
    return folded
