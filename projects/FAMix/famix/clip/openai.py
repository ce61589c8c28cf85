"""The parts of OpenAI's `clip` package that FAMix uses. No other module imports it or knows its private names."""

import os
import warnings

with warnings.catch_warnings():
    # clip imports a version parser from setuptools' deprecated pkg_resources; users of FAMix cannot change that.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    from clip import clip as _clip
from clip.model import CLIP, AttentionPool2d, LayerNorm, Transformer, convert_weights

__all__ = [
    "CLIP",
    "VOCAB_SIZE",
    "AttentionPool2d",
    "LayerNorm",
    "Transformer",
    "cached_file",
    "convert_weights",
    "download",
    "model_urls",
    "tokenize",
]

VOCAB_SIZE = 49408  # tokens of clip's tokenizer, which all published models share

tokenize = _clip.tokenize


def model_urls() -> dict[str, str]:
    """Return a mapping from published models to URLs. The last folder in a URL is the SHA-256 of the file."""
    return dict(_clip._MODELS)


def cached_file(name: str) -> str:
    """Return the path at which the clip package caches a published model. The file may not exist yet."""
    return os.path.join(os.path.expanduser("~/.cache/clip"), os.path.basename(model_urls()[name]))


def download(name: str) -> str:
    """Return the path of a published model, downloaded if the cache lacks it and checked against its SHA-256.

    Raises:
        OSError: the download failed.
        RuntimeError: the SHA-256 of the downloaded file does not match.
    """
    return _clip._download(model_urls()[name], os.path.dirname(cached_file(name)))
