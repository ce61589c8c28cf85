"""What FAMix uses of OpenAI's `clip` package: the one place that imports it and knows its private names."""

import os
import warnings

with warnings.catch_warnings():
    # clip takes a version parser from setuptools' deprecated pkg_resources; users of FAMix can do nothing about it.
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
    "model_url",
    "model_urls",
    "tokenize",
]

VOCAB_SIZE = 49408  # tokens of clip's tokenizer, which all published models share

tokenize = _clip.tokenize


def model_urls() -> dict[str, str]:
    """The published models: name -> URL, whose last folder is the sha256 of the file."""
    return dict(_clip._MODELS)


def model_url(name: str) -> str:
    """URL of the published model `name`. Raises KeyError for any other name."""
    return _clip._MODELS[name]


def cached_file(name: str) -> str:
    """Path at which the clip package keeps the published model `name`, whether it is there or not."""
    return os.path.join(os.path.expanduser("~/.cache/clip"), os.path.basename(model_url(name)))


def download(name: str) -> str:
    """Return the path of a published model, downloaded if the cache lacks it and checked against its sha256.

    Raises:
        OSError: the download failed.
        RuntimeError: the downloaded file has another sha256.
    """
    return _clip._download(model_url(name), os.path.dirname(cached_file(name)))
