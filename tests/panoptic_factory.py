"""Miniature panoptic datasets and runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_factory import save_tiny_clip
from data_factory import write_entries, write_image
from famix.data.panoptic.segments import encode_ids
from run_factory import ROOT, Workspace

CONFIGS = ROOT / "projects/FAMix/configs/Tiny"
SIZE = (72, 112)
SPLITS = {"train": 6, "val": 2, "night": 2}
CATEGORIES = {7: ("road", 0), 23: ("sky", 0), 24: ("person", 1), 26: ("car", 1)}  # id -> name, whether it is a thing
ROAD, SKY, PERSON, FIRST_CAR, SECOND_CAR = 7, 23, 24_000, 26_000, 26_001  # ids of segments; 0 is unlabeled
_COLORS = {ROAD: (90, 90, 95), SKY: (120, 170, 230), PERSON: (30, 200, 60)}
_COLORS |= {FIRST_CAR: (200, 40, 40), SECOND_CAR: (180, 20, 90)}


def make_panoptic(folder: Path, splits: dict[str, int] | None = None) -> Path:
    """Draw images of sky above road with two adjacent cars, a person in every other image, and an unlabeled rim.

    Args:
        folder: root of the dataset; the definition file of tiny_<split>_panoptic is returned.
        splits: name -> number of images.
    """
    rng = np.random.default_rng(0)
    splits = splits or SPLITS
    for split, count in splits.items():
        labels = {}
        for index in range(count):
            ids = np.full(SIZE, ROAD)
            ids[: int(rng.integers(28, 40))] = SKY
            left = int(rng.integers(0, 50))
            ids[34:60, left : left + 30] = FIRST_CAR
            ids[36:58, left + 30 : left + 56] = SECOND_CAR
            if index % 2 == 0:
                ids[20:50, 100:108] = PERSON
            ids[-6:] = 0
            labels[f"{index}"] = ids
            colors = np.zeros((*SIZE, 3))
            for segment, color in _COLORS.items():
                colors[ids == segment] = color
            light = 0.3 if split == "night" else 1.0
            pixels = (colors * light + rng.normal(0, 6, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
            write_image(folder / "images" / split / f"{index}.png", pixels)
        write_annotations(folder, split, labels)
    return write_recipe(folder, splits=list(splits))


def write_annotations(
    folder: Path, split: str, labels: dict[str, np.ndarray], crowds: Sequence[int] = (), **changes: Any
) -> Path:
    """Write PNGs of ids and their JSON file, with segments numbered like in Cityscapes.

    Args:
        folder: root of the dataset.
        split: name of the files.
        labels: image -> (H, W) ids.
        crowds: ids of crowds.
        changes: entries of the JSON file.
    """
    annotations = []
    for name, ids in labels.items():
        write_image(folder / "panoptic" / split / f"{name}.png", encode_ids(np.asarray(ids)))
        segments = [
            {"id": segment, "category_id": segment // 1000 or segment, "iscrowd": int(segment in crowds)}
            for segment in np.unique(ids).tolist()
            if segment
        ]
        annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
    categories = [{"id": key, "name": name, "isthing": thing} for key, (name, thing) in CATEGORIES.items()]
    file = folder / "annotations" / f"panoptic_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"annotations": annotations, "categories": categories, **changes}))
    return file


def write_recipe(folder: Path, splits: Sequence[str] | Mapping[str, Any] = ("train",), **changes: Any) -> Path:
    """Write the definition file of `make_panoptic`'s dataset; an entry changed to None is left out."""
    entries = {
        "images": "images/{split}/{key}.png",
        "panoptic_root": "panoptic/{split}",
        "panoptic_json": "annotations/panoptic_{split}.json",
        "splits": splits if isinstance(splits, Mapping) else {split: {} for split in splits},
    }
    return write_entries(folder / "panoptic.yaml", {**entries, **changes})


class PanopticWorkspace(Workspace):
    """A folder with a panoptic dataset and a CLIP for runs of a config of configs/Tiny."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = CONFIGS / config
        self.definition = make_panoptic(folder / "data")
        self.clip = save_tiny_clip(folder / "clip.pt")

    def arguments(self, output: str, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
        """Return the command line of a run that writes to folder / output."""
        arguments = super().arguments(output, *options, flags=flags)
        arguments[arguments.index("--config-file") + 1] = str(self.config)
        return arguments
