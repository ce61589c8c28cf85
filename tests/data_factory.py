"""Miniature datasets, written to a temporary folder, and configs that read them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from famix.config import add_famix_config
from famix.data import register_datasets
from famix.utils.plugins import load_plugins

__all__ = [
    "forgotten_datasets",
    "TINY_LABEL_IDS",
    "data_config",
    "make_dataset",
    "registered",
    "write_definition",
    "write_image",
    "write_label",
    "write_palette_label",
    "write_panoptic_label",
    "write_synthia_label",
]

TINY_LABEL_IDS = {0: "road", 1: "sky", 2: "car", 9: "ignore"}


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W, 3) or (H, W) uint8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_label(path: Path, ids: np.ndarray) -> Path:
    """Write (H, W) ids, uint8 or uint16, as a grey PNG."""
    return write_image(path, ids)


def write_palette_label(path: Path, ids: np.ndarray) -> Path:
    """Write (H, W) uint8 ids as a PNG with a palette, as GTA5 does; no colour equals its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([(7 * value + 91) % 256 for value in range(256) for _ in range(3)])
    image.save(path)
    return path


def write_synthia_label(path: Path, ids: np.ndarray, instances: np.ndarray) -> Path:
    """Write (H, W) ids as SYNTHIA does: 16 bits, the class in the red channel, the instance in the green one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blue_green_red = np.stack([np.zeros_like(ids), instances, ids], axis=2).astype(np.uint16)
    if not cv2.imwrite(str(path), blue_green_red):
        raise OSError(f"cannot write {path}")
    return path


def write_panoptic_label(path: Path, ids: np.ndarray, segments_file: Path, categories: dict[int, str]) -> Path:
    """Write (H, W) ids of categories as COCO's panoptic format does: a segment of each, and one black pixel.

    Args:
        path: of the PNG.
        ids: the last one, at the bottom right, becomes black, which is no segment.
        segments_file: JSON file, which gets the segments and the names of the categories.
        categories: id -> name.
    """
    # Numbers beyond 8 and 16 bits, and in another order than the categories.
    numbers = {int(label_id): 70_000_003 - 1_000_003 * place for place, label_id in enumerate(np.unique(ids))}
    coded = np.array([numbers[label_id] % (1 << 24) for label_id in ids.ravel().tolist()])
    coded[-1] = 0
    pixels = np.stack([coded % 256, coded // 256 % 256, coded // 65536], axis=1).reshape(*ids.shape, 3)
    segments = [{"id": number % (1 << 24), "category_id": label_id} for label_id, number in numbers.items()]
    segments_file.write_text(
        json.dumps(
            {
                "annotations": [{"file_name": path.name, "segments_info": segments}],
                "categories": [{"id": label_id, "name": name} for label_id, name in categories.items()],
            }
        )
    )
    return write_image(path, pixels.astype(np.uint8))


def write_definition(folder: Path, **changes: object) -> Path:
    """Write the definition of the dataset that `make_dataset` draws; an entry changed to None is left out."""
    entries = {
        "name": "tiny",
        "root": str(folder),
        "images": "images/{split}/{key}.png",
        "labels": "labels/{split}/{key}.png",
        "classes": "cityscapes",
        "label_ids": TINY_LABEL_IDS,
        "splits": {"train": {}, "val": {}},
    } | changes
    file = folder / "definition.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({key: value for key, value in entries.items() if value is not None}))
    return file


def make_dataset(
    folder: Path,
    count: int = 6,
    size: tuple[int, int] = (24, 32),
    folders: Sequence[str] = ("train", "val"),
    **changes: object,
) -> Path:
    """Draw a dataset `tiny` of noise; an image and its label show the same classes.

    Args:
        folder: root of the dataset.
        count: images of a folder; their keys are "a/0", "a/1", ...
        size: (height, width) of the images.
        folders: what {split} stands for; as long as `changes` has no `splits`, the splits, too.
        changes: entries of the definition.

    Returns:
        The definition file.
    """
    rng = np.random.default_rng(0)
    for split in folders:
        for index in range(count):
            ids = rng.choice(np.array(list(TINY_LABEL_IDS), dtype=np.uint8), size)
            # The red channel repeats the id, so that tests see whether image and label stay together.
            pixels = np.stack([ids * 20, rng.integers(0, 255, size), rng.integers(0, 255, size)], axis=2)
            write_image(folder / "images" / split / "a" / f"{index}.png", pixels.astype(np.uint8))
            write_label(folder / "labels" / split / "a" / f"{index}.png", ids)
    return write_definition(folder, **({"splits": {split: {} for split in folders}} | changes))


@contextmanager
def forgotten_datasets() -> Iterator[None]:
    """Forget the datasets that are registered meanwhile."""
    before = set(DatasetCatalog)
    try:
        yield
    finally:
        for name in set(DatasetCatalog) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


@contextmanager
def registered(*files: Path) -> Iterator[None]:
    """Register definition files as a program does, after plugins; forget all of them afterwards."""
    with forgotten_datasets():
        load_plugins()
        register_datasets([str(file) for file in files])
        yield


def data_config(train: Sequence[str] = ("tiny_train",), crop: Sequence[int] = (16, 16)) -> CfgNode:
    """A config for small crops, two images a batch, without worker processes."""
    cfg = get_cfg()
    add_famix_config(cfg)
    cfg.SEED = 5
    cfg.DATASETS.TRAIN = tuple(train)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = list(crop)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.STYLE_MINING.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg
