"""CLIP weights by name or path, checked and in one normal form, and the hash that identifies them."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n
from iopath.common.file_io import file_lock
from torch import Tensor

from famix.clip import openai as clip_package
from famix.clip.base import CLIP_FAMILY_REGISTRY, family_named, family_of
from famix.clip.compact import expand_compact, is_compact
from famix.clip.files import CLIPStateDict, read_clip
from famix.clip.text_tower import OPENAI_TEXT, TextDesign
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.paths import local_path
from famix.utils.plugins import absent_plugin_remedy

__all__ = ["clip_weights_hash", "load_clip_state_dict", "load_configured_clip", "register_clip_weights"]

_REGISTERED: dict[str, Path] = {}  # name -> file, of plugins
_COUNTERS = ("input_resolution", "context_length", "vocab_size")  # integers, unless the whole file was halved
_COUNTER_SUFFIX = ".num_batches_tracked"


def load_configured_clip(cfg: CfgNode) -> CLIPStateDict:
    """Load MODEL.CLIP.WEIGHTS, with MODEL.CLIP.ARCHITECTURE for what the file does not show of its text tower.

    Args:
        cfg: reads MODEL.CLIP.{WEIGHTS, ARCHITECTURE}.

    Returns:
        The weights. Their `text_design` has unknown properties only if ARCHITECTURE is empty.

    Raises:
        ConfigError: ARCHITECTURE is unknown, or names another text tower than the file shows.
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
            f"MODEL.CLIP.WEIGHTS {source} does not show its text tower: it is read with {named}, as "
            f"MODEL.CLIP.ARCHITECTURE {name} says.",
            key="message",
        )
    state_dict.text_design = shown.or_else(named)
    return state_dict


def require_text_design(state_dict: CLIPStateDict, source: str) -> TextDesign:
    """Return the design of a text tower.

    Args:
        state_dict: of a CLIP, see `load_configured_clip`.
        source: MODEL.CLIP.WEIGHTS, for the message.

    Raises:
        ConfigError: it is not known.
    """
    if state_dict.text_design.known:
        return state_dict.text_design
    raise ConfigError(
        f"MODEL.CLIP.ARCHITECTURE must name the text tower of MODEL.CLIP.WEIGHTS {source}, which the file does not show, "
        "got ''. Set it to RN50 for weights of OpenAI (QuickGELU), to open_clip:RN50 for weights of open_clip "
        "with GELU, or to open_clip:RN50-quickgelu; RN101, RN50x4, RN50x16 and RN50x64 likewise."
    )


def load_clip_state_dict(source: str) -> CLIPStateDict:
    """Load the weights of a CLIP with a ResNet image tower.

    Args:
        source: the name of a published model ("RN50", "RN101", "RN50x4", "RN50x16" or "RN50x64"), which the clip
            package downloads to ~/.cache/clip once and checks; or the path of a TorchScript archive, a state_dict
            saved by torch.save, or a .safetensors file, also a compact one; or a name of `register_clip_weights`.

    Returns:
        Names ("visual.*" for the image tower, the rest for the text tower) to float32 tensors on the CPU. All integers
        are dropped: input_resolution, context_length and vocab_size can be read from shapes, and the batch norms'
        num_batches_tracked plays no role, in whatever precision a file has them. So every form of the same weights gives
        the same dictionary. Its `text_design` says how the text tower computes, as far as the file shows it.

    Raises:
        WeightsError: the file cannot be had or read, or is not such a CLIP.
    """
    path = _file_of(source)
    content = read_clip(path)
    design, tensors = content.text_design, dict(content)
    try:
        if is_compact(tensors):
            design, tensors = design.or_else(OPENAI_TEXT), expand_compact(tensors)
        state_dict = CLIPStateDict({name: tensor.float() for name, tensor in tensors.items() if _counts(name, tensor)})
        family = family_of(state_dict)
        family.check_weights(state_dict)
    except (WeightsError, RuntimeError) as error:  # the latter for precisions that torch cannot convert
        raise WeightsError(f"{path}: {error}") from error
    state_dict.text_design = (
        family.text_design(source) if is_published(source) else design.or_else(family.text_design())
    )
    return state_dict


def register_clip_weights(name: str, path: Path) -> None:
    """Make a file of CLIP weights available as MODEL.CLIP.WEIGHTS `name`; plugins call it.

    Args:
        name: a name of OpenAI's models keeps its meaning.
        path: of the file.
    """
    _REGISTERED[name] = path


def is_published(source: str) -> bool:
    """Return whether a value of MODEL.CLIP.WEIGHTS is a published model that a registered family knows."""
    known = (family.named_architectures() for _, family in CLIP_FAMILY_REGISTRY)
    return source in clip_package.model_urls() and any(source in names for names in known)


def clip_weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """Identify weights, whatever file, precision or device they are kept in.

    Args:
        state_dict: names to tensors. Integers and counters do not count, see `load_clip_state_dict`.

    Returns:
        sha256 over the sorted names, shapes and float32 values, in hex.
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
    try:
        with _locked(path):
            return clip_package.download(name)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"Got no usable CLIP {name} ({error}), expected it at {path} or at {clip_package.model_url(name)}. "
            f"Download that URL where there is a network and put the file at {path}."
        ) from error


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Let one process of a machine download at a time: the clip package writes straight to the final path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    writable = os.access(os.path.dirname(path), os.W_OK)  # a read-only cache holds the file already or fails anyway
    with file_lock(path) if writable else nullcontext():
        yield
