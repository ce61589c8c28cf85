"""The town's datasets: scenes, cache, panoptic labels, and the registration that famix loads as a plugin.

A dataset is rendered when its files are first listed, and cached in $FAMIX_CACHE.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from iopath.common.file_io import file_lock
from PIL import Image
from tqdm import tqdm

from famix.clip import register_clip_weights
from famix.clip.open_clip.models import register_model_configs
from famix.data import register_split
from famix.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS
from famix.data.definition import DatasetDefinition, LabelEncoding, Layout, PanopticDefinition, SplitDefinition
from famix.data.layout.split_files import DatasetRecord, SplitFiles
from famix.data.panoptic.files import PanopticFiles
from famix.data.panoptic.segments import encode_ids
from famix.utils.errors import DatasetError
from famix.utils.paths import local_path
from famix_minitown.rendering.canvas import TrainId
from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.rendering.scene import SIZE
from famix_minitown.writer import INSTANCES_PER_CLASS, INSTANCES_SUFFIX, PNG_COMPRESSION, write_tree

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of the cache path, incremented with every change to the rendered pixels or the file format."""

CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED = 100_000, 200_000
"""First seeds of the scenes that the town's CLIP is trained and validated on."""

_HERE = Path(__file__).parent
CLIP_FILE = _HERE / "weights/clip.safetensors"  # MODEL.CLIP.WEIGHTS minitown
CLIP_ARCHITECTURES = {"resnet": "", "convnext": "open_clip:minitown-convnext", "vit": "open_clip:minitown-vit"}
"""Family of a CLIP of the town -> MODEL.CLIP.ARCHITECTURE; "" is determined by the weights."""
_THINGS = (int(TrainId.PERSON), int(TrainId.CAR))
_IGNORE_LABEL = 255
_PANOPTIC_JSON, _PANOPTIC_PNGS = "panoptic.json", "panoptic"


@dataclass(frozen=True)
class MinitownSplit:
    """Scenes of one dataset."""

    condition: str  # one of CONDITIONS or DEVELOPMENT_CONDITIONS
    folder: str  # folder of the split in Cityscapes' layout, e.g. "val"
    first_seed: int
    count: int

    @property
    def seeds(self) -> range:
        """Seeds of the scenes."""
        return range(self.first_seed, self.first_seed + self.count)


SPLITS: Mapping[str, MinitownSplit] = MappingProxyType(
    {"train": MinitownSplit(CONDITIONS[0], "train", 0, 500)}
    | {f"{name}_val": MinitownSplit(name, "val", 50_000, 50) for name in CONDITIONS}
    | {f"{name}_dev": MinitownSplit(name, "dev", 60_000, 50) for name in (CONDITIONS[0], *DEVELOPMENT_CONDITIONS)}
    # Only for the oracle, never for a method that must not use target images.
    | {f"{name}_train": MinitownSplit(name, "train", 70_000, 100) for name in CONDITIONS[1:]}
)
"""Dataset name without "minitown_" -> scenes. Each purpose (train, val for reporting, dev for tuning) uses the same
scenes in all conditions, and no two purposes share a scene."""


def register() -> None:
    """Register the town's datasets and its CLIPs. This is the entry point for `famix.utils.plugins.load_plugins`.

    Raises:
        DatasetError: one of the names belongs to a different dataset.
    """
    register_clip_weights("minitown", CLIP_FILE)
    register_model_configs(_HERE / "models")
    for family in ("convnext", "vit"):
        register_clip_weights(f"minitown_{family}", _HERE / f"weights/{family}.safetensors", CLIP_ARCHITECTURES[family])
    train_ids = {index: index for index in range(len(CITYSCAPES_CLASSES))} | {_IGNORE_LABEL: _IGNORE_LABEL}
    images, labels = "leftImg8bit/{split}/{key}_leftImg8bit.png", "gtFine/{split}/{key}_gtFine_labelTrainIds.png"
    definition = DatasetDefinition(
        name="minitown",
        root="minitown",  # every split has its own folder in the cache, see MinitownFiles
        layouts=(Layout(images, labels, LabelEncoding(train_ids)),),
        splits=tuple(SplitDefinition(name, scenes.folder) for name, scenes in SPLITS.items()),
        source="FAMix's own minitown",
    )
    panoptic = PanopticDefinition(
        name="minitown",
        root="minitown",
        images="minitown_{split}/leftImg8bit/{key}_leftImg8bit.png",
        panoptic_root=f"minitown_{{split}}_panoptic/{_PANOPTIC_PNGS}",
        panoptic_json=f"minitown_{{split}}_panoptic/{_PANOPTIC_JSON}",
        splits=tuple(SplitDefinition(name, name) for name in SPLITS),
        things=_THINGS,
        categories={label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)},
        source=definition.source,
    )
    for split in definition.splits:
        register_split(MinitownFiles(definition, split))
    for split in panoptic.splits:
        register_split(MinitownPanopticFiles(panoptic, split))


