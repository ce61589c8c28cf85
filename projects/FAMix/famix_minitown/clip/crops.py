"""Square crops of street scenes with many looks, labeled with their classes, for training a small CLIP.

Several processes render the crop file once. A description next to it guards against reuse with different settings.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from famix.data import CITYSCAPES_CLASSES, LabelReader, get_dataset_dicts, get_label_readers, label_file_of, read_image
from famix.io import read_json
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.seeding import derive_seed
from famix_minitown.clip.captions import MOST_LOOKS, draw_looks
from famix_minitown.datasets import FORMAT_VERSION
from famix_minitown.rendering.looks import LOOKS, NO_CLASS, Looks, apply_looks, scene_of_image
from famix_minitown.rendering.scene import SIZE, Scene, render_scene

logger = logging.getLogger(__name__)

CROP_SIDE = 64
LOOK_NAMES = tuple(LOOKS)
RECORD = np.dtype(
    [
        ("image", np.uint8, (CROP_SIDE, CROP_SIDE, 3)),  # RGB
        ("label", np.uint8),  # train id of the class
        ("looks", np.int8, (MOST_LOOKS,)),  # indices in LOOK_NAMES, or -1
        ("strengths", np.float32, (MOST_LOOKS,)),
    ]
)

_NO_LOOK = -1
_WINDOW, _SMALL_WINDOW = (32, 128), (20, 56)  # range of sides in pixels, in an image of 192 rows
_SMALL_CLASSES = ("wall", "pole", "traffic sign", "traffic light", "person", "rider", "motorcycle", "bicycle")
_MIN_SHARE = 0.12  # minimum share of a crop that its class must fill
_MAX_DESCRIPTION = 1 << 20  # bytes


@dataclass(frozen=True)
class TownSource:
    """Scenes of the town: `count` consecutive seeds that start at `first`."""

    first: int
    count: int
    class_names: tuple[str, ...] = field(default=tuple(entry.name for entry in CITYSCAPES_CLASSES), init=False)

    @property
    def identity(self) -> str:
        """Seeds and version of the town."""
        return f"town v{FORMAT_VERSION} {self.first} + {self.count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return render_scene(self.first + index)


@dataclass(frozen=True)
class DatasetSource:
    """Images of a labeled dataset, scaled to the height of the town's images, without depth."""

    name: str
    class_names: tuple[str, ...]
    files: tuple[tuple[str, str], ...]  # image and label of each scene
    reader: LabelReader

    @classmethod
    def registered(cls, name: str) -> "DatasetSource":
        """Return the source of a registered dataset.

        Raises:
            DatasetError: the dataset is unknown, or its files are missing.
        """
        files = tuple((entry["file_name"], label_file_of(entry)) for entry in get_dataset_dicts([name]))
        return cls(name, tuple(MetadataCatalog.get(name).stuff_classes), files, get_label_readers([name])[name])

    def split(self, every: int) -> tuple["DatasetSource", "DatasetSource"]:
        """Divide into scenes for training and for validation, which gets every `every`-th scene.

        Raises:
            DatasetError: the dataset has fewer than two images.
        """
        if len(self.files) < 2:
            raise DatasetError(
                f"{self.name} must have at least 2 images, for training and validation, got {len(self.files)}. Choose a "
                "larger dataset."
            )
        rest = tuple(pair for place, pair in enumerate(self.files) if place % every)
        return replace(self, files=rest), replace(self, files=self.files[::every])

    @property
    def identity(self) -> str:
        """Name of the dataset, its number of images, and name of the first image."""
        return f"{self.name} {len(self.files)} {Path(self.files[0][0]).name}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scene:
        image_file, label_file = self.files[index]
        image, labels = read_image(image_file), self.reader.read(label_file)
        labels = np.where(labels == self.reader.ignore_label, np.uint8(NO_CLASS), labels)
        size = (round(image.shape[1] * SIZE[0] / image.shape[0]), SIZE[0])
        scene = scene_of_image(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        small = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
        if (small == NO_CLASS).all():
            raise DatasetError(
                f"Label file '{label_file}' contains only ignored pixels at {size[0]} x {size[1]}. Remove the image "
                f"from {self.name}, or correct its labels."
            )
        return replace(scene, labels=small, seed=index)


CropSource = TownSource | DatasetSource
"""Labeled scenes to cut crops from. Sources with different scenes differ in `identity`."""


def with_cityscapes_ids(scene: Scene, class_names: tuple[str, ...]) -> Scene:
    """Return a scene with Cityscapes' train ids, which effects use to find sky and road.

    Args:
        scene: scene whose labels are indices into `class_names`, or NO_CLASS.
        class_names: class names of its source. Classes that Cityscapes lacks become NO_CLASS.
    """
    return replace(scene, labels=_cityscapes_ids(class_names)[scene.labels])


@cache
def _cityscapes_ids(class_names: tuple[str, ...]) -> NDArray[np.uint8]:
    known = {entry.name: train_id for train_id, entry in enumerate(CITYSCAPES_CLASSES)}
    table = np.full(256, NO_CLASS, np.uint8)
    table[: len(class_names)] = [known.get(name, NO_CLASS) for name in class_names]
    return table


@dataclass(frozen=True)
class CropPlan:
    """Settings of the crops."""

    seed: int
    looks: int = 4  # sets of looks per scene
    crops: int = 5  # crops per set of looks
    single_looks: bool = False  # for validation: one look with strength 0.7 to 1, or none, all equally likely

    def draw(self, rng: np.random.Generator) -> Looks:
        """Draw the looks of a scene."""
        if not self.single_looks:
            return draw_looks(rng)
        place = int(rng.integers(len(LOOK_NAMES) + 1))
        return () if place == len(LOOK_NAMES) else ((LOOK_NAMES[place], float(rng.uniform(0.7, 1.0))),)


def looks_of(record: Any) -> Looks:
    """Return the names and strengths of the looks in a RECORD."""
    pairs = zip(record["looks"], record["strengths"], strict=True)
    return tuple((LOOK_NAMES[look], float(strength)) for look, strength in pairs if look != _NO_LOOK)


def crops_of_scene(source: CropSource, plan: CropPlan, index: int) -> NDArray[Any]:
    """Cut the crops of one scene.

    Returns:
        (plan.looks * plan.crops,) RECORDs.

    Raises:
        DatasetError: the scene's files cannot be read or contain no class.
    """
    rng = np.random.default_rng(derive_seed(plan.seed, index))
    scene = source[index]
    seen = with_cityscapes_ids(scene, source.class_names)
    present = [int(label) for label in np.unique(scene.labels) if label != NO_CLASS]
    places = {label: np.flatnonzero(scene.labels == label) for label in present}
    records = np.zeros(plan.looks * plan.crops, RECORD)
    for first in range(0, len(records), plan.crops):
        looks = plan.draw(rng)
        image = apply_looks(seen, looks, rng)
        block = records[first : first + plan.crops]
        block["looks"] = _NO_LOOK
        for slot, (name, strength) in enumerate(looks):
            block["looks"][:, slot] = LOOK_NAMES.index(name)
            block["strengths"][:, slot] = strength
        for record in block:
            target = present[int(rng.integers(len(present)))]
            window = _draw_window(scene.labels.shape, places[target], source.class_names[target], rng)
            pixels, size = np.ascontiguousarray(image[window]), (CROP_SIDE, CROP_SIDE)
            record["image"] = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR_EXACT)
            counts = np.bincount(scene.labels[window].ravel(), minlength=256)[:NO_CLASS]
            fills = counts[target] > _MIN_SHARE * scene.labels[window].size
            record["label"] = target if fills else int(counts.argmax())
    return records


