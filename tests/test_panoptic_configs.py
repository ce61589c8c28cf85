"""All panoptic configs load, are consistent, and train and score their targets in miniature."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from clip_factory import save_tiny_clip
from data_factory import registered, write_image
from famix.data import load_definition
from famix.data.panoptic.segments import encode_ids
from famix.data.registration import BUILTIN
from famix.engine import Trainer, load_config
from famix.evaluation.evaluators import check_panoptic
from famix_minitown import datasets
from famix_minitown.datasets import SPLITS
from panoptic_factory import write_recipe
from run_factory import ROOT

CONFIGS = ROOT / "projects/FAMix/configs"
# For large backbones, see test_large_configs.py.
ALL = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*panoptic*.yaml"))
FILES = [file for file in ALL if not file.startswith("large/")]
LEAVES = [file for file in FILES if not Path(file).name.startswith("Base-")]
QUICK = (
    "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "1", "INPUT.CROP.SIZE", "[64, 64]",
    "STYLE_MINING.IMS_PER_BATCH", "1", "STYLE_MINING.STEPS", "1", "STYLE_MINING.TEMPLATES", "['a {}']",
    "STYLE_MINING.MAX_BATCHES", "2", "DATALOADER.NUM_WORKERS", "0", "INPUT.SCALE_RANGE", "[1.0, 1.0]",
)  # fmt: skip
NARROW = {
    "FAMixPanopticDeepLab": (
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8",
        "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS", "8", "MODEL.INS_EMBED_HEAD.CONVS_DIM", "8",
    ),
    "FAMixPanopticFPN": (
        "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8",
        "MODEL.RPN.POST_NMS_TOPK_TEST", "8", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
    ),
    "FAMixMaskFormer": ("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.NUM_POINTS", "64"),
}  # fmt: skip
_THINGS = {
    "person", "bicyclist", "motorcyclist", "other rider", "car", "truck", "bus", "on rails", "motorcycle", "bicycle",
}  # fmt: skip
SIZE = (64, 96)
CITYSCAPES = {7: "road", 23: "sky", 26: "car"}
MAPILLARY = ["Bird", *load_definition(BUILTIN / "mapillary_panoptic.yaml").categories]


def load(file: str, *options: str) -> CfgNode:
    return load_config(str(CONFIGS / file), options)


def write_street(root: Path, image: str, label: str, json_file: str, names: dict[int, str]) -> None:
    """Write an image of road, sky and a car, whose segment ids are those of their categories."""
    by_name = {name.lower(): key for key, name in names.items()}
    ids = np.full(SIZE, by_name["road"])
    ids[:20], ids[30:50, 20:60] = by_name["sky"], by_name["car"]
    write_image(root / image, np.repeat((ids * 3)[..., None], 3, axis=2).astype(np.uint8))
    write_image(root / label, encode_ids(ids))
    segments = [{"id": int(key), "category_id": int(key), "iscrowd": 0} for key in np.unique(ids)]
    image_id = Path(image).stem.replace("_leftImg8bit", "").replace("_rgb_anon", "")
    (root / json_file).parent.mkdir(parents=True, exist_ok=True)
    (root / json_file).write_text(json.dumps({
        "annotations": [{"image_id": image_id, "file_name": Path(label).name, "segments_info": segments}],
        "categories": [{"id": key, "name": name, "isthing": int(name.lower() in _THINGS)} for key, name in names.items()],
    }))  # fmt: skip


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a CLIP and miniature versions of all panoptic datasets of the configs."""
    folder = tmp_path_factory.mktemp("miniature")
    for split in ("train", "val"):
        frame, made = f"ulm/ulm_000000_00001{split[0]}", f"gtFine/cityscapes_panoptic_{split}"
        write_street(folder / "cityscapes", f"leftImg8bit/{split}/{frame}_leftImg8bit.png",
                     f"{made}/{Path(frame).name}_gtFine_panoptic.png", f"{made}.json", CITYSCAPES)  # fmt: skip
    for condition in ("fog", "night", "rain", "snow"):
        frame = "GOPR0475_frame_000041"
        write_street(folder / "acdc", f"rgb_anon/{condition}/val/GOPR0475/{frame}_rgb_anon.png",
                     f"gt_panoptic/{condition}/val/{frame}_gt_panoptic.png", f"gt_panoptic/{condition}/val.json",
                     CITYSCAPES)  # fmt: skip
    write_street(folder / "mapillary", "validation/images/_1Gn.jpg", "validation/panoptic/_1Gn.png",
                 "validation/panoptic/panoptic_2018.json", dict(enumerate(MAPILLARY, 1)))  # fmt: skip
    (folder / "tiny").mkdir()
    write_recipe(folder / "tiny", splits=["train", "val", "night"])
    save_tiny_clip(folder / "clip.pt", layers=(1, 1, 1, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        patch.setenv("FAMIX_CACHE", str(folder / "cache"))
        patch.setattr(datasets, "SPLITS", {name: replace(split, count=2) for name, split in SPLITS.items()})
        yield folder


def test_configs_cover_all_heads_sources_and_targets() -> None:
    made = {(file.split("/")[0], load(file).MODEL.META_ARCHITECTURE) for file in LEAVES}
    heads = "FAMixPanopticDeepLab", "FAMixPanopticFPN", "FAMixMaskFormer"
    every = {(source, head) for source in ("Cityscapes", "Tiny", "minitown") for head in heads}
    assert made == every - {("Cityscapes", "FAMixMaskFormer")}
    for file in LEAVES:
        if file.startswith("Cityscapes"):
            acdc = {f"acdc_{condition}_val_panoptic" for condition in ("fog", "night", "rain", "snow")}
            assert set(load(file).DATASETS.TEST) == {"mapillary_val_panoptic", "cityscapes_val_panoptic", *acdc}


@pytest.mark.parametrize("file", [file for file in LEAVES if not file.startswith("Tiny") and "RN101" not in file])
def test_trains_a_step_and_scores_its_targets(file: str, miniature: Path) -> None:
    """With narrow networks and without most weather conditions, to save time."""
    cfg = load(file)
    chosen = tuple(
        name for name in cfg.DATASETS.TEST if not any(word in name for word in ("fog", "rain", "snow", "dusk"))
    )
    output = miniature / "output" / cfg.OUTPUT_DIR
    options = (*QUICK, *NARROW[cfg.MODEL.META_ARCHITECTURE], "DATASETS.TEST", str(chosen), "OUTPUT_DIR", str(output))
    cfg = load(file, *options, "MODEL.CLIP.WEIGHTS", str(miniature / "clip.pt"))
    output.mkdir(parents=True)
    with registered():
        check_panoptic(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        results = trainer.train()
    assert tuple(results) == chosen
    for name, scores in results.items():
        assert 0 <= scores["panoptic_seg"]["PQ"] <= 100 and 0 <= scores["segm"]["AP"] <= 100, name
        assert 0 <= scores["sem_seg"]["mIoU"] <= 100


@pytest.mark.parametrize("file", LEAVES)
def test_builds_the_network_and_checks_datasets(file: str, miniature: Path) -> None:
    cfg = load(file, "MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", "meta")
    with registered(miniature / "tiny/panoptic.yaml"), torch.device("meta"):
        check_panoptic(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        assert type(build_model(cfg)).__name__ == cfg.MODEL.META_ARCHITECTURE
