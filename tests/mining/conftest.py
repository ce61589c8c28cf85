from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_factory import tiny_clip
from famix.clip import CLIPResNet
from famix.mining import MiningSettings, PromptTable, StyleMiner


@pytest.fixture(scope="session")
def clip() -> CLIPResNet:
    """A tiny CLIP for images of 64 x 64, whose res2 has 32 channels and 16 x 16 cells."""
    return CLIPResNet.from_state_dict(tiny_clip().state_dict())


@pytest.fixture
def make_miner(clip: CLIPResNet) -> Callable[..., StyleMiner]:
    """Make a StyleMiner of three classes and a grid of 2 x 3, with settings by keyword."""

    def make(basis: Tensor | None = None, **settings: Any) -> StyleMiner:
        pixels = {"pixel_mean": (120.0, 115.0, 100.0), "pixel_std": (60.0, 60.0, 70.0)}
        prompts = PromptTable(("road", "sky", "car"), ("Urban Grit style", "Foggy style", "Pop Art style"))
        chosen = MiningSettings(**{**pixels, "grid": (2, 3), "steps": 2, **settings})
        return StyleMiner(clip=clip, prompts=prompts, encode_prompts=embed, settings=chosen, basis=basis)

    return make


def embed(texts: Sequence[str]) -> Tensor:
    """Return a random direction for each text, in place of a text tower."""
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(crc32(text.encode()))) for text in texts]
    return F.normalize(torch.stack(rows), dim=1)


@pytest.fixture
def make_samples() -> Callable[..., list[dict[str, Any]]]:
    """Make samples of random pixels with one label per patch."""

    def make(*patch_labels: Sequence[Sequence[int]], seed: int = 0, size: tuple[int, int] = (64, 96)) -> list[dict]:
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for rows in patch_labels:
            sem_seg = torch.zeros(size, dtype=torch.int64)
            for band, row in zip(sem_seg.tensor_split(len(rows), 0), rows, strict=True):
                for patch, label in zip(band.tensor_split(len(row), 1), row, strict=True):
                    patch.fill_(label)
            image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
            samples.append({"image": image, "sem_seg": sem_seg})
        return samples

    return make
