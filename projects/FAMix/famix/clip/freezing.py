"""Freezing a network but for named submodules, in a way that survives train() and eval()."""

from collections.abc import Sequence

from torch import nn

from famix.utils.errors import ConfigError

__all__ = ["ALL", "freeze_except", "train_only"]

ALL = "all"


def freeze_except(module: nn.Module, trainable: Sequence[str]) -> None:
    """Take the gradients from every parameter outside the named submodules.

    Args:
        module: changed in place.
        trainable: names of submodules such as "layer4.2"; ("all",) freezes nothing, () freezes everything.

    Raises:
        ConfigError: a name that is no submodule.
    """
    module.requires_grad_(ALL in trainable)
    for name in trainable:
        _submodule(module, name).requires_grad_(True)


def train_only(module: nn.Module, trainable: Sequence[str], mode: bool) -> None:
    """Put the named submodules into train or eval mode and every other one into eval mode.

    Args:
        module: changed in place; its own flag, not its children's, is left alone.
        trainable: as for freeze_except.
        mode: True for train mode.
    """
    for child in module.children():
        child.eval()
    for name in trainable:
        target = _submodule(module, name)
        for child in target.children() if target is module else (target,):
            child.train(mode)


def _submodule(module: nn.Module, name: str) -> nn.Module:
    if name == ALL:
        return module
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"MODEL.CLIP.TRAINABLE names {name!r}, which the backbone lacks; expected {ALL}, or some of "
            f"{', '.join(_blocks(module))}"
        ) from error


def _blocks(module: nn.Module) -> list[str]:
    """Names of the submodules and, where these are sequences, of their members."""
    names = []
    for name, child in module.named_children():
        names.append(name)
        if isinstance(child, nn.Sequential):
            names += [f"{name}.{index}" for index in range(len(child))]
    return names
