"""Style banks for the tests of reports."""

import json
from typing import Any

import torch

from famix.style import StyleBank

__all__ = ["CLASSES", "STYLES", "make_bank"]

CLASSES = ("road", "sky", "traffic sign")
STYLES = ("foggy", "night")


def make_bank(count: int = 12, channels: int = 4, seed: int = 0, **metadata: Any) -> StyleBank:
    """Build a bank of random styles as mining does; `metadata` overrides entries, non-strings as JSON, None removes one."""
    prompts = [f"{style} {name}" for name in CLASSES for style in STYLES] + ["photo"]
    entries: dict[str, Any] = {
        "clip_hash": "ab" * 32, "stage": "res2", "grid": [3, 3], "class_names": CLASSES, "prompts": prompts,
        "templates": ["a {}."], "source": ["tiny_train"], "seed": str(seed), "lr": "1.0",
    } | metadata  # fmt: skip
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in entries.items()
        if value is not None
    }
    generator = torch.Generator().manual_seed(seed)
    class_ids = torch.arange(count) % len(CLASSES)
    prompt_ids = class_ids * len(STYLES) + torch.arange(count) // len(CLASSES) % len(STYLES)
    bank = StyleBank(texts)
    bank.add(
        class_ids,
        torch.rand(count, channels, generator=generator),
        torch.rand(count, channels, generator=generator) + 0.5,
        {
            "batch_id": torch.arange(count) // len(CLASSES),
            "prompt_id": prompt_ids,
            "initial_loss": torch.linspace(0.8, 0.6, count),
            "final_loss": torch.linspace(0.2, 0.4, count),
        },
    )
    return bank
