"""Tiny CLIPs of open_clip's families: open_clip's own model, its weights file, and the value of MODEL.CLIP.ARCHITECTURE."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import timm
import tokenizers
import torch
from timm.models import eva, vision_transformer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from torch import nn


def _register_small(name: str, create: Callable[..., nn.Module], **sizes: Any) -> str:
    """Register a small version of a model of timm, as its own are slow, and return its name."""

    def create_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(pretrained, embed_dim=48, num_heads=3, depth=3, **{**sizes, **kwargs})

    create_small.__name__, create_small.__module__ = name, create.__module__
    timm.models.register_model(create_small)
    return name


_EVA02 = _register_small("small_eva02", eva.eva02_tiny_patch14_224, img_size=112, ref_feat_shape=(8, 8))
_PE_CORE = _register_small("small_pe_core", eva.vit_pe_core_tiny_patch16_384, img_size=96, ref_feat_shape=(6, 6))
_SIGLIP = _register_small("small_siglip", vision_transformer.vit_base_patch16_siglip_224, img_size=64)
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
_SIGLIP_TEXT = {
    **_TEXT,
    "context_length": 64,
    "vocab_size": 64,
    "no_causal_mask": True,
    "hf_tokenizer_name": "absent/tokenizer",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "convnext": {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "test_convnext",
            "timm_pool": "",
            "timm_proj": "linear",
            "timm_drop_path": 0.1,
            "image_size": 64,
        },
        "text_cfg": _TEXT,
    },
    "vit": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16},
        "text_cfg": _TEXT,
    },
    "vit14": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 56, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14},
        "text_cfg": _TEXT,
    },
    "eva02": {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": _EVA02,
            "timm_pool": "token",
            "timm_proj": None,
            "image_size": 112,
        },
        "text_cfg": _TEXT,
        "custom_text": True,
    },
    "pe_core": {
        "embed_dim": 32,
        "vision_cfg": {"timm_model_name": _PE_CORE, "timm_pool": "map", "timm_proj": None, "image_size": 96},
        "text_cfg": {**_TEXT, "context_length": 32},
        "custom_text": True,
    },
    "siglip": {
        "embed_dim": 48,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"timm_model_name": _SIGLIP, "timm_pool": "map", "timm_proj": "none", "image_size": 64},
        "text_cfg": _SIGLIP_TEXT,
    },
}
CONFIGS["siglip2"] = {
    **CONFIGS["siglip"],
    "text_cfg": {**_SIGLIP_TEXT, "vocab_size": 320, "act_kwargs": {"approximate": "tanh"}},
}


class TinyCLIP(NamedTuple):
    """open_clip's model in eval mode, its state_dict in a file, and the name of its architecture."""

    model: nn.Module
    file: Path
    architecture: str
    config: dict[str, Any]


@cache
def tiny_open_clip(family: str, folder: Path) -> TinyCLIP:
    """Create a tiny CLIP with random weights in a folder."""
    config = CONFIGS[family]
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**arguments).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.05)
            elif parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)  # layer scales of 1e-5 would hide the blocks
    file, described = folder / f"{family}.pt", folder / f"{family}.json"
    torch.save(model.state_dict(), file)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]} if family.startswith("siglip") else {}
    described.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return TinyCLIP(model, file, f"open_clip:{described}", config)


WORDS = ("a", "photo", "of", "road", "car", "sky", "urban", "grit", "style", "the", "old")
_SPACE = "\u2581"


def _write(folder: Path, tokenizer: tokenizers.Tokenizer, config: dict[str, Any]) -> Path:
    """Write the two files that the hub has for a tokenizer."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def make_unigram(folder: Path) -> Path:
    """Write a tokenizer like timm/ViT-B-16-SigLIP: T5's unigram model, with </s> as end and padding."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (_SPACE, -2.0)]
    vocabulary += [(f"{_SPACE}{word}", -3.0 - index / 10) for index, word in enumerate(WORDS)]
    vocabulary += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    config = {
        "tokenizer_class": "T5Tokenizer", "model_max_length": 64, "extra_ids": 0, "additional_special_tokens": [],
        "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": True,
    }  # fmt: skip
    return _write(folder, tokenizer, config)


def make_gemma(folder: Path) -> Path:
    """Write a tokenizer like timm/ViT-B-16-SigLIP2: Gemma's byte-fallback BPE, with <eos> and the padding <pad>."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = [_SPACE, *"abcdefghijklmnopqrstuvwxyz"]
    merges = [("r", "o"), ("a", "d"), ("ro", "ad"), (_SPACE, "road"), ("c", "a"), ("ca", "r"), (_SPACE, "a")]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges)]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    config = {
        "tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "model_max_length": 64,
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "padding_side": "right",
    }  # fmt: skip
    return _write(folder, tokenizer, config)