def _draw_window(
    shape: tuple[int, ...], places: NDArray[np.intp], class_name: str, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Draw a square inside the image, centered near a pixel of the class."""
    low, high = _SMALL_WINDOW if class_name in _SMALL_CLASSES else _WINDOW
    side = min(int(rng.integers(low, high + 1)), *shape)
    row, column = divmod(int(places[int(rng.integers(len(places)))]), shape[1])
    top = min(max(row - side // 2, 0), shape[0] - side)
    left = min(max(column - side // 2, 0), shape[1] - side)
    return slice(top, top + side), slice(left, left + side)


def describe_crops(source: CropSource, plan: CropPlan) -> dict[str, Any]:
    """Return all settings that determine the crops as JSON-serializable data."""
    described = {"source": source.identity, "class_names": list(source.class_names), "scenes": len(source)}
    return {**described, **asdict(plan), "look_names": list(LOOK_NAMES)}


def load_or_make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> NDArray[Any]:
    """Open a crop file, rendering it first if it is missing.

    Args:
        source: scenes to crop.
        plan: settings of the crops.
        path: .npy file with a .json description next to it. The crops are regenerated if it is missing or unreadable.
        workers: number of processes.

    Returns:
        (N,) RECORDs, memory-mapped from the file.

    Raises:
        ConfigError: the file contains crops of a different source or plan, or is damaged.
        DatasetError: files of the source cannot be read or contain no class.
    """
    about, wanted = path.with_name(f"{path.name}.json"), describe_crops(source, plan)
    found = None
    if path.exists():
        try:
            found = read_json(about, _MAX_DESCRIPTION)
        except (FileNotFoundError, ValueError):  # as after a crash
            logger.info(f"The description {about.name} of {path} is missing or damaged; regenerating the crops")
            path.unlink()  # before the new description is written
    if found is None:
        megabytes = len(source) * plan.looks * plan.crops * RECORD.itemsize / 1e6
        logger.info(f"Writing crops of {len(source)} scenes to {path}, {megabytes:.0f} MB, for this and later runs")
        with whole_file(about) as part:  # first, so that an interruption leaves no crops without a description
            part.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        make_crops(source, plan, path, workers)
    elif found != wanted:
        raise ConfigError(f"'{path}' contains crops of {found}, but {wanted} is required. Choose a different file.")
    try:
        crops: NDArray[Any] = np.load(path, mmap_mode="r")
        if (crops.dtype, crops.shape) != (RECORD, (len(source) * plan.looks * plan.crops,)):
            raise ValueError(f"found {crops.shape} records of {crops.dtype.itemsize} bytes")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"Cannot read crops from '{path}': {error}. Remove the file to regenerate it.") from error
    return crops


def make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> None:
    """Write the crops of all scenes to an .npy file, atomically, with a progress bar on a terminal."""
    per_scene = plan.looks * plan.crops
    with whole_file(path) as part:
        crops = np.lib.format.open_memmap(part, mode="w+", dtype=RECORD, shape=(len(source) * per_scene,))
        if hasattr(os, "posix_fallocate"):  # raises OSError, whereas a memory map on a full disk kills the process
            with part.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        processes = {"num_workers": workers, "multiprocessing_context": "spawn"} if workers > 1 else {}
        loader = DataLoader(_Crops(source, plan), batch_size=None, collate_fn=np.asarray, **processes)  # type: ignore[arg-type]
        for index, records in enumerate(tqdm(loader, desc="crops", unit="scene", disable=None)):
            crops[index * per_scene : (index + 1) * per_scene] = records
        crops.flush()
        del crops


@dataclass(frozen=True)
class _Crops(Dataset[NDArray[Any]]):
    """Dataset with the crops of each scene, picklable for worker processes."""

    source: CropSource
    plan: CropPlan

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> NDArray[Any]:
        cv2.setNumThreads(0)  # each process uses one core
        return crops_of_scene(self.source, self.plan, index)
