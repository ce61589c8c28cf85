"""Style banks for the tests of reports."""

import json
from typing import Any

import torch

from famix.style import StyleBank

CLASSES = ("road", "sky", "traffic sign")
STYLES = ("foggy", "night")


def make_bank(count: int = 12, channels: int = 4, seed: int = 0, **metadata: Any) -> StyleBank:
    """Build a bank of random styles as mining does; `metadata` overrides entries, non-strings as JSON, None removes one."""
    entries: dict[str, Any] = {
        "clip_hash": "ab" * 32, "stage": "res2", "grid": [3, 3], "class_names": CLASSES,
        "prompts": [f"{style} {name}" for name in CLASSES for style in STYLES] + ["photo"],
        "templates": ["a {}."], "source": ["tiny_train"], "seed": str(seed), "lr": "1.0",
    } | metadata  # fmt: skip
    bank = StyleBank({k: v if isinstance(v, str) else json.dumps(v) for k, v in entries.items() if v is not None})
    generator = torch.Generator().manual_seed(seed)
    class_ids, batches = torch.arange(count) % len(CLASSES), torch.arange(count) // len(CLASSES)
    mean, std = torch.rand(2, count, channels, generator=generator)
    annotations = {
        "batch_id": batches,
        "prompt_id": class_ids * len(STYLES) + batches % len(STYLES),
        "initial_loss": torch.linspace(0.8, 0.6, count),
        "final_loss": torch.linspace(0.2, 0.4, count),
    }
    bank.add(class_ids, mean, std + 0.5, annotations)
    return bank


def measured_bank(*class_ids: int, channels: int = 4, **metadata: Any) -> StyleBank:
    """Build a bank without prompts and losses, as measuring does."""
    bank = StyleBank({key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()})
    bank.add(torch.tensor(class_ids), *torch.rand(2, len(class_ids), channels))
    return bank