@dataclass(frozen=True)
class MinitownFiles(SplitFiles):
    """Files of a town dataset."""

    def __call__(self) -> list[DatasetRecord]:
        """List the image-label pairs of the split by seed, rendering them first if needed.

        Raises:
            DatasetError: the files cannot be written, or some are missing.
        """
        scenes = SPLITS[self.split.name]
        root = generated_folder(self.name, scenes)
        remedy = f"Delete '{root}' and run the command again to regenerate it."
        try:
            records = SplitFiles(replace(self.definition, root=str(root)), self.split)()
        except DatasetError as error:
            raise DatasetError(f"{error} {remedy}") from error
        if len(records) != scenes.count:
            raise DatasetError(
                f"Dataset '{self.name}' contains {len(records)} images instead of {scenes.count}. {remedy}"
            )
        return records


@dataclass(frozen=True)
class MinitownPanopticFiles(PanopticFiles):
    """Files of a panoptic town dataset."""

    @property
    def root(self) -> str:
        """Folder of all town datasets."""
        return str(town_folder())

    def prepare(self) -> None:
        """Render the images and write the panoptic labels if needed.

        Raises:
            DatasetError: the files cannot be written, or some are missing.
        """
        scenes = SPLITS[self.split.name]
        images = generated_folder(f"{self.definition.name}_{self.split.name}", scenes)
        content = f"panoptic labels of {scenes.count} images"
        folder = _make_once(self.name, content, lambda folder: write_panoptic(images, folder))
        if not (folder / _PANOPTIC_JSON).is_file():
            raise DatasetError(
                f"Dataset '{self.name}' lacks '{folder / _PANOPTIC_JSON}'. Delete '{folder}' and run the command "
                "again to regenerate it."
            )


def cache_folder() -> Path:
    """Return the absolute path of the cache folder according to the current environment variables.

    Raises:
        ConfigError: $FAMIX_CACHE refers to an unset environment variable.
    """
    folder = os.environ.get("FAMIX_CACHE") or os.path.join("~", ".cache", "famix")
    return Path(os.path.abspath(local_path(folder, "$FAMIX_CACHE")))


def town_folder() -> Path:
    """Return the folder for all datasets of this town version. It may not exist yet."""
    return cache_folder() / "minitown" / f"v{FORMAT_VERSION}-{SIZE[0]}x{SIZE[1]}"


def generated_folder(name: str, scenes: MinitownSplit) -> Path:
    """Return the folder of a dataset in the layout of `write_tree`, rendering it if needed.

    Raises:
        DatasetError: the folder cannot be written.
    """
    content = f"{scenes.count} images"
    return _make_once(name, content, lambda folder: write_tree(folder, scenes.folder, [scenes.condition], scenes.seeds))


def _make_once(name: str, content: str, write: Callable[[Path], None]) -> Path:
    """Return a cache folder. The first process that requests it writes it atomically."""
    folder = town_folder() / name
    if folder.is_dir():
        return folder  # no lock, so that a finished cache may be read-only
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if folder.is_dir():  # another process has written it in the meantime
                return folder
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process: the lock shows that it has ended
            logger.info(f"Generating {content} in {folder}. This happens only once and takes up to a minute...")
            start = time.perf_counter()
            try:
                write(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            logger.info(f"Generated {content} in {time.perf_counter() - start:.1f} s.")
    except OSError as error:
        raise DatasetError(
            f"Dataset '{name}', which is rendered on first use, cannot be written to '{folder}' ({error}). Set $FAMIX_CACHE "
            "to a writable folder with free space."
        ) from error
    return folder


def write_panoptic(images: Path, folder: Path) -> None:
    """Write the panoptic labels for a tree written by `write_tree`. The same tree yields the same bytes.

    As in Cityscapes' panoptic files, segments use instance ids and categories use label ids.

    Args:
        images: root of the tree.
        folder: output folder for panoptic.json and, in panoptic/, one PNG per image.

    Raises:
        OSError: a file cannot be read or written.
    """
    (folder / _PANOPTIC_PNGS).mkdir(parents=True)
    sources = sorted(images.glob(f"gtFine/*/*/*_{INSTANCES_SUFFIX}.png"))
    listed, annotations = [], []
    for source in tqdm(sources, desc=f"panoptic labels: {images.name}", unit="image", disable=None):
        with Image.open(source) as image:
            ids = np.asarray(image).astype(np.uint32)
        image_id = source.name.removesuffix(f"_{INSTANCES_SUFFIX}.png")
        file_name = f"{image_id}_panoptic.png"
        Image.fromarray(encode_ids(ids)).save(folder / _PANOPTIC_PNGS / file_name, compress_level=PNG_COMPRESSION)
        segments = []
        for segment_id in np.unique(ids).tolist():
            rows, columns = np.nonzero(ids == segment_id)
            left, top = int(columns.min()), int(rows.min())
            segments.append(
                {
                    "id": segment_id,
                    "category_id": segment_id // INSTANCES_PER_CLASS or segment_id,
                    "iscrowd": 0,
                    "area": len(rows),
                    "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                }
            )
        listed.append({"id": image_id, "file_name": f"{image_id}_leftImg8bit.png"})
        annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
    categories = [
        {"id": label_id, "name": entry.name, "isthing": int(train_id in _THINGS), "color": list(entry.color)}
        for train_id, (label_id, entry) in enumerate(zip(CITYSCAPES_LABEL_IDS, CITYSCAPES_CLASSES, strict=True))
    ]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / _PANOPTIC_JSON).write_text(json.dumps(content))
