"""Tiny CLIPs of open_clip's families: open_clip's own model, its weights file, and the value of MODEL.CLIP.ARCHITECTURE."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import nn

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
_SIGLIP_TEXT = {
    **_TEXT,
    "context_length": 16,
    "vocab_size": 64,
    "no_causal_mask": True,
    "hf_tokenizer_name": "absent/tokenizer",
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
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": None,
            "image_size": 224,
        },
        "text_cfg": _TEXT,
        "custom_text": True,
    },
    "siglip": {
        "embed_dim": 96,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": _SIGLIP_TEXT,
    },
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
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]} if family == "siglip" else {}
    described.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return TinyCLIP(model, file, f"open_clip:{described}", config)
