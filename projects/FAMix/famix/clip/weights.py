"""Load CLIP weights by name or path, and compute their hash."""

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
from famix.clip.open_clip.models import PREFIX, download_weights
from famix.clip.text.tower import TextDesign
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import did_you_mean
from famix.utils.paths import local_path
from famix.utils.plugins import absent_plugin_remedy

_REGISTERED: dict[str, tuple[Path, str]] = {}  # name -> file and architecture, registered by plugins
_COUNTERS = ("input_resolution", "context_length", "vocab_size")  # integers, unless the whole file was halved
_COUNTER_SUFFIX = ".num_batches_tracked"


def load_configured_clip(cfg: CfgNode) -> CLIPStateDict:
    """Load MODEL.CLIP.WEIGHTS.

    Args:
        cfg: config with MODEL.CLIP.{WEIGHTS, ARCHITECTURE}.

    Returns:
        The weights. Their `text_design` comes from the file or else from ARCHITECTURE.

    Raises:
        ConfigError: ARCHITECTURE is unknown or contradicts the file.
        WeightsError: the file is missing or invalid (see `load_clip_state_dict`).
    """
    source, name = cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.CLIP.ARCHITECTURE
    family, _ = family_named(name)
    named = family.text_design(name)
    state_dict = load_clip_state_dict(source, name, cfg.MODEL.CLIP.TOKENIZER)
    shown = state_dict.text_design
    if named.known and shown.or_else(named) != named:
        raise ConfigError(
            f"MODEL.CLIP.ARCHITECTURE is {name} (text tower with {named}), but MODEL.CLIP.WEIGHTS {source} has a text tower with "
            f"{shown}. Set MODEL.CLIP.ARCHITECTURE to '' to use the design in the file."
        )
    if named.known and not shown.known:
        log_first_n(
            logging.WARNING,
            f"MODEL.CLIP.WEIGHTS {source} does not specify its text tower; using {named} according to "
            f"MODEL.CLIP.ARCHITECTURE {name}.",
            key="message",
        )
    state_dict.text_design = shown.or_else(named)
    return state_dict


def require_text_design(state_dict: CLIPStateDict, source: str) -> TextDesign:
    """Return the text design of weights.

    Args:
        state_dict: result of `load_configured_clip`.
        source: MODEL.CLIP.WEIGHTS, for the error message.

    Raises:
        ConfigError: the design is unknown.
    """
    if state_dict.text_design.known:
        return state_dict.text_design
    raise ConfigError(
        f"MODEL.CLIP.ARCHITECTURE must be set because {source} does not specify its text tower, got ''. Use RN50 for OpenAI's "
        "weights, open_clip:RN50 (GELU) or open_clip:RN50-quickgelu for open_clip's, or the name for another size."
    )


def load_clip_state_dict(source: str, architecture: str = "", tokenizer: str = "") -> CLIPStateDict:
    """Load CLIP weights of any registered family.

    Args:
        source: name of a published model ("RN50", "RN101", "RN50x4", "RN50x16" or "RN50x64"), which is downloaded to
            ~/.cache/clip once; path of a TorchScript archive, a state_dict saved by torch.save or a .safetensors file;
            name registered with `register_clip_weights`; or "open_clip:MODEL/PRETRAINED", which open_clip downloads.
        architecture: see MODEL.CLIP.ARCHITECTURE. Required for files of open_clip's models other than ResNets.
        tokenizer: see MODEL.CLIP.TOKENIZER.

    Returns:
        float32 tensors on the CPU by name: "visual.*" for the image tower, all others for the text tower. Integers such as
        num_batches_tracked are dropped, so the result does not depend on the file format. Its `text_design` describes
        the text tower, where known.

    Raises:
        WeightsError: the file is missing or unreadable, or no family recognizes it.
    """
    if source.startswith(PREFIX) and not os.path.exists(source):
        architecture, path = download_weights(source)
    else:
        path = _file_of(source)
        architecture = architecture or architecture_of(source)
    content = read_clip(path)
    try:
        state_dict = CLIPStateDict({name: tensor.float() for name, tensor in content.items() if _counts(name, tensor)})
        state_dict.architecture, state_dict.tokenizer = architecture, tokenizer
        family = family_of(state_dict)
        family.check_weights(state_dict)
    except (WeightsError, RuntimeError) as error:  # RuntimeError: a dtype that torch cannot convert
        raise WeightsError(f"{path}: {error}") from error
    determined = is_published(source) or source.startswith(PREFIX) or not family.sizes_in_weights
    shown = family.text_design(architecture) if determined else content.text_design
    state_dict.text_design = shown.or_else(family.text_design())
    return state_dict


def register_clip_weights(name: str, path: Path, architecture: str = "") -> None:
    """Register a weights file under a name for MODEL.CLIP.WEIGHTS, with its MODEL.CLIP.ARCHITECTURE."""
    _REGISTERED[name] = (path, architecture)


def architecture_of(source: str) -> str:
    """Return the architecture that a value of MODEL.CLIP.WEIGHTS names, or "" for a file."""
    if source in _REGISTERED:
        return _REGISTERED[source][1]
    if source.startswith(PREFIX):
        return source.partition("/")[0]
    return source if is_published(source) else ""


def is_published(source: str) -> bool:
    """Return whether a value of MODEL.CLIP.WEIGHTS is a published model of a registered family."""
    families = (family for _, family in CLIP_FAMILY_REGISTRY)
    return source in clip_package.model_urls() and any(family.architecture_named(source) for family in families)


def clip_weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of weights from sorted names, shapes and float32 values, as a hex string.

    Integers are left out as in `load_clip_state_dict`, so the hash does not depend on the file format.
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
        return _REGISTERED[source][0]
    published = clip_package.model_urls()
    if source in published:
        return Path(_fetch(source))
    hint = did_you_mean(source, [*_REGISTERED, *published]) or absent_plugin_remedy(source)
    if hint and not os.path.exists(source):
        raise WeightsError(f"MODEL.CLIP.WEIGHTS must be a registered name or a file, got {source!r}.{hint}")
    return Path(local_path(source, "MODEL.CLIP.WEIGHTS", WeightsError))


def _fetch(name: str) -> str:
    if not is_published(name):
        known = ", ".join(filter(is_published, clip_package.model_urls()))
        raise WeightsError(
            f"MODEL.CLIP.WEIGHTS must be one of {known} or a file, got {name!r}. No registered family supports that model."
        )
    path = clip_package.cached_file(name)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        # The clip package writes directly to the final path, so only one process may download. A read-only cache contains
        # the file already, or the download fails.
        with file_lock(path) if os.access(folder, os.W_OK) else nullcontext():
            return clip_package.download(name)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"MODEL.CLIP.WEIGHTS {name} could not be downloaded ({error}). Download {clip_package.model_urls()[name]} on a machine "
            f"with internet access and copy the file to {path}."
        ) from error
