"""Tiny CLIPs for tests, in memory and in the file forms that real ones come in.

The text tower keeps clip's whole vocabulary, so a file has about 13 MB; the image tower is what is small.
"""

from pathlib import Path

from famix.clip.architecture import CLIPArchitecture
from famix.clip.export import CLIPFileForm, random_clip, save_clip
from famix.clip.openai import CLIP


def tiny_clip(
    layers: tuple[int, ...] = (1, 1, 1, 1),
    width: int = 8,
    resolution: int = 64,
    embed_dim: int = 16,
    seed: int = 0,
) -> CLIP:
    """Make a float32 CLIP in eval mode whose batch norms are random too, so that every residual branch counts.

    Its `state_dict()` is what `CLIPResNet.from_state_dict` and `PromptEncoder` take; `encode_image` and `encode_text`
    are the references to compare them with.
    """
    architecture = CLIPArchitecture(layers, width, embed_dim, resolution)
    return random_clip(architecture, seed=seed, text_width=64, text_layers=2, random_norms=True)


def save_tiny_clip(
    path: str | Path,
    form: CLIPFileForm = "state_dict",
    *,
    layers: tuple[int, ...] = (1, 1, 1, 1),
    width: int = 8,
    resolution: int = 64,
    embed_dim: int = 16,
    seed: int = 0,
) -> Path:
    """Write `tiny_clip(...)`, rounded to half precision, to `path`. All forms hold the same values."""
    save_clip(tiny_clip(layers, width, resolution, embed_dim, seed), path, form)
    return Path(path)
