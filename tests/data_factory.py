"""Miniature datasets, written to a temporary folder, and configs that read them."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
from famix.data.panoptic.segments import encode_ids
from famix.utils.plugins import load_plugins

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
    """Write (H, W) uint8 ids as a PNG with a palette, as in GTA5; no color equals its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([(7 * value + 91) % 256 for value in range(256) for _ in range(3)])
    image.save(path)
    return path


def write_synthia_label(path: Path, ids: np.ndarray, instances: np.ndarray) -> Path:
    """Write (H, W) ids as in SYNTHIA: 16 bits, the class in the red channel, the instance in the green one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blue_green_red = np.stack([np.zeros_like(ids), instances, ids], axis=2).astype(np.uint16)
    if not cv2.imwrite(str(path), blue_green_red):
        raise OSError(f"cannot write {path}")
    return path


def write_panoptic_label(path: Path, ids: np.ndarray, segments_file: Path, categories: dict[int, str]) -> Path:
    """Write category ids (H, W) in COCO's panoptic format, with one segment per category, and the JSON file.

    The last pixel, at the bottom right, becomes black, which is outside of all segments.
    """
    # Ids beyond 8 and 16 bits, in a different order from the categories.
    found = np.unique(ids)
    numbers = (70_000_003 - 1_000_003 * np.arange(len(found))) % (1 << 24)
    coded = numbers[np.searchsorted(found, ids)]
    coded[-1, -1] = 0
    segments = [
        {"id": number, "category_id": key} for number, key in zip(numbers.tolist(), found.tolist(), strict=True)
    ]
    annotations = [{"file_name": path.name, "segments_info": segments}]
    names = [{"id": label_id, "name": name} for label_id, name in categories.items()]
    segments_file.write_text(json.dumps({"annotations": annotations, "categories": names}))
    return write_image(path, encode_ids(coded))


def write_definition(folder: Path, **changes: object) -> Path:
    """Write the definition of `make_dataset`'s dataset; an entry changed to None is left out."""
    entries = {
        "images": "images/{split}/{key}.png",
        "labels": "labels/{split}/{key}.png",
        "label_ids": TINY_LABEL_IDS,
        "splits": {"train": {}, "val": {}},
    }
    return write_entries(folder / "definition.yaml", {**entries, **changes})


def write_entries(file: Path, entries: Mapping[str, object]) -> Path:
    """Write a definition of the dataset `tiny` in its folder; an entry of None is left out."""
    entries = {"name": "tiny", "root": str(file.parent), "classes": "cityscapes", **entries}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({key: value for key, value in entries.items() if value is not None}))
    return file


def make_dataset(
    folder: Path,
    count: int = 6,
    size: tuple[int, int] = (24, 32),
    folders: Sequence[str] = ("train", "val"),
    **changes: object,
) -> Path:
    """Draw the dataset `tiny` of noise with the keys "a/0", "a/1", ... in each folder, and return its definition file.

    Args:
        folder: root of the dataset.
        count: images of a folder.
        size: (height, width) of the images.
        folders: values of {split}, and the splits unless `changes` has other ones.
        changes: entries of the definition.
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
    """Forget the datasets that are registered in the block."""
    before = set(DatasetCatalog)
    try:
        yield
    finally:
        for name in set(DatasetCatalog) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


@contextmanager
def registered(*files: Path) -> Iterator[None]:
    """Register definition files like a program, after plugins; forget all of them afterwards."""
    with forgotten_datasets():
        load_plugins()
        register_datasets([str(file) for file in files])
        yield


def data_config(train: Sequence[str] = ("tiny_train",), crop: Sequence[int] = (16, 16)) -> CfgNode:
    """Return a config for small crops, two images per batch, without worker processes."""
    cfg = get_cfg()
    add_famix_config(cfg)
    cfg.SEED = 5
    cfg.DATASETS.TRAIN = tuple(train)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CROP.merge_from_other_cfg(CfgNode({"ENABLED": True, "TYPE": "absolute", "SIZE": list(crop)}))
    cfg.SOLVER.IMS_PER_BATCH = cfg.STYLE_MINING.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg
