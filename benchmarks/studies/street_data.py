"""Folders of the benchmark on real streets: links to the datasets, lists of their images, and rendered copies."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from parts.common import PROJECT
from tqdm import tqdm

from famix.data import get_dataset_dicts, get_label_readers, label_file_of, read_image
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.seeding import derive_seed
from famix_minitown.clip.captions import draw_looks
from famix_minitown.clip.crops import with_cityscapes_ids
from famix_minitown.rendering.looks import LOOKS, Looks, apply_looks, scene_of_image
from studies.street_methods import SOURCES

FILES = [str(PROJECT.parents[1] / f"datasets/streets_{source}.yaml") for source in SOURCES]
"""Definitions of the datasets, for DATASETS.FILES."""

HELD_SHARE = 5  # the last fifth of the training images, in the order of their names, is held out to choose a method
UNSEEN_COPIES = 2  # for each held-out image
_EFFECTS_SEED, _UNSEEN_SEED = 1, 2
_LEAST_STRENGTH = 0.45  # of unseen looks, as in the crops for the CLIP
_PARTS = ("images", "labels")
_TRAINING = {"camvid": "train_day", "idd_lite": "train"}
_DAY = ("train_day", "val_day")  # of CamVid, in one target

Draw = Callable[[np.random.Generator], Looks]


def link_dataset(source: str, given: Path | None, data: Path) -> None:
    """Link to a dataset from the folder of all datasets, and list its parts.

    Args:
        source: one of SOURCES.
        given: folder with images/<split>/<name>.jpg and labels/<split>/<name>.png.
        data: folder for $DETECTRON2_DATASETS.

    Raises:
        ConfigError: the folder has no images of this dataset, or `data` contains links to a different one.
    """
    option, folder = f"--{source.replace('_', '-')}", _TRAINING[source]
    names = sorted(path.stem for path in (given / "images" / folder).glob("*.jpg")) if given else []
    if given is None or len(names) < 2 or not (given / "labels" / folder).is_dir():
        wanted = f"images/{folder}/*.jpg and labels/{folder}/*.png"
        got = f"'{given}'" if given else "nothing"
        raise ConfigError(f"{option} must be a folder with {wanted}, got {got}. Pass the folder of the dataset.")
    root = data / SOURCES[source].name
    root.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        link, place = root / part, (given / part).resolve()
        if not link.is_symlink():
            link.symlink_to(place, target_is_directory=True)
        elif link.resolve() != place:
            raise ConfigError(f"{option} is '{given}', but '{link}' links to '{link.resolve()}'. Use another --output.")
    held = max(1, len(names) // HELD_SHARE)
    write_list(root, "fit", names[:-held])
    write_list(root, "held", names[-held:])
    if source == "camvid":
        day = [f"{split}/{path.stem}" for split in _DAY for path in sorted((given / "images" / split).glob("*.jpg"))]
        write_list(root, "day", day)


def write_list(root: Path, name: str, keys: Iterable[str]) -> None:
    """Write the list of a split below the root of a dataset."""
    with whole_file(root / f"lists/{name}.txt") as part:
        part.write_text("".join(f"{key}\n" for key in keys))


def render_effects(source: str, copies: int, data: Path) -> None:
    """Render the training images of a source with the effects that train_mini_clip.py draws, as the split "effects"."""
    _render(source, "train", ("effects", "effects"), copies, _EFFECTS_SEED, draw_looks, data)


def render_unseen(source: str, looks: Sequence[str], data: Path) -> None:
    """Render the held-out images of a source, each with one of `looks` at a time, as the split "unseen"."""

    def draw(rng: np.random.Generator) -> Looks:
        return ((looks[int(rng.integers(len(looks)))], float(rng.uniform(_LEAST_STRENGTH, 1.0))),)

    folder = f"unseen_{hashlib.sha256(' '.join(looks).encode()).hexdigest()[:8]}"
    _render(source, "held", ("unseen", folder), UNSEEN_COPIES, _UNSEEN_SEED, draw, data)


def unnamed_looks(words: Iterable[str]) -> list[str]:
    """Return the looks that no style word names.

    Raises:
        ConfigError: the words name all looks.
    """
    text = "; ".join(words).lower()
    found = [
        look.name for look in LOOKS.values() if not any(re.search(rf"\b{phrase}\b", text) for phrase in look.phrases)
    ]
    if not found:
        raise ConfigError(
            "The style words of the candidates name all looks. Remove a candidate, so that some are unseen."
        )
    return found


def _render(source: str, split: str, made: tuple[str, str], copies: int, seed: int, draw: Draw, data: Path) -> None:
    """Render `copies` of each image in a registered split as the split and in the folders `made`. Files are kept."""
    dataset, root = SOURCES[source].dataset(split), data / SOURCES[source].name
    class_names, reader = tuple(MetadataCatalog.get(dataset).stuff_classes), get_label_readers([dataset])[dataset]
    keys = []
    for index, record in enumerate(tqdm(get_dataset_dicts([dataset]), desc=made[0], unit="image", disable=None)):
        scene = None
        for copy in range(copies):
            keys.append(f"{made[1]}_{copy}/{Path(record['file_name']).stem}")
            path, label = (root / f"rendered/{part}/{keys[-1]}.png" for part in _PARTS)
            if path.exists() and label.exists():
                continue
            if scene is None:
                scene = scene_of_image(np.asarray(read_image(record["file_name"])))
                scene = replace(scene, labels=reader.read(label_file_of(record)))
                scene = with_cityscapes_ids(scene, class_names)
            rng = np.random.default_rng(derive_seed(seed, index, copy))
            pixels = apply_looks(scene, draw(rng), rng)
            done, content = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
            if not done:
                raise DatasetError(f"cannot encode '{path}' as PNG. Remove '{record['file_name']}'.")
            label.parent.mkdir(parents=True, exist_ok=True)
            copyfile(label_file_of(record), label)
            with whole_file(path, durable=False) as part:  # last, so that it marks a complete pair
                part.write_bytes(content.tobytes())
    write_list(root, made[0], keys)
