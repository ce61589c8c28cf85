"""CLIP weights by name or path, checked and normalized, and the hash that identifies them."""

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import file_lock
from torch import Tensor

from famix.clip import openai as clip_package
from famix.clip.base import CLIP_FAMILY_REGISTRY, family_named, family_of
from famix.clip.files import CLIPStateDict, read_clip
from famix.clip.text_tower import TextDesign
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.paths import local_path
from famix.utils.plugins import absent_plugin_remedy

__all__ = ["clip_weights_hash", "load_clip_state_dict", "load_configured_clip", "register_clip_weights"]

_REGISTERED: dict[str, Path] = {}  # name -> file, of plugins
_COUNTERS = ("input_resolution", "context_length", "vocab_size")  # integers, unless the whole file was halved
_COUNTER_SUFFIX = ".num_batches_tracked"


def load_configured_clip(cfg: CfgNode) -> CLIPStateDict:
    """Load MODEL.CLIP.WEIGHTS; MODEL.CLIP.ARCHITECTURE gives the design of the text tower if the file does not show it.

    Args:
        cfg: reads MODEL.CLIP.{WEIGHTS, ARCHITECTURE}.

    Returns:
        The weights. Their `text_design` has unknown properties only if ARCHITECTURE is empty.

    Raises:
        ConfigError: ARCHITECTURE is unknown, or contradicts the text tower that the file shows.
        WeightsError: see `load_clip_state_dict`.
    """
    source, name = cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.CLIP.ARCHITECTURE
    named = family_named(name).text_design(name)
    state_dict = load_clip_state_dict(source)
    shown = state_dict.text_design
    if named.known and shown.or_else(named) != named:
        raise ConfigError(
            f"MODEL.CLIP.ARCHITECTURE must fit MODEL.CLIP.WEIGHTS, got {name} (text tower with {named}) for {source} "
            f"(with {shown}). Set MODEL.CLIP.ARCHITECTURE '', which lets the file decide."
        )
    if named.known and not shown.known:
        log_first_n(
            logging.WARNING,
            f"MODEL.CLIP.WEIGHTS {source} does not show the design of its text tower: using {named}, as MODEL.CLIP.ARCHITECTURE "
            f"{name} says.",
            key="message",
        )
    state_dict.text_design = shown.or_else(named)
    return state_dict


def require_text_design(state_dict: CLIPStateDict, source: str) -> TextDesign:
    """Return the design of the text tower of a CLIP.

    Args:
        state_dict: see `load_configured_clip`.
        source: MODEL.CLIP.WEIGHTS, for the message.

    Raises:
        ConfigError: the design is unknown.
    """
    if state_dict.text_design.known:
        return state_dict.text_design
    raise ConfigError(
        f"MODEL.CLIP.ARCHITECTURE must name the text tower of MODEL.CLIP.WEIGHTS {source}, which the file does not show, "
        "got ''. Set it to RN50 for weights of OpenAI (QuickGELU), to open_clip:RN50 for weights of open_clip with GELU, or to "
        "open_clip:RN50-quickgelu; likewise for other sizes."
    )


def load_clip_state_dict(source: str) -> CLIPStateDict:
    """Load the weights of a CLIP of any registered family.

    Args:
        source: name of a published model ("RN50", "RN101", "RN50x4", "RN50x16" or "RN50x64"), which the clip package
            downloads to ~/.cache/clip once and checks; path of a TorchScript archive, a state_dict saved by torch.save or a
            .safetensors file, also a compact one; or a name of `register_clip_weights`.

    Returns:
        Names ("visual.*" for the image tower, the rest for the text tower) to float32 tensors on the CPU. Integers
        (input_resolution, context_length, vocab_size, num_batches_tracked) are dropped in any precision, so that every form
        of the same weights gives the same dictionary. Its `text_design` is the design of the text tower as far as known.

    Raises:
        WeightsError: the file is missing or unreadable, or no family recognises it.
    """
    path = _file_of(source)
    content = read_clip(path)
    try:
        state_dict = CLIPStateDict({name: tensor.float() for name, tensor in content.items() if _counts(name, tensor)})
        family = family_of(state_dict)
        family.check_weights(state_dict)
    except (WeightsError, RuntimeError) as error:  # the latter for precisions that torch cannot convert
        raise WeightsError(f"{path}: {error}") from error
    shown = family.text_design(source) if is_published(source) else content.text_design
    state_dict.text_design = shown.or_else(family.text_design())
    return state_dict


def register_clip_weights(name: str, path: Path) -> None:
    """Make a file of CLIP weights available as MODEL.CLIP.WEIGHTS `name`; plugins call it.

    Args:
        name: value of MODEL.CLIP.WEIGHTS.
        path: the file.
    """
    _REGISTERED[name] = path


def is_published(source: str) -> bool:
    """Return whether a value of MODEL.CLIP.WEIGHTS is a published model that a registered family knows."""
    known = (family.named_architectures() for _, family in CLIP_FAMILY_REGISTRY)
    return source in clip_package.model_urls() and any(source in names for names in known)


def clip_weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """Return a hash of weights that does not depend on file form, precision or device.

    Args:
        state_dict: names to tensors. Integers and counters are left out, see `load_clip_state_dict`.

    Returns:
        SHA-256 over the sorted names, shapes and float32 values, in hex.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name, tensor in state_dict.items() if _counts(name, tensor)):
        tensor = state_dict[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def _counts(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and name not in _COUNTERS and not name.endswith(_COUNTER_SUFFIX)


def _file_of(source: str) -> Path:
    if source in _REGISTERED:
        return _REGISTERED[source]
    remedy = absent_plugin_remedy(source)
    if remedy and not os.path.exists(source):
        raise WeightsError(f"MODEL.CLIP.WEIGHTS must be a known name or a file, got {source!r}.{remedy}")
    if source in clip_package.model_urls():
        return Path(_fetch(source))
    return Path(local_path(source, "MODEL.CLIP.WEIGHTS", WeightsError))


def _fetch(name: str) -> str:
    if not is_published(name):
        known = ", ".join(filter(is_published, clip_package.model_urls()))
        raise WeightsError(
            f"MODEL.CLIP.WEIGHTS must be one of {known} or a file, got {name!r}. No registered family reads that model."
        )
    path = clip_package.cached_file(name)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        # One process of a machine downloads at a time, because the clip package writes directly to the final path. A
        # read-only cache has the file already, or fails anyway.
        with file_lock(path) if os.access(folder, os.W_OK) else nullcontext():
            return clip_package.download(name)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"MODEL.CLIP.WEIGHTS {name} must be at {path} or downloadable, got: {error}. Download "
            f"{clip_package.model_urls()[name]} on a machine with a network and put the file at {path}."
        ) from error
