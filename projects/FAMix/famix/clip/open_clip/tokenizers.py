"""Tokenizers of open_clip's models: OpenAI's tokenizer, and Hugging Face tokenizers for models such as SigLIP."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from famix.clip.open_clip.models import OpenClipModel, optional_packages
from famix.utils.errors import ConfigError

_FILES = ("tokenizer.json", "tokenizer_config.json")

Tokenizer = Callable[[list[str]], Tensor]  # N texts -> (N, context length) int64


def load_tokenizer(model: OpenClipModel, folder: str = "") -> Tokenizer:
    """Load the tokenizer of a model.

    Args:
        model: open_clip model.
        folder: MODEL.CLIP.TOKENIZER, a folder with Hugging Face's tokenizer.json and tokenizer_config.json for models
            that do not use OpenAI's tokenizer. "" downloads them.

    Returns:
        The tokenizer. It raises ConfigError for texts that exceed the context length and for ids that exceed the vocabulary.

    Raises:
        ConfigError: the files or a package are missing.
    """
    config: dict[str, Any] = model.config["text_cfg"]
    with optional_packages(model.name):
        from open_clip.tokenizer import SimpleTokenizer
    if config.get("hf_tokenizer_name"):
        return _load_from_hugging_face(model, config, folder)
    length = config.get("context_length", 77)
    tokenizer = SimpleTokenizer(context_length=length, **(config.get("tokenizer_kwargs") or {}))

    def tokenize(texts: list[str]) -> Tensor:
        _require_length([len(tokenizer.encode(text)) + 2 for text in texts], length)
        return tokenizer(texts)

    return tokenize


def _load_from_hugging_face(model: OpenClipModel, config: dict[str, Any], folder: str) -> Tokenizer:
    name, length = config["hf_tokenizer_name"], config.get("context_length", 77)
    options = {"local_files_only": bool(folder), **(config.get("tokenizer_kwargs") or {})}
    remedy = (
        f"Download the tokenizer files from https://huggingface.co/{name} and set MODEL.CLIP.TOKENIZER to their folder."
    )
    missing = [file for file in _FILES if folder and not os.path.isfile(os.path.join(folder, file))]
    if missing:  # transformers mistakes a missing folder for a name on the hub, and invents a missing vocabulary
        raise ConfigError(
            f"MODEL.CLIP.TOKENIZER must be a folder with the tokenizer files of {name}, got {folder!r} without "
            f"{' and '.join(missing)}. {remedy}"
        )
    from open_clip.tokenizer import HFTokenizer

    try:
        tokenizer: Any = HFTokenizer(folder or name, context_length=length, **options)
    except ImportError as error:
        raise ConfigError(
            f"MODEL.CLIP.ARCHITECTURE {model.name} requires transformers for its tokenizer ({error}). Install it with pip "
            "install 'famix[open_clip]'."
        ) from error
    except Exception as error:  # transformers and huggingface_hub raise many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"MODEL.CLIP.TOKENIZER must be a folder with the tokenizer files of {name}, got {folder!r} ({reason:.200}). {remedy}"
        ) from error

    def tokenize(texts: list[str]) -> Tensor:
        ids = tokenizer.tokenizer([tokenizer.clean_fn(text) for text in texts]).input_ids
        _require_length(list(map(len, ids)), length)
        tokens: Tensor = tokenizer(texts)
        if tokens.max() >= config["vocab_size"]:
            raise ConfigError(
                f"MODEL.CLIP.TOKENIZER must have the {config['vocab_size']} tokens of {name}, got {folder!r} with the token id "
                f"{int(tokens.max())}. {remedy}"
            )
        return tokens

    return tokenize


def _require_length(lengths: Sequence[int], length: int) -> None:
    longest = max(lengths, default=0)
    if longest > length:
        raise ConfigError(
            f"Prompts must have at most {length} tokens including the template, got {longest}. Shorten the class name, "
            "STYLE_MINING.STYLES or STYLE_MINING.TEMPLATES."
        )
