"""Every dataset that a shipped config names, in miniature, and settings with which any config runs in about a second."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from clip_factory import save_tiny_clip
from data_factory import write_image, write_label, write_palette_label, write_synthia_label

SIZE = (48, 72)
CROP = 48
_CLIP = "clip.pt"
_COLORS = {"road": (90, 90, 95), "sky": (120, 170, 230), "car": (200, 40, 40)}
_LABEL_IDS, _TRAIN_IDS = (7, 23, 26), (0, 10, 13)  # of road, sky and car
_ACDC = "{split}/val/GOPR0476/GOPR0476_frame_000854"
# Dataset -> image, label, ids of road, sky and car, how labels are written, and names of the files by split.
_LAYOUTS = {
    "cityscapes": (
        "leftImg8bit/{split}/{name}_leftImg8bit.png", "gtFine/{split}/{name}_gtFine_labelIds.png", _LABEL_IDS, write_label,
        {"train": ("a/a_000000_000019", "a/a_000001_000019"), "val": ("b/b_000000_000019",)},
    ),
    "gta5": (
        "images/{name}.png", "labels/{name}.png", _LABEL_IDS, write_palette_label,
        {"train": ("00001", "00002"), "val": ("00007",)},
    ),
    "synthia": (
        "RGB/{split}/{name}.png", "GT/LABELS/{split}/{name}.png", (3, 1, 8),
        lambda path, ids: write_synthia_label(path, ids, instances=ids * 3),
        {"train": ("0000000", "0000001"), "val": ("0000000",)},
    ),
    "bdd100k": (
        "images/10k/val/{name}.jpg", "labels/sem_seg/masks/val/{name}.png", _TRAIN_IDS, write_label, {"val": ("7d06fefd",)}
    ),
    "mapillary": (
        "validation/images/{name}.jpg", "validation/labels/{name}.png", (13, 27, 55), write_palette_label,
        {"val": ("_1Gn",)},
    ),
    "acdc": (
        f"rgb_anon/{_ACDC}_rgb_anon.png", f"gt/{_ACDC}_gt_labelIds.png", _LABEL_IDS, write_label,
        dict.fromkeys(("fog", "night", "rain", "snow"), ("",)),
    ),
    "camvid": (
        "images/{split}/{name}.jpg", "labels/{split}/{name}.png", (3, 0, 8), write_label,
        {"train_day": ("0", "1"), "val_day": ("0",), "val_dusk": ("0",)},
    ),
}  # fmt: skip


def make_street_datasets(root: Path) -> None:
    """Write a miniature of every real dataset with its published folders and label encoding.

    Args:
        root: folder for $DETECTRON2_DATASETS. Training splits get two images, all others one.
    """
    scenes = _scenes()
    for dataset, (image, label, ids, write, splits) in _LAYOUTS.items():
        for split, names in splits.items():
            for name in names:
                scene = next(scenes)
                pixels, labels = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
                for (kind, color), value in zip(_COLORS.items(), ids, strict=True):
                    pixels[scene == kind], labels[scene == kind] = color, value
                write_image(root / dataset / image.format(split=split, name=name), pixels)
                write(root / dataset / label.format(split=split, name=name), labels)
    for split, names in _LAYOUTS["gta5"][-1].items():
        (root / f"gta5/gtav_split_{split}.txt").write_text("".join(f"{name}.png\n" for name in names))


def quick_options(folder: Path) -> list[str]:
    """Return settings with which one iteration and an evaluation of any config take less than a second.

    Args:
        folder: the folder that was passed to `save_quick_clip`.
    """
    return [
        "MODEL.DEVICE", "cpu", "MODEL.CLIP.WEIGHTS", str(folder / _CLIP), "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8", "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[4]",
        "MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DECODER_LAYERS", "1", "MODEL.MASK_FORMER.NUM_POINTS", "64",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1",
        "STYLE_MINING.IMS_PER_BATCH", "2", "STYLE_MINING.STEPS", "1", "STYLE_MINING.TEMPLATES", "['a {}']",
        "DATALOADER.NUM_WORKERS", "0", "MODEL_SELECTION.PERIOD", "1",
    ]  # fmt: skip


def small_crops(cfg: CfgNode) -> list[str]:
    """Return settings that make the crops of training and of protocols fit the miniature images."""
    resized = list(cfg.INPUT.CROP_RESIZED_TO) and [CROP, CROP]
    size = [CROP - 3 if resized else CROP] * 2
    protocols = [f"{entry.partition('=')[0]}=crop{CROP}x{CROP}" for entry in cfg.TEST.PROTOCOL_OF]
    return ["INPUT.CROP.SIZE", str(size), "INPUT.CROP_RESIZED_TO", str(resized), "TEST.PROTOCOL_OF", str(protocols)]


def save_quick_clip(folder: Path) -> Path:
    """Write a narrow random CLIP whose last stage has as many blocks as that of RN50 and RN101."""
    return save_tiny_clip(folder / _CLIP, layers=(1, 1, 1, 3))


def _scenes() -> Iterator[np.ndarray]:
    """Yield (H, W) names of classes: sky above road, with a car that is large enough to fill patches."""
    rng = np.random.default_rng(0)
    while True:
        names = np.full(SIZE, "road", dtype=object)
        names[: int(rng.integers(16, 24))] = "sky"
        left = int(rng.integers(0, 36))
        names[20:40, left : left + 30] = "car"
        yield names
