"""Square crops of street scenes in many looks, with what they show: the pictures that a small CLIP learns from."""

import json
import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from famix.data import CITYSCAPES_CLASSES, LabelReader, get_dataset_dicts, get_label_readers, read_image
from famix.errors import ConfigError
from famix.files import whole_file
from famix.minitown.captions import MOST_ATTRIBUTES, Attributes, draw_look
from famix.minitown.look_table import LOOKS
from famix.minitown.looks import apply_looks, scene_of_image
from famix.minitown.scene import SIZE, Scene, render_scene
from famix.minitown.texture import Image
from famix.seeding import derive_seed

__all__ = [
    "CROP_SIDE",
    "RECORD",
    "CropPlan",
    "CropSource",
    "DatasetSource",
    "TownSource",
    "attributes_of",
    "load_or_make_crops",
    "make_crops",
]

logger = logging.getLogger(__name__)

CROP_SIDE = 64
LOOK_NAMES = tuple(LOOKS)
NO_LOOK = -1

RECORD = np.dtype(
    [
        ("image", np.uint8, (CROP_SIDE, CROP_SIDE, 3)),
        ("label", np.uint8),
        ("looks", np.int8, (MOST_ATTRIBUTES,)),
        ("strengths", np.float32, (MOST_ATTRIBUTES,)),
    ]
)
"""A crop: RGB pixels, train id of what it shows, places of its looks in LOOKS or -1, and their strengths."""

_NO_CLASS = 255
_WINDOW = (32, 128)  # side in pixels of an image of 192 rows
_SMALL_WINDOW = (20, 56)
_SMALL_CLASSES = ("wall", "pole", "traffic sign", "traffic light", "person", "rider", "motorcycle", "bicycle")
_LEAST_SHARE = 0.12  # of a crop that the class must fill which names it
_CHUNK = 8  # scenes that a worker makes at a time


class CropSource(Protocol):
    """Labelled scenes to cut crops from. Workers get a copy of it, so it must be possible to pickle."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the place is the train id."""

    @property
    def identity(self) -> str:
        """Text that differs for sources with other scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


@dataclass(frozen=True)
class TownSource:
    """Scenes of the town.

    Attributes:
        first: seed of the first scene; the others follow.
        count: number of scenes.
    """

    first: int
    count: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Cityscapes' classes, most of which the town has."""
        return tuple(entry.name for entry in CITYSCAPES_CLASSES)

    @property
    def identity(self) -> str:
        """The seeds."""
        return f"town {self.first} + {self.count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return render_scene(self.first + index)


