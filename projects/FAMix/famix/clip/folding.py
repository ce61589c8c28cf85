"""Frozen batch norms folded into the convolutions before them: the same map up to rounding, in one pass over memory.

The weights of the network stay unchanged, in memory and in checkpoints. A folded copy in channels-last memory format is
made on first use, and again after any of its sources has been loaded, moved or changed.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["conv_norm"]


@dataclass(frozen=True)
class _Folded:
    """A convolution that includes its norm, and the tensors that it was made of."""

    weight: Tensor
    bias: Tensor
    sources: tuple[Tensor, ...]  # aliases, which keep the memory: no other tensor can get the same address
    versions: tuple[int, ...]

    def is_made_of(self, sources: tuple[Tensor, ...]) -> bool:
        """Return whether these are the tensors that were folded, unchanged."""
        return self.versions == tuple(source._version for source in sources) and all(
            old.data_ptr() == new.data_ptr() for old, new in zip(self.sources, sources, strict=True)
        )


_folded: WeakKeyDictionary[nn.Conv2d, _Folded] = WeakKeyDictionary()


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, dilation: int = 1) -> Tensor:
    """Apply a convolution and its batch norm, in one operation if both are frozen.

    Args:
        x: (B, C, H, W).
        conv: without bias, with dilation 1.
        norm: batch norm after the convolution.
        dilation: dilation of the kernel, and factor of the padding.

    Returns:
        (B, C', H', W').
    """
    padding = [dilation * int(side) for side in conv.padding]
    learns = conv.weight.requires_grad or norm.weight.requires_grad or norm.bias.requires_grad
    # A traced graph keeps both layers, so that it contains the network's own weights.
    if learns or norm.training or torch.compiler.is_compiling() or conv.weight.is_inference():
        return norm(F.conv2d(x, conv.weight, None, conv.stride, padding, dilation))
    folded = _fold(conv, norm)
    return F.conv2d(x, folded.weight, folded.bias, conv.stride, padding, dilation)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> _Folded:
    assert norm.running_mean is not None and norm.running_var is not None
    sources = (conv.weight, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    folded = _folded.get(conv)
    if folded is None or not folded.is_made_of(sources):
        # Tensors made in inference mode could not take part in a later training.
        with torch.inference_mode(False), torch.no_grad():
            weight, mean, var, gain, offset = (source.float() for source in sources)
            # torch.nn.utils.fusion rounds the bias in another order, and mining would not continue that of 0.1.
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
