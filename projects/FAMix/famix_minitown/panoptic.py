"""The town's panoptic data sets: the same images, with PNGs of segments and a JSON file in COCO's format."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from famix.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS
from famix.data.definition import PanopticDefinition, SplitDefinition
from famix.data.panoptic.files import PanopticFiles
from famix.data.panoptic.segments import encode_ids
from famix.utils.errors import DatasetError
from famix_minitown.cache import generated_folder, make_once, town_folder
from famix_minitown.canvas import TrainId
from famix_minitown.splits import SPLITS

__all__ = ["TOWN_THINGS", "MinitownPanopticFiles", "minitown_panoptic_files", "write_panoptic"]

TOWN_THINGS = (int(TrainId.PERSON), int(TrainId.CAR))
"""Train ids of the town's classes with instances."""

_JSON, _PNGS = "panoptic.json", "panoptic"
_INSTANCES_PER_CLASS = 1000  # of Cityscapes' instance ids: label id * 1000 + number, or the label id of stuff
_SUFFIX = "_gtFine_instanceIds.png"
_COMPRESSION = 3


@dataclass(frozen=True)
class MinitownPanopticFiles(PanopticFiles):
    """The files of a panoptic data set of the town, which are made when they are first asked for."""

    @property
    def root(self) -> str:
        """Folder of all data sets of the town."""
        return str(town_folder())

    def prepare(self) -> None:
        """Make the images, then the panoptic labels, unless they are there.

        Raises:
            DatasetError: they cannot be made.
        """
        scenes = SPLITS[self.split.name]
        images = generated_folder(f"{self.definition.name}_{self.split.name}", scenes)
        made = make_once(
            self.name, f"panoptic labels of {scenes.count} images", lambda folder: write_panoptic(images, folder)
        )
        if not (made / _JSON).is_file():
            raise DatasetError(
                f"Dataset '{self.name}': {made} has no {_JSON}. Delete the folder: it is made anew then."
            )


def minitown_panoptic_files() -> list[MinitownPanopticFiles]:
    """All panoptic data sets of the town, to be registered; nothing is made yet."""
    definition = PanopticDefinition(
        name="minitown",
        root="minitown",  # stands for a folder of the cache
        images="minitown_{split}/leftImg8bit/{key}_leftImg8bit.png",
        panoptic_root=f"minitown_{{split}}_panoptic/{_PNGS}",
        panoptic_json=f"minitown_{{split}}_panoptic/{_JSON}",
        splits=tuple(SplitDefinition(name, name) for name in SPLITS),
        things=TOWN_THINGS,
        categories={label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)},
        source="FAMix's own minitown",
    )
    return [MinitownPanopticFiles(definition, split) for split in definition.splits]


def write_panoptic(images: Path, folder: Path) -> None:
    """Write the panoptic labels of a tree as `write_tree` writes it.

    The ids of segments are Cityscapes' instance ids, those of categories its label ids, as its own panoptic files have
    them. The same tree gives the same bytes.

    Args:
        images: root of the tree.
        folder: gets panoptic.json and, below panoptic/, a PNG for every image.

    Raises:
        OSError: a file cannot be read or written.
    """
    (folder / _PNGS).mkdir(parents=True)
    sources = sorted(images.glob(f"gtFine/*/*/*{_SUFFIX}"))
    annotations = []
    for source in tqdm(sources, desc=f"panoptic labels: {images.name}", unit="image", disable=None):
        with Image.open(source) as picture:
            ids = np.asarray(picture).astype(np.uint32)
        image_id = source.name.removesuffix(_SUFFIX)
        file_name = f"{image_id}_panoptic.png"
        Image.fromarray(encode_ids(ids)).save(folder / _PNGS / file_name, compress_level=_COMPRESSION)
        annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": _segments(ids)})
    content = {
        "images": [
            {"id": entry["image_id"], "file_name": f"{entry['image_id']}_leftImg8bit.png"} for entry in annotations
        ],
        "annotations": annotations,
        "categories": _categories(),
    }
    (folder / _JSON).write_text(json.dumps(content))


def _segments(ids: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for segment_id in np.unique(ids).tolist():
        rows, columns = np.nonzero(ids == segment_id)
        left, top = int(columns.min()), int(rows.min())
        found.append(
            {
                "id": segment_id,
                "category_id": segment_id // _INSTANCES_PER_CLASS or segment_id,
                "iscrowd": 0,
                "area": len(rows),
                "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
            }
        )
    return found


def _categories() -> list[dict[str, Any]]:
    return [
        {"id": label_id, "name": entry.name, "isthing": int(train_id in TOWN_THINGS), "color": list(entry.color)}
        for train_id, (label_id, entry) in enumerate(zip(CITYSCAPES_LABEL_IDS, CITYSCAPES_CLASSES, strict=True))
    ]
