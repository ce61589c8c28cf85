"""Every shipped config loads, builds its model, and says what the recipe says."""

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from data_factory import registered, write_definition
from famix.engine import load_config
from famix.modeling import ARCHITECTURES

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "projects/FAMix/configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
PAPERS = [file for file in FILES if file.split("/")[0] in ("GTA5", "SYNTHIA", "Cityscapes")]
TRAINED = {"GTA5": ["layer4.2"], "SYNTHIA": ["layer4.2"], "Cityscapes": ["layer4"]}

every_config = pytest.mark.parametrize("file", FILES)
papers_configs = pytest.mark.parametrize("file", PAPERS)


def load(file, *opts):
    return load_config(str(CONFIGS / file), opts)


def build(file, *opts):
    """The config's model with random weights, without any of their memory: only shapes are computed."""
    weights = load(file).MODEL.CLIP.WEIGHTS
    architecture = weights if weights in ARCHITECTURES else "RN50"
    opts = ("MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP.ARCHITECTURE", architecture, "MODEL.DEVICE", "meta", *opts)
    with torch.device("meta"):
        return build_model(load(file, *opts))


def test_the_papers_sources_are_there():
    assert {file.split("/")[0] for file in PAPERS} == set(TRAINED)
    assert {"GTA5/famix_RN50.yaml", "GTA5/famix_RN101.yaml"} <= set(PAPERS)


@every_config
def test_builds_and_predicts(file):
    cfg, model = load(file), build(file)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    (result,) = model.eval()([{"image": torch.empty(3, 250, 333, device="meta"), "height": 500, "width": 666}])
    assert result["sem_seg"].shape == (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 500, 666)


@every_config
def test_its_data_sets_are_known_and_of_its_classes(file, monkeypatch, tmp_path):
    tests_own = write_definition(tmp_path, splits={"train": {}, "val": {}, "night": {}})  # what configs/Tiny is for
    monkeypatch.chdir(ROOT)  # relative DATASETS.FILES start where the README's commands are given
    cfg = load(file)
    with registered(tests_own, *cfg.DATASETS.FILES):
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            assert name in DatasetCatalog
            metadata = MetadataCatalog.get(name)
            assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
            assert metadata.ignore_label == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE


@papers_configs
def test_the_parts_that_train_are_the_recipes(file):
    expected = TRAINED[file.split("/")[0]]
    cfg = load(file)
    assert expected == cfg.MODEL.CLIP.TRAINABLE
    trained = {name for name, parameter in build(file).named_parameters() if parameter.requires_grad}
    blocks = {".".join(name.split(".")[1:3]) for name in trained if name.startswith("backbone.")}
    assert blocks == ({"layer4.2"} if expected == ["layer4.2"] else {"layer4.0", "layer4.1", "layer4.2"})


@papers_configs
def test_its_clip_is_the_one_in_its_name(file):
    cfg = load(file)
    assert Path(file).stem.split("_")[1] == cfg.MODEL.CLIP.WEIGHTS
    assert cfg.DATASETS.TRAIN[0].startswith(file.split("/")[0].lower())


@papers_configs
def test_training_is_the_recipes(file):
    cfg = load(file)
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.BACKBONE_LR_FACTOR) == (0.1, 0.1)
    assert (solver.LR_SCHEDULER_NAME, solver.POLY_LR_POWER, solver.POLY_LR_FLOOR) == ("PolyLR", 0.9, 1e-6)
    assert (solver.WARMUP_ITERS, solver.MAX_ITER, solver.IMS_PER_BATCH) == (0, 40_000, 8)
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (0.9, 1e-4, 1e-4)
    assert (solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS, solver.NESTEROV) == (1.0, None, False)
    assert not solver.CLIP_GRADIENTS.ENABLED and not solver.AMP.ENABLED
    head = cfg.MODEL.SEM_SEG_HEAD
    assert (head.LABEL_SMOOTHING, head.IGNORE_VALUE, head.LOSS_WEIGHT, head.NUM_CLASSES) == (0.1, 255, 1.0, 19)


@papers_configs
def test_the_model_is_the_recipes(file):
    cfg = load(file)
    head = cfg.MODEL.SEM_SEG_HEAD
    assert (cfg.MODEL.META_ARCHITECTURE, head.NAME) == ("FAMixSemanticSegmentor", "CLIPDeepLabV3PlusHead")
    assert (cfg.MODEL.CLIP.OUTPUT_STRIDE, head.IN_FEATURES, head.NORM) == (16, ["res2", "res5"], "BN")
    assert (head.ASPP_CHANNELS, head.ASPP_DILATIONS, head.ASPP_DROPOUT) == (256, [6, 12, 18], 0.1)
    assert (head.PROJECT_CHANNELS, head.CONVS_DIM) == ([48], 256)
    assert pytest.approx([0.48145466, 0.4578275, 0.40821073]) == [value / 255 for value in cfg.MODEL.PIXEL_MEAN]
    assert pytest.approx([0.26862954, 0.26130258, 0.27577711]) == [value / 255 for value in cfg.MODEL.PIXEL_STD]
    assert cfg.INPUT.FORMAT == "RGB"


@papers_configs
def test_augmentation_is_the_recipes(file):
    data = load(file).INPUT
    assert (data.COLOR_JITTER, data.RANDOM_FLIP) == ([0.8, 0.8, 0.8], "horizontal")
    assert (data.CROP.ENABLED, data.CROP.TYPE, data.CROP.SINGLE_CATEGORY_MAX_AREA) == (True, "absolute", 1.0)
    got = (list(data.CROP.SIZE), list(data.CROP_RESIZED_TO), list(data.SCALE_RANGE))
    if file.startswith("SYNTHIA"):
        assert got == ([720, 720], [768, 768], [0.5, 2.0])
    else:
        assert got == ([768, 768], [], [1.0, 1.0])


@papers_configs
def test_styles_are_the_recipes(file):
    cfg = load(file)
    style, mining = cfg.MODEL.STYLE, cfg.STYLE_MINING
    assert (style.STRATEGY, style.STAGE, style.GRID, style.BETA) == ("bank", "res2", [3, 3], 0.1)
    assert (mining.STEPS, mining.LR, mining.MOMENTUM, mining.WEIGHT_DECAY) == (100, 1.0, 0.9, 1e-4)
    assert (mining.IMS_PER_BATCH, mining.MAX_BATCHES, mining.TEMPLATES) == (16, 0, [])
    assert len(set(mining.STYLES)) == 20 and all(text.endswith(" style") for text in mining.STYLES)
    assert {"Ethereal Mist style", "Urban Grit style", "Magical Realism style"} <= set(mining.STYLES)
