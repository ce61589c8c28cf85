"""Low-rank adapters ("LoRA", Hu et al., ICLR 2022) for the weights of any backbone.

An adapted weight is W + alpha / rank * up @ down, where only `up` and `down` are trained. The names of all other tensors in
the state_dict stay unchanged; adapters are stored as "adapters.<weight>.down" and "adapters.<weight>.up".
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from famix.utils.errors import ConfigError
from famix.utils.messages import first_few

_PREFIX = "adapters."
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a block


class LowRank(nn.Module):
    """Parametrization that adds a low-rank matrix to a weight. It is zero at first.

    Args:
        weight: the weight (out, ...); all but its first dimension are flattened.
        rank: rank of the matrix.
        alpha: scale. The matrix is multiplied by alpha / rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        return weight + (self.scale * self.up @ self.down).view_as(weight).to(weight.dtype)


def add_adapters(module: nn.Module, patterns: Sequence[str], rank: int, alpha: float) -> list[str]:
    """Add trainable adapters to the matching weights of a module, in place.

    Args:
        module: a backbone.
        patterns: shell patterns for names of weights of linear, convolution and attention layers, e.g. "*attn*".
        rank: rank of the adapters.
        alpha: scale of the adapters.

    Returns:
        The names of the adapted weights.

    Raises:
        ConfigError: a value is out of range, or no weight matches.
    """
    if rank < 1 or not alpha > 0:
        raise ConfigError(
            f"MODEL.ADAPTERS.RANK and MODEL.ADAPTERS.ALPHA must be positive, got {rank} and {alpha}. Set "
            "MODEL.ADAPTERS.RANK to 0 to disable adapters."
        )
    weights = {
        f"{path}.{name}".removeprefix("."): weight
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d | nn.MultiheadAttention)
        for name, weight in part.named_parameters(recurse=False)
        if weight.ndim > 1
    }
    chosen = [name for name in weights if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        raise ConfigError(
            f"MODEL.ADAPTERS.PATTERNS must match weights of the backbone, got {list(patterns)}. The weights include "
            f"{first_few(list(dict.fromkeys(_NUMBER.sub('*', name) for name in weights)), 12)}."
        )
    for name in chosen:
        owner, _, tensor = name.rpartition(".")
        adapter = LowRank(weights[name], rank, alpha)
        parametrize.register_parametrization(module.get_submodule(owner), tensor, adapter, unsafe=True)
    module.register_state_dict_post_hook(_to_plain_names)
    module.register_load_state_dict_pre_hook(_from_plain_names)
    return chosen


def merge_adapters(module: nn.Module) -> None:
    """Replace adapted weights with plain weights of the same values, in place."""
    for part in list(module.modules()):
        for tensor in list(getattr(part, "parametrizations", {})):
            if isinstance(part.parametrizations[tensor][0], LowRank):  # type: ignore[index]
                parametrize.remove_parametrizations(part, tensor, leave_parametrized=True)
    for part in module.modules():
        for hooks in (part._state_dict_hooks, part._load_state_dict_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "hook", hook) in (_to_plain_names, _from_plain_names):
                    del hooks[key]


_ORIGINAL = re.compile(r"(?:(.*)\.)?parametrizations\.(\w+)\.original")
_ADAPTER = re.compile(r"(?:(.*)\.)?parametrizations\.(\w+)\.0\.(up|down)")


def _to_plain_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and "parametrizations." in name]:
        path = name.removeprefix(prefix)
        if found := _ORIGINAL.fullmatch(path):
            state[f"{prefix}{_join(*found.groups())}"] = state.pop(name)
        elif found := _ADAPTER.fullmatch(path):
            owner, tensor, part = found.groups()
            state[f"{prefix}{_PREFIX}{_join(owner, tensor)}.{part}"] = state.pop(name)


def _from_plain_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for path, part in module.named_modules():
        for tensor in getattr(part, "parametrizations", {}):
            name, inner = f"{prefix}{_join(path, tensor)}", f"{prefix}{_join(path, f'parametrizations.{tensor}')}"
            stored = f"{prefix}{_PREFIX}{_join(path, tensor)}"
            for old, new in ((name, "original"), (f"{stored}.down", "0.down"), (f"{stored}.up", "0.up")):
                if old in state:
                    state[f"{inner}.{new}"] = state.pop(old)


def _join(owner: str | None, tensor: str) -> str:
    return f"{owner}.{tensor}" if owner else tensor
