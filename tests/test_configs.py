"""Every shipped config loads, matches the recipe, and trains and evaluates in miniature."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from config_factory import make_street_datasets, quick_options, save_quick_clip, small_crops
from data_factory import registered, write_definition
from famix.clip import ARCHITECTURES, CLIPResNet
from famix.config import flat_settings
from famix.engine import Trainer, argument_parser, check_config, load_config
from famix.evaluation import protocol_of
from famix.style import StyleBank
from run_factory import ROOT

CONFIGS = ROOT / "projects/FAMix/configs"
ZOO = ROOT / "projects/FAMix/MODEL_ZOO.md"
# For panoptic configs, large backbones and the town's ViT, see test_panoptic_configs.py, test_large_configs.py and
# minitown/test_method_works.py.
ALL = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
FILES = [
    file
    for file in ALL
    if "panoptic" not in file and not file.startswith("large/") and not file.endswith(("vit.yaml", "convnext.yaml"))
]
LEAVES = [file for file in FILES if not Path(file).name.startswith("Base-")]
SOURCES = {"GTA5": "gta5", "Cityscapes": "cityscapes", "SYNTHIA": "synthia"}
NETWORKS = ("RN50", "RN101")
FAMIX = [f"{source}/famix_{network}.yaml" for source in SOURCES for network in NETWORKS]
VARIANTS = [file for file in LEAVES if file.split("/")[0] in SOURCES and file not in FAMIX]
SAME_NETWORK = [
    *VARIANTS,
    *(file for file in LEAVES if re.match("minitown/(?!baseline)(?!famix_(panoptic_)?maskformer)", file)),
]
ALIKE = ("RN101", "beta", "grid", "no_mix", "weather_maskformer")  # runs that differ in one number at most

SHARED_BANK = {"MODEL.STYLE.BANK": "output/GTA5_RN50/style_bank.safetensors"}
NO_STYLES = {"MODEL.STYLE.STRATEGY": "none"}
# Variant -> all settings, but for OUTPUT_DIR, in which it differs from FAMix with the same source and network.
DIFFERENCES: dict[str, dict[str, Any]] = {
    **{f"{source}/source_only_{network}.yaml": NO_STYLES for source in SOURCES for network in NETWORKS},
    "GTA5/famix_RN50_no_freeze.yaml": {"MODEL.CLIP.TRAINABLE": ["all"], **SHARED_BANK},
    "GTA5/famix_RN50_layer4.yaml": {"MODEL.CLIP.TRAINABLE": ["layer4"], **SHARED_BANK},
    "GTA5/famix_RN50_no_mix.yaml": {"MODEL.STYLE.MIX": False, **SHARED_BANK},
    "GTA5/famix_RN50_beta0.5.yaml": {"MODEL.STYLE.BETA": 0.5, **SHARED_BANK},
    "GTA5/famix_RN50_beta1.yaml": {"MODEL.STYLE.BETA": 1.0, **SHARED_BANK},
    "GTA5/famix_RN50_grid1x1.yaml": {"MODEL.STYLE.GRID": [1, 1]},
    "GTA5/famix_RN50_grid2x2.yaml": {"MODEL.STYLE.GRID": [2, 2]},
    "GTA5/noise_RN50.yaml": {"MODEL.STYLE.STRATEGY": "noise"},
    "GTA5/mixstyle_RN50.yaml": {"MODEL.STYLE.STRATEGY": "mixstyle"},
    "GTA5/finetuning_RN50.yaml": {"MODEL.CLIP.TRAINABLE": ["all"], **NO_STYLES},
}

every_leaf = pytest.mark.parametrize("file", LEAVES)


def load(file: str, *opts: str) -> CfgNode:
    return load_config(str(CONFIGS / file), opts)


def build(file: str) -> nn.Module:
    """Build the model on the meta device, which computes shapes only."""
    weights = load(file).MODEL.CLIP.WEIGHTS
    architecture = weights if weights in ARCHITECTURES else "RN50"
    opts = ("MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP.ARCHITECTURE", architecture, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        return build_model(load(file, *opts))


def depth(path: Path) -> int:
    """Return the number of bases below a config, along the longest chain."""
    bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
    return max((1 + depth(path.parent / base) for base in ([bases] if isinstance(bases, str) else bases)), default=0)


# All files


@pytest.mark.parametrize("file", FILES)
def test_config_has_at_most_three_bases(file: str) -> None:
    load(file)
    assert depth(CONFIGS / file) <= 3  # the recipe, the dataset's settings, and the method that a variant adds to
    lines = len((CONFIGS / file).read_text().splitlines())
    assert lines <= 25 or file not in LEAVES or file.startswith(("Tiny/", "minitown/famix_web")), "leaves are short"


def test_output_folders_differ() -> None:
    paths = [path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-")]
    folders = {load_config(str(path), []).OUTPUT_DIR for path in paths}
    assert len(folders) == len(paths) and all(folder.startswith("output/") for folder in folders)


@every_leaf
def test_datasets_and_protocols_exist(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tests_own = write_definition(tmp_path, splits={"train": {}, "val": {}, "night": {}})  # what configs/Tiny is for
    monkeypatch.chdir(ROOT)  # relative DATASETS.FILES start where the README's commands are given
    cfg = load(file)
    with registered(tests_own, *cfg.DATASETS.FILES):
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            assert name in DatasetCatalog
            metadata = MetadataCatalog.get(name)
            assert len(metadata.stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
            assert metadata.ignore_label == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        for name in cfg.DATASETS.TEST:
            protocol_of(cfg, name)


@pytest.mark.parametrize("file", [file for file in LEAVES if file not in SAME_NETWORK])
def test_builds_and_predicts_at_full_size(file: str) -> None:
    with registered():  # text classifiers look up names
        cfg, model = load(file), build(file)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    has_queries = any(part in file for part in ("maskformer", "open_vocabulary"))
    assert ("FAMixMaskFormer" if has_queries else "FAMixSemanticSegmentor") == cfg.MODEL.META_ARCHITECTURE
    (result,) = model.eval()([{"image": torch.empty(3, 250, 333, device="meta"), "height": 500, "width": 666}])
    assert result["sem_seg"].shape == (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 500, 666)


# All runs, in miniature


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all datasets and a CLIP, in which runs share their style bank as real ones do."""
    folder = tmp_path_factory.mktemp("miniature")
    make_street_datasets(folder / "datasets")
    save_quick_clip(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        patch.chdir(folder)
        yield folder


def small(file: str, miniature: Path) -> CfgNode:
    options = [*quick_options(miniature), *small_crops(load(file))]
    if file.split("/")[0] in ("minitown", "Tiny"):  # datasets that are rendered, or that a test gives
        options += ["DATASETS.TRAIN", "['camvid_train_day']", "DATASETS.TEST", "['camvid_val_day', 'camvid_val_dusk']"]
    return load(file, *options)


@every_leaf
def test_config_passes_checks(file: str, miniature: Path) -> None:
    with registered():
        check_config(small(file, miniature), argparse.Namespace(eval_only=False, mine_styles_only=False))


@pytest.mark.parametrize("file", [file for file in LEAVES if not any(part in file for part in ALIKE)])
def test_config_trains_and_scores(file: str, miniature: Path) -> None:
    cfg = small(file, miniature)
    with registered():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        results = trainer.train()
    assert results.keys() == set(cfg.DATASETS.TEST)
    assert all(0 <= results[name]["sem_seg"]["mIoU"] <= 100 for name in cfg.DATASETS.TEST)
    output = Path(cfg.OUTPUT_DIR)
    assert (output / "model_final.pth").exists() and (output / "results.json").exists()
    assert (output / "model_best.pth").exists() == bool(cfg.MODEL_SELECTION.SOURCE_VAL)
    if cfg.MODEL.STYLE.STRATEGY == "bank":
        assert len(StyleBank.load(cfg.MODEL.STYLE.BANK or output / "style_bank.safetensors"))


# The paper's experiments


def test_every_variant_is_described() -> None:
    assert DIFFERENCES.keys() == set(VARIANTS)


@pytest.mark.parametrize("file", DIFFERENCES)
def test_variant_differs_as_described(file: str) -> None:
    network = "RN101" if "RN101" in file else "RN50"
    variant, famix = (flat_settings(load(name)) for name in (file, f"{file.split('/')[0]}/famix_{network}.yaml"))
    changed = {key: value for key, value in variant.items() if value != famix[key]}
    assert changed.pop("OUTPUT_DIR")
    assert changed == DIFFERENCES[file]


RECIPE = {
    "SOLVER": {
        "OPTIMIZER": "SGD", "BASE_LR": 0.1, "BACKBONE_LR_FACTOR": 0.1, "LR_SCHEDULER_NAME": "PolyLR",
        "POLY_LR_POWER": 0.9, "POLY_LR_FLOOR": 1e-6, "WARMUP_ITERS": 0, "MAX_ITER": 40_000, "IMS_PER_BATCH": 8,
        "MOMENTUM": 0.9, "WEIGHT_DECAY": 1e-4, "WEIGHT_DECAY_NORM": 1e-4, "BIAS_LR_FACTOR": 1.0,
        "WEIGHT_DECAY_BIAS": None, "NESTEROV": False, "CLIP_GRADIENTS.ENABLED": False, "AMP.ENABLED": False,
    },
    "MODEL": {"META_ARCHITECTURE": "FAMixSemanticSegmentor", "CLIP.OUTPUT_STRIDE": 16},
    "MODEL.SEM_SEG_HEAD": {
        "NAME": "CLIPDeepLabV3PlusHead", "LABEL_SMOOTHING": 0.1, "IGNORE_VALUE": 255, "LOSS_WEIGHT": 1.0,
        "NUM_CLASSES": 19, "IN_FEATURES": ["res2", "res5"], "NORM": "BN", "ASPP_CHANNELS": 256,
        "ASPP_DILATIONS": [6, 12, 18], "ASPP_DROPOUT": 0.1, "PROJECT_CHANNELS": [48], "CONVS_DIM": 256,
    },
    "MODEL.STYLE": {"STRATEGY": "bank", "STAGE": "res2", "GRID": [3, 3], "BETA": 0.1, "MIX": True, "PROBABILITY": 1.0},
    "STYLE_MINING": {
        "STEPS": 100, "LR": 1.0, "MOMENTUM": 0.9, "WEIGHT_DECAY": 1e-4, "IMS_PER_BATCH": 16, "MAX_BATCHES": 0,
        "TEMPLATES": [], "METRIC": "euclidean",
    },
    "INPUT": {
        "FORMAT": "RGB", "COLOR_JITTER": [0.8, 0.8, 0.8], "RANDOM_FLIP": "horizontal", "CROP.ENABLED": True,
        "CROP.TYPE": "absolute", "CROP.SINGLE_CATEGORY_MAX_AREA": 1.0, "CROP.SIZE": [768, 768], "CROP_RESIZED_TO": [],
        "SCALE_RANGE": [1.0, 1.0],
    },
}  # fmt: skip
RECIPE_OF_SYNTHIA = {
    "INPUT.CROP.SIZE": [720, 720], "INPUT.CROP_RESIZED_TO": [768, 768], "INPUT.SCALE_RANGE": [0.5, 2.0],
}  # fmt: skip


@pytest.mark.parametrize("file", FAMIX)
def test_recipe_of_paper(file: str) -> None:
    cfg, source = load(file), SOURCES[file.split("/")[0]]
    acdc = {f"acdc_{condition}_val" for condition in ("fog", "night", "rain", "snow")}
    every = {f"{name}_val" for name in ("cityscapes", "bdd100k", "mapillary", "gta5", "synthia")} | acdc
    assert (f"{source}_train",) == cfg.DATASETS.TRAIN
    assert set(cfg.DATASETS.TEST) == every and len(cfg.DATASETS.TEST) == len(every)
    assert cfg.DATASETS.TEST[-1] == cfg.MODEL_SELECTION.SOURCE_VAL == f"{source}_val"
    assert (cfg.MODEL_SELECTION.USE, cfg.TEST.PROTOCOL) == ("last", "native")

    found, expected = flat_settings(cfg), {f"{node}.{key}": v for node in RECIPE for key, v in RECIPE[node].items()}
    if file.startswith("SYNTHIA"):
        expected |= RECIPE_OF_SYNTHIA
    assert {key: found[key] for key in expected} == expected
    assert pytest.approx([0.48145466, 0.4578275, 0.40821073]) == [value / 255 for value in cfg.MODEL.PIXEL_MEAN]
    assert pytest.approx([0.26862954, 0.26130258, 0.27577711]) == [value / 255 for value in cfg.MODEL.PIXEL_STD]
    styles = set(cfg.STYLE_MINING.STYLES)
    assert len(styles) == 20 and all(text.endswith(" style") for text in styles)
    assert {"Ethereal Mist style", "Urban Grit style", "Magical Realism style"} <= styles

    expected_layers = ["layer4"] if source == "cityscapes" else ["layer4.2"]
    assert expected_layers == cfg.MODEL.CLIP.TRAINABLE
    trained = {name for name, parameter in build(file).named_parameters() if parameter.requires_grad}
    blocks = {".".join(name.split(".")[1:3]) for name in trained if name.startswith("backbone.")}
    assert blocks == ({"layer4.0", "layer4.1", "layer4.2"} if source == "cityscapes" else {"layer4.2"})


@pytest.mark.parametrize(
    "file", [*FAMIX, *(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("Cityscapes/*panoptic*RN*"))]
)
def test_clip_matches_name(file: str) -> None:
    clip = load(file).MODEL.CLIP
    name = re.findall("RN[0-9]+", file)[0]
    assert name == clip.WEIGHTS and CLIPResNet.architecture_named(clip.ARCHITECTURE) == ARCHITECTURES[name]


# The model zoo


def test_zoo_lists_every_experiment() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", ZOO.read_text())
    local = [link for link in links if "://" not in link]
    assert all((ZOO.parent / link).exists() for link in local)
    listed = {link.removeprefix("configs/") for link in local if link.endswith(".yaml")}
    assert listed == {*FAMIX, *VARIANTS, *(file for file in ALL if re.match(r"large/(GTA5|Cityscapes)/", file))}


def test_zoo_evaluates_with_protocol_of_reference() -> None:
    commands = re.findall(
        r"^    python \S*train_net.py (.* --eval-only .*)$", ZOO.read_text().replace("\\\n", " "), re.M
    )
    assert commands
    for command in commands:
        arguments = argument_parser().parse_args(shlex.split(command))
        cfg = load_config(str(ROOT / arguments.config_file), arguments.opts)
        with registered():
            protocols = [protocol_of(cfg, name) for name in cfg.DATASETS.TEST]
        assert len({(protocol.scales, protocol.average) for protocol in protocols}) == 1, "one scale per row"
        assert all(protocol.counts_absent_classes for protocol in protocols)


def test_zoo_states_origin_of_numbers() -> None:
    text = ZOO.read_text()
    scores = [match.start() for match in re.finditer(r"\| \d\d\.\d\d (?=\|)", text)]
    assert len(scores) == 2 * 3 * 6  # networks, scales, datasets
    notice = re.search(r"\*\*as published \(Fahes et al., CVPR 2024\), not\s+measured here\*\*", text)
    assert notice is not None and notice.start() < scores[0]
