"""Two tiny networks for the page, and pictures to drop on it."""

from pathlib import Path

import torch
from PIL import Image

from clip_factory import save_tiny_clip
from data_factory import forgotten_datasets, write_definition
from famix_app.networks import Network, load_networks
from inference.inference_factory import make_image, make_run
from run_factory import CONFIG

__all__ = ["make_networks", "write_picture"]


def make_networks(folder: Path) -> list[Network]:
    """Return two networks of the same CLIP whose predictions differ."""
    definition = write_definition(folder / "data", splits={"train": {}, "val": {}, "night": {}})
    runs = [make_run(folder / name, CONFIG, definition=definition) for name in ("plain", "styled")]
    for run in runs:
        save_tiny_clip(run.parent / "clip.pt")  # which make_run removes
    with forgotten_datasets():
        networks = load_networks(runs, "cpu")
    with torch.no_grad():
        for weight in networks[1].loaded.model.sem_seg_head.parameters():
            weight.mul_(-1)
    return networks


def write_picture(path: Path, height: int = 72, width: int = 112, seed: int = 0) -> Path:
    """Write a picture file."""
    Image.fromarray(make_image(height, width, seed)).save(path)
    return path