@dataclass(frozen=True)
class DatasetSource:
    """Images of a labelled dataset, made as high as the town's, without depth.

    Attributes:
        name: of the registered dataset.
        class_names: its classes.
        files: image and label file of each scene.
        reader: of the labels.
    """

    name: str
    class_names: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = field(repr=False)
    reader: LabelReader = field(repr=False)

    @classmethod
    def registered(cls, name: str) -> "DatasetSource":
        """The source of a dataset that is registered with Detectron2.

        Raises:
            DatasetError: it is unknown, or its files are missing.
        """
        files = tuple((entry["file_name"], entry["sem_seg_file_name"]) for entry in get_dataset_dicts([name]))
        return cls(name, tuple(MetadataCatalog.get(name).stuff_classes), files, get_label_readers([name])[name])

    def split(self, every: int) -> tuple["DatasetSource", "DatasetSource"]:
        """Divide into the scenes to learn from and every `every`-th one, to validate with."""
        rest = tuple(pair for place, pair in enumerate(self.files) if place % every)
        return replace(self, files=rest), replace(self, files=self.files[::every])

    @property
    def identity(self) -> str:
        """The dataset and how many of its images."""
        return f"{self.name} {len(self.files)} {Path(self.files[0][0]).name}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Scene:
        image_file, label_file = self.files[index]
        image, labels = read_image(image_file), self.reader.read(label_file)
        labels = np.where(labels == self.reader.ignore_label, np.uint8(_NO_CLASS), labels)
        size = (round(image.shape[1] * SIZE[0] / image.shape[0]), SIZE[0])
        scene = scene_of_image(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        small = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
        return replace(scene, labels=small, seed=index)


@dataclass(frozen=True)
class CropPlan:
    """How crops are drawn.

    Attributes:
        seed: of all random numbers.
        looks: looks of a scene.
        crops: crops of a look.
        single_looks: one look of strength 0.7 to 1 or none, all about equally often, as to validate with; otherwise
            looks as `draw_look` draws them.
    """

    seed: int
    looks: int = 4
    crops: int = 5
    single_looks: bool = False

    def draw(self, rng: np.random.Generator) -> Attributes:
        """Draw the look of a scene."""
        if not self.single_looks:
            return draw_look(rng)
        place = int(rng.integers(len(LOOK_NAMES) + 1))
        return () if place == len(LOOK_NAMES) else ((LOOK_NAMES[place], float(rng.uniform(0.7, 1.0))),)


def attributes_of(record: Any) -> Attributes:
    """Names and strengths of the looks of a record, see RECORD."""
    pairs = zip(record["looks"], record["strengths"], strict=True)
    return tuple((LOOK_NAMES[look], float(strength)) for look, strength in pairs if look != NO_LOOK)


def load_or_make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> NDArray[Any]:
    """Open a file of crops, made first if it is not there.

    Args:
        source: scenes.
        plan: how crops are drawn.
        path: .npy file; beside it a .json tells what it was made of.
        workers: processes.

    Returns:
        (N,) RECORDs, mapped from the file.

    Raises:
        ConfigError: the file was made of something else.
    """
    about, wanted = path.with_name(f"{path.name}.json"), _describe(source, plan)
    if not path.exists():
        make_crops(source, plan, path, workers)
        about.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    made_of = json.loads(about.read_text(encoding="utf-8")) if about.exists() else None
    if made_of != wanted:
        raise ConfigError(f"{path}: got crops of {made_of}, expected those of {wanted}. Name another file.")
    return np.load(path, mmap_mode="r")


def _describe(source: CropSource, plan: CropPlan) -> dict[str, Any]:
    return {
        "source": source.identity,
        "scenes": len(source),
        "seed": plan.seed,
        "looks": plan.looks,
        "crops": plan.crops,
        "single_looks": plan.single_looks,
        "look_names": list(LOOK_NAMES),
    }


def make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> None:
    """Write the crops of all scenes to a file that is complete or not there at all.

    Args:
        source: scenes.
        plan: how crops are drawn.
        path: .npy file to write.
        workers: processes.
    """
    per_scene = plan.looks * plan.crops
    with whole_file(path) as part:
        crops = np.lib.format.open_memmap(part, mode="w+", dtype=RECORD, shape=(len(source) * per_scene,))
        done, start = 0, time.perf_counter()
        for records in _parallel(source, plan, workers):
            crops[done * per_scene : done * per_scene + len(records)] = records
            done += len(records) // per_scene
            _log_progress(done, len(source), start)
        crops.flush()
        del crops


def _log_progress(done: int, total: int, start: float) -> None:
    if done % (_CHUNK * 16) == 0 or done == total:
        spent = time.perf_counter() - start
        logger.info(f"Crops of {done} / {total} scenes, {spent:.0f} s, {spent / done * (total - done):.0f} s left")


def _parallel(source: CropSource, plan: CropPlan, workers: int) -> Iterator[NDArray[Any]]:
    chunks = [range(first, min(first + _CHUNK, len(source))) for first in range(0, len(source), _CHUNK)]
    if workers == 1:
        _start_worker(source, plan)
        yield from map(_make_chunk, chunks)
        return
    # Spawned rather than forked: this process may have threads of PyTorch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (source, plan)) as pool:
        yield from pool.map(_make_chunk, chunks)


_job: tuple[CropSource, CropPlan] | None = None  # of a worker process, sent once


def _start_worker(source: CropSource, plan: CropPlan) -> None:
    global _job
    _job = (source, plan)
    cv2.setNumThreads(0)


def _make_chunk(indices: range) -> NDArray[Any]:
    assert _job is not None
    return np.concatenate([crops_of_scene(*_job, index) for index in indices])


def crops_of_scene(source: CropSource, plan: CropPlan, index: int) -> NDArray[Any]:
    """Cut the crops of one scene.

    Args:
        source: scenes.
        plan: how crops are drawn.
        index: of the scene.

    Returns:
        (plan.looks * plan.crops,) RECORDs.
    """
    rng = np.random.default_rng(derive_seed(plan.seed, index))
    scene = source[index]
    present = [int(label) for label in np.unique(scene.labels) if label != _NO_CLASS]
    places = {label: np.flatnonzero(scene.labels == label) for label in present}
    records = np.zeros(plan.looks * plan.crops, RECORD)
    for first in range(0, len(records), plan.crops):
        attributes = plan.draw(rng)
        image = apply_looks(scene, attributes, rng)
        block = records[first : first + plan.crops]
        block["looks"] = NO_LOOK
        for slot, (name, strength) in enumerate(attributes):
            block["looks"][:, slot] = LOOK_NAMES.index(name)
            block["strengths"][:, slot] = strength
        for record in block:
            target = present[int(rng.integers(len(present)))]
            window = _draw_window(scene.labels.shape, places[target], source.class_names[target], rng)
            record["image"] = _zoom(image[window])
            record["label"] = _name(scene.labels[window], target)
    return records


def _draw_window(
    shape: tuple[int, ...], places: NDArray[np.intp], class_name: str, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A square inside the image, about centred on a pixel of the class."""
    low, high = _SMALL_WINDOW if class_name in _SMALL_CLASSES else _WINDOW
    side = min(int(rng.integers(low, high + 1)), *shape)
    row, column = divmod(int(places[int(rng.integers(len(places)))]), shape[1])
    top = min(max(row - side // 2, 0), shape[0] - side)
    left = min(max(column - side // 2, 0), shape[1] - side)
    return slice(top, top + side), slice(left, left + side)


def _zoom(image: Image) -> Image:
    return cv2.resize(np.ascontiguousarray(image), (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_LINEAR_EXACT)


def _name(labels: NDArray[np.uint8], target: int) -> int:
    """The target class if it fills enough of the crop, else the class that fills most."""
    counts = np.bincount(labels.ravel(), minlength=256)[:_NO_CLASS]
    return target if counts[target] > _LEAST_SHARE * labels.size else int(counts.argmax())
