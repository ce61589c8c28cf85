"""Activation checkpointing ("Training Deep Nets with Sublinear Memory Cost", Chen et al., 2016)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(network: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function, and keep only its arguments for the backward pass, which calls it again.

    Gradients, random draws and batch norm statistics are the same as in a plain call.

    Args:
        network: module that contains the layers of the function.
        function: a submodule, or a function that uses it.
        *args: arguments of the function.
        **kwargs: keyword arguments of the function.

    Returns:
        The result of the function.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, context_fn=partial(_contexts, network), **kwargs)


def _contexts(network: nn.Module) -> tuple[Any, Any]:
    """Return the contexts of the first and the second call."""
    return nullcontext(), _fixed_statistics(network)


@contextmanager
def _fixed_statistics(network: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms in training mode unchanged."""
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    settings = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, settings, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
