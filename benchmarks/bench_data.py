"""Image and label files for the speed benchmark: smooth noise, which compresses about as street scenes do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from famix.data import register_datasets

__all__ = ["registered_images", "write_images"]

NAME, SPLIT = "speed_benchmark", "all"


def write_images(folder: Path, count: int, size: tuple[int, int], seed: int) -> Path:
    """Write images with labels of four classes.

    Args:
        folder: for the files, does not exist yet.
        count: images.
        size: (height, width).
        seed: of the pixels.

    Returns:
        The data set's definition.
    """
    generator = torch.Generator().manual_seed(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        Image.fromarray(_pixels(size, generator)).save(folder / f"images/{index}.png")
        Image.fromarray(_labels(size)).save(folder / f"labels/{index}.png")
    definition = folder / "definition.yaml"
    entries = {
        "name": NAME,
        "root": str(folder),
        "images": "images/{key}.png",
        "labels": "labels/{key}.png",
        "classes": "cityscapes",
        "label_ids": "identity",
        "splits": {SPLIT: {}},
    }
    definition.write_text(yaml.safe_dump(entries))
    return definition


@contextmanager
def registered_images(definition: Path) -> Iterator[str]:
    """While it is open, the data set of a definition is registered; gives its name."""
    before = set(DatasetCatalog)
    register_datasets([str(definition)])
    try:
        yield f"{NAME}_{SPLIT}"
    finally:
        for name in set(DatasetCatalog) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


def _pixels(size: tuple[int, int], generator: torch.Generator) -> np.ndarray:
    height, width = size
    noise = [torch.randn(1, 3, height // k + 1, width // k + 1, generator=generator) for k in (64, 16, 4)]
    smooth = sum((F.interpolate(x, size, mode="bilinear") for x in noise), torch.zeros(1, 3, *size))
    return (smooth[0].permute(1, 2, 0) * 40 + 120).clamp(0, 255).byte().numpy()


def _labels(size: tuple[int, int]) -> np.ndarray:
    """Four classes, side by side and one above the other, so that every crop's patches show all of them."""
    rows, columns = np.indices(size) * 8 // np.array(size)[:, None, None]
    return ((rows % 2) * 2 + columns % 2).astype(np.uint8)
