"""Every data set that a shipped config names, in miniature, and what makes any config run in about a second."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from clip_factory import save_tiny_clip
from data_factory import write_image, write_label, write_palette_label, write_synthia_label

SIZE = (48, 72)
CROP = 48
_CLIP = "clip.pt"
_LABEL_IDS = {"road": 7, "sky": 23, "car": 26}  # of Cityscapes, GTA5 and ACDC
_TRAIN_IDS = {"road": 0, "sky": 10, "car": 13}  # of BDD100K
_SYNTHIA_IDS = {"road": 3, "sky": 1, "car": 8}
_MAPILLARY_IDS = {"road": 13, "sky": 27, "car": 55}
_CAMVID_IDS = {"road": 3, "sky": 0, "car": 8}
_COLOURS = {"road": (90, 90, 95), "sky": (120, 170, 230), "car": (200, 40, 40)}


def make_street_datasets(root: Path) -> Path:
    """Write a miniature of every real data set in the tree and the encoding that it is published in.

    Args:
        root: becomes what $DETECTRON2_DATASETS should name.

    Returns:
        The same folder. Each part that is trained on has two images, all others one.
    """
    scenes = _scenes()
    for split, count in (("train", 2), ("val", 1)):
        keys = [f"{split[0]}town/{split[0]}town_00000{index}_000019" for index in range(count)]
        for key in keys:
            _write(root / "cityscapes", f"leftImg8bit/{split}/{key}_leftImg8bit.png",
                   f"gtFine/{split}/{key}_gtFine_labelIds.png", next(scenes), _LABEL_IDS)  # fmt: skip
        names = [f"{index + (1 if split == 'train' else 7):05d}" for index in range(count)]
        for name in names:
            _write(
                root / "gta5", f"images/{name}.png", f"labels/{name}.png", next(scenes), _LABEL_IDS, write_palette_label
            )
        (root / f"gta5/gtav_split_{split}.txt").write_text("".join(f"{name}.png\n" for name in names))
        for index in range(count):
            _write(root / "synthia", f"RGB/{split}/000000{index}.png", f"GT/LABELS/{split}/000000{index}.png",
                   next(scenes), _SYNTHIA_IDS, _write_synthia)  # fmt: skip
    _write(
        root / "bdd100k",
        "images/10k/val/7d06fefd.jpg",
        "labels/sem_seg/masks/val/7d06fefd.png",
        next(scenes),
        _TRAIN_IDS,
    )
    _write(root / "mapillary", "validation/images/_1Gn.jpg", "validation/labels/_1Gn.png", next(scenes), _MAPILLARY_IDS,
           write_palette_label)  # fmt: skip
    for condition in ("fog", "night", "rain", "snow"):
        key = f"{condition}/val/GOPR0476/GOPR0476_frame_000854"
        _write(root / "acdc", f"rgb_anon/{key}_rgb_anon.png", f"gt/{key}_gt_labelIds.png", next(scenes), _LABEL_IDS)
    for split, count in (("train_day", 2), ("val_day", 1), ("val_dusk", 1)):
        for index in range(count):
            _write(
                root / "camvid", f"images/{split}/{index}.jpg", f"labels/{split}/{index}.png", next(scenes), _CAMVID_IDS
            )
    return root


def quick_options(folder: Path) -> list[str]:
    """Settings with which one iteration and an evaluation take less than a second, whatever else a config says.

    Args:
        folder: that `save_quick_clip` was given.
    """
    return [
        "MODEL.DEVICE", "cpu", "MODEL.CLIP.WEIGHTS", str(folder / _CLIP), "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8", "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[4]",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1",
        "STYLE_MINING.IMS_PER_BATCH", "2", "STYLE_MINING.STEPS", "1", "STYLE_MINING.TEMPLATES", "['a {}']",
        "DATALOADER.NUM_WORKERS", "0", "MODEL_SELECTION.PERIOD", "1",
    ]  # fmt: skip


def small_crops(cfg: CfgNode) -> list[str]:
    """Settings that make a config's crops, of training and of protocols, fit the miniature images."""
    resized = list(cfg.INPUT.CROP_RESIZED_TO) and [CROP, CROP]
    size = [CROP - 3 if resized else CROP] * 2
    protocols = [f"{entry.partition('=')[0]}=crop{CROP}x{CROP}" for entry in cfg.TEST.PROTOCOL_OF]
    return ["INPUT.CROP.SIZE", str(size), "INPUT.CROP_RESIZED_TO", str(resized), "TEST.PROTOCOL_OF", str(protocols)]


def save_quick_clip(folder: Path) -> Path:
    """Write a narrow random CLIP whose last stage has as many blocks as that of RN50 and RN101."""
    return save_tiny_clip(folder / _CLIP, layers=(1, 1, 1, 3))


def _scenes() -> Iterator[np.ndarray]:
    """(H, W) names of classes: sky above road, with a car that is large enough to own patches."""
    rng = np.random.default_rng(0)
    while True:
        names = np.full(SIZE, "road", dtype=object)
        names[: int(rng.integers(16, 24))] = "sky"
        left = int(rng.integers(0, 36))
        names[20:40, left : left + 30] = "car"
        yield names


def _write(
    root: Path,
    image: str,
    label: str,
    names: np.ndarray,
    ids: dict[str, int],
    write: Callable[[Path, np.ndarray], Path] = write_label,
) -> None:
    pixels, label_ids = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    for name, value in ids.items():
        pixels[names == name] = _COLOURS[name]
        label_ids[names == name] = value
    write_image(root / image, pixels)
    write(root / label, label_ids)


def _write_synthia(path: Path, ids: np.ndarray) -> Path:
    return write_synthia_label(path, ids, instances=ids * 3)
