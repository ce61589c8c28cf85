"""Configs of large backbones follow their protocols and train and predict with a tiny backbone of the same family."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from timm.layers import weight_init

from clip_factory import save_tiny_clip
from config_factory import make_street_datasets
from data_factory import registered
from famix import StyleBank
from famix.clip.build import tower_without_weights, undownloaded
from famix.clip.weights import is_published
from famix.config import flat_settings
from famix.data.mapper import make_segments
from famix.engine import build_optimizer, check_config, load_config
from famix.evaluation import protocol_of
from famix.mining import obtain_style_bank
from open_clip_factory import tiny_open_clip
from run_factory import ROOT

CONFIGS = ROOT / "projects/FAMix/configs/large"
ZOO = ROOT / "projects/FAMix/MODEL_ZOO.md"
LEAVES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))
TINY = {"ConvNeXt-L": "convnext", "ViT-L-14": "vit14", "EVA02-L-14": "eva02", "DINOv2-L": "test_vit"}
PEERS = {"ConvNeXt-L": "CLOUDS", "ViT-L-14": "Rein", "EVA02-L-14": "TQDM", "DINOv2-L": "Rein"}
# Config of the query head without its method -> protocol and head.
QUERIES = {
    "GTA5/RN50": ("GTA5_CLOUDS", "maskformer_512"),
    "GTA5/ConvNeXt-L": ("GTA5_CLOUDS", "maskformer_512"),
    "GTA5/EVA02-L-14": ("GTA5_TQDM", "maskformer_text"),
    "Cityscapes/RN50": ("Cityscapes_Mask2Former", "maskformer"),
    "Cityscapes/panoptic_RN50": ("Cityscapes_panoptic_Mask2Former", "maskformer"),
}
# Strong configs without their source: method and backbone -> protocol without its source, and head.
STRONG = {
    ("strong", "DINOv2-L"): ("Rein", "maskformer_learned"),
    ("strong", "EVA02-L-14"): ("TQDM", "maskformer_text"),
    ("strong_famix", "EVA02-L-14"): ("TQDM", "maskformer_text"),
}
METHODS: dict[str, dict[str, Any]] = {
    "source_only": {"MODEL.CLIP.TRAINABLE": [], "MODEL.STYLE.STRATEGY": "none"},
    "finetuning": {"MODEL.CLIP.TRAINABLE": ["all"], "MODEL.STYLE.STRATEGY": "none", "SOLVER.BACKBONE_LR_FACTOR": 0.1},
    "adapters": {
        "MODEL.CLIP.TRAINABLE": [], "MODEL.STYLE.STRATEGY": "none", "MODEL.ADAPTERS.RANK": 16,
        "SOLVER.BACKBONE_LR_FACTOR": 1.0,
    },
    "famix": {
        "MODEL.CLIP.TRAINABLE": [], "MODEL.STYLE.STRATEGY": "bank", "MODEL.ADAPTERS.RANK": 16,
        "SOLVER.BACKBONE_LR_FACTOR": 1.0,
    },
    "famix_finetuning": {
        "MODEL.CLIP.TRAINABLE": ["all"], "MODEL.STYLE.STRATEGY": "bank", "SOLVER.BACKBONE_LR_FACTOR": 0.1
    },
}  # fmt: skip
DEFAULT = load_config("famix://minitown/famix_default.yaml")
METHODS["strong"] = METHODS["adapters"] | {
    f"INPUT.{key}": DEFAULT.INPUT[key] for key in ("COLOR_JITTER", "COLOR_JITTER_PROBABILITY")
}
METHODS["strong_famix"] = METHODS["strong"] | {
    f"MODEL.STYLE.{key}": DEFAULT.MODEL.STYLE[key] for key in ("STRATEGY", "GRID", "PROBABILITY")
}
SOLVER = {"OPTIMIZER": "ADAMW", "WEIGHT_DECAY": 0.05, "WEIGHT_DECAY_NORM": 0.0, "WARMUP_ITERS": 0, "IMS_PER_BATCH": 8}
POLY = {**SOLVER, "LR_SCHEDULER_NAME": "PolyLR", "POLY_LR_POWER": 0.9, "POLY_LR_FLOOR": 0.0}
CONSTANT = {**SOLVER, "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": ()}
# Protocol -> SOLVER, side or (height, width) of the crop, range of scales.
SCHEDULES: dict[str, tuple[dict[str, Any], int | tuple[int, int], list[float]]] = {
    "GTA5_CLOUDS": ({**CONSTANT, "BASE_LR": 1e-5, "MAX_ITER": 40_000}, 768, [0.5, 2.0]),
    "Cityscapes_CLOUDS": ({**CONSTANT, "BASE_LR": 1e-4, "MAX_ITER": 10_000}, 768, [0.5, 2.0]),
    "GTA5_TQDM": (
        {**POLY, "BASE_LR": 1e-5, "WEIGHT_DECAY": 1e-4, "WARMUP_ITERS": 1500, "MAX_ITER": 20_000}, 512, [0.5, 2.0]
    ),
    "Cityscapes_TQDM": (
        {**POLY, "BASE_LR": 1e-4, "WEIGHT_DECAY": 1e-5, "WARMUP_ITERS": 1500, "MAX_ITER": 20_000}, 512, [0.5, 2.0]
    ),
    "GTA5_Rein": ({**POLY, "BASE_LR": 1e-4, "IMS_PER_BATCH": 4, "MAX_ITER": 40_000}, 512, [0.25, 1.0]),
    "Cityscapes_Mask2Former": (
        {**POLY, "BASE_LR": 1e-4, "IMS_PER_BATCH": 16, "MAX_ITER": 90_000}, (512, 1024), [0.5, 2.0]
    ),
    "Cityscapes_Rein": ({**POLY, "BASE_LR": 6e-5, "WARMUP_ITERS": 10_000, "MAX_ITER": 40_000}, 1024, [0.5, 2.0]),
}  # fmt: skip

every_leaf = pytest.mark.parametrize("file", LEAVES)


def parts(file: str) -> tuple[str, str, str]:
    """Return the source, method and backbone of a config."""
    source, name = file.removesuffix(".yaml").split("/")
    method, backbone = name.rsplit("_", 1)
    if "maskformer_strong" in method:
        method = method.removeprefix("maskformer_")
    elif "maskformer_" in method:
        method = "famix_finetuning" if method.endswith("famix") else "finetuning"
    return source, method, backbone


def load(file: str, *opts: str) -> CfgNode:
    return load_config(str(CONFIGS / file), opts)


def draw_normal(x: torch.Tensor, mean: float, std: float, *_: float) -> torch.Tensor:
    """Replace timm's truncated normal distribution, which takes seconds on the meta device."""
    return x.normal_(mean, std)


def test_every_backbone_has_every_method_on_both_sources() -> None:
    assert {parts(file) for file in LEAVES if "maskformer" not in file} == {
        (source, method, backbone)
        for source in ("GTA5", "Cityscapes")
        for method in ("source_only", "finetuning", "adapters", "famix")
        for backbone in TINY
        if (method, backbone) != ("famix", "DINOv2-L")  # no text tower
    }


def test_query_head_is_compared_with_and_without_styles() -> None:
    trained = [
        re.sub(r"/(panoptic_)?(.*)", rf"/\1maskformer_{method}_\2.yaml", key)
        for key in QUERIES
        for method in ("finetuning", "famix")
    ]
    strong = [
        f"{source}/maskformer_{method}_{backbone}.yaml"
        for source in ("GTA5", "Cityscapes")
        for method, backbone in STRONG
    ]
    assert sorted(file for file in LEAVES if "maskformer" in file) == sorted(trained + strong)


@pytest.mark.parametrize("file", [file for file in LEAVES if "maskformer" in file and "strong" not in file])
def test_query_head_follows_mask2former(file: str) -> None:
    cfg = load(file)
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_FORMER.CLASSIFIER) == ("FAMixMaskFormer", "text")
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_LR_FACTOR) == ("ADAMW", 0.1)
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == cfg.SOLVER.WEIGHT_DECAY_EMBED == 0 < cfg.SOLVER.WEIGHT_DECAY
    assert ([512, 512] if file.startswith("GTA5") else [512, 1024]) == cfg.INPUT.CROP.SIZE
    as_tqdm = "EVA02" in file
    assert (cfg.MODEL.MASK_FORMER.QUERIES == "text") == as_tqdm
    assert (cfg.DATALOADER.SAMPLER_TRAIN == "RareClassSampler") == as_tqdm


@every_leaf
def test_config_combines_its_parts_and_nothing_else(file: str) -> None:
    source, method, backbone = parts(file)
    content = yaml.safe_load((CONFIGS / file).read_text())
    if method in {name for name, _ in STRONG}:
        peer, head = STRONG[method, backbone]
        protocol, chosen = f"{source}_{peer}", [f"../heads/Base-{head}.yaml"]
        output = f"{source}_{Path(file).stem}"
    elif "maskformer" in file:
        protocol, head = QUERIES[f"{source}/{'panoptic_' * ('panoptic' in file)}{backbone}"]
        chosen = [f"../heads/Base-{head}.yaml"]
        output = f"{source}_{Path(file).stem}"
    else:
        protocol, chosen = f"{source}_{PEERS[backbone]}", []
        output = f"{source}_{backbone}" + ("" if method == "famix" else f"_{method}")
    chosen += [f"../backbones/Base-{backbone}.yaml", f"../methods/Base-{method}.yaml"]
    assert content == {
        "_BASE_": [f"../protocols/Base-{protocol}.yaml", *chosen], "OUTPUT_DIR": f"output/{output}"
    }  # fmt: skip
    found = flat_settings(load(file))
    assert {key: found[key] for key in METHODS[method]} == METHODS[method]


@pytest.mark.parametrize("name", SCHEDULES)
def test_protocol_follows_its_peer(name: str) -> None:
    cfg = load(f"protocols/Base-{name}.yaml")
    solver, crop, scales = SCHEDULES[name]
    assert {key: cfg.SOLVER[key] for key in solver} == solver
    size = [crop, crop] if isinstance(crop, int) else list(crop)
    assert (size, [], scales) == (cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP_RESIZED_TO, cfg.INPUT.SCALE_RANGE)


PROTOCOLS = {
    "GTA5_CLOUDS": dict.fromkeys(("cityscapes_val", "bdd100k_val", "mapillary_val"), "short1024"),
    "GTA5_TQDM": {
        "cityscapes_val": "fit2048x1024+slide512+logits", "bdd100k_val": "slide512+logits",
        "mapillary_val": "fit2048x1024+slide512+logits",
    },
    "GTA5_Rein": {
        "cityscapes_val": "fit1024x512+slide512+logits", "bdd100k_val": "slide512+logits",
        "mapillary_mapb_val": "fit1024x512+halftruth+slide512+logits",
    },
    "Cityscapes_Rein": dict.fromkeys(
        ("cityscapes_val", *(f"acdc_{word}_val" for word in ("fog", "night", "rain", "snow"))), "slide1024+logits"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_targets_are_scored_as_published(name: str) -> None:
    cfg = load(f"protocols/Base-{name}.yaml")
    with registered():
        assert {target: protocol_of(cfg, target).name for target in PROTOCOLS[name]} == PROTOCOLS[name]
        assert set(cfg.DATASETS.TEST) >= PROTOCOLS[name].keys()
        targets = [target for target in cfg.DATASETS.TEST if target != cfg.MODEL_SELECTION.SOURCE_VAL]
    if name.startswith("GTA5"):
        assert set(targets) == PROTOCOLS[name].keys()  # others would enter the mean


@pytest.mark.parametrize("backbone", [*TINY, "RN50"])
def test_weights_are_published(backbone: str) -> None:
    model = load(f"backbones/Base-{backbone}.yaml").MODEL
    if backbone == "DINOv2-L":
        config: Any = timm.get_pretrained_cfg(model.TIMM.NAME)
        assert model.TIMM.WEIGHTS == "pretrained" and config.has_weights
    elif model.CLIP.WEIGHTS.startswith("open_clip:"):
        assert open_clip.get_pretrained_cfg(*model.CLIP.WEIGHTS.removeprefix("open_clip:").split("/"))
    else:
        assert is_published(model.CLIP.WEIGHTS)


# Real sizes, without memory for weights


@pytest.mark.parametrize("backbone", TINY)
def test_numbers_of_parameters_in_the_zoo(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_init, "_trunc_normal_", draw_normal)
    cfg = undownloaded(load(f"GTA5/adapters_{backbone}.yaml", "MODEL.DEVICE", "meta", "MODEL.TIMM.WEIGHTS", ""))
    with torch.device("meta"):
        model = build_model(cfg)
    own = {name: x.numel() for name, x in model.named_parameters() if not x.requires_grad}
    trained = {name: x.numel() for name, x in model.named_parameters() if x.requires_grad}
    adapters = {name for name in trained if ".parametrizations." in name}
    head = sum(trained[name] for name in trained.keys() - adapters)
    total = head + sum(own.values())
    counts = [total, head, total, sum(trained.values())]
    (row,) = re.findall(rf"^\| {backbone} \| (.* M) \|$", ZOO.read_text(), flags=re.MULTILINE)
    assert row.split(" | ") == [f"{count / 1e6:.1f} M" for count in counts]
    (result,) = model.eval()([{"image": torch.empty(3, 250, 333, device="meta"), "height": 500, "width": 666}])
    assert result["sem_seg"].shape == (19, 500, 666)


# All configs, in miniature


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all datasets, and the working directory of the runs."""
    folder = tmp_path_factory.mktemp("miniature")
    make_street_datasets(folder / "datasets")
    save_tiny_clip(folder / "clip.pt", layers=(1, 1, 1, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        patch.setattr(weight_init, "_trunc_normal_", draw_normal)
        patch.chdir(folder)
        yield folder


def small(file: str, folder: Path) -> CfgNode:
    """Load a config with a tiny backbone, a narrow head and crops that fit the miniature images."""
    backbone = parts(file)[2]
    if backbone == "DINOv2-L":
        options = ["MODEL.TIMM.NAME", TINY[backbone], "MODEL.TIMM.WEIGHTS", ""]
    elif backbone == "RN50":
        options = ["MODEL.CLIP.WEIGHTS", str(folder / "clip.pt")]
    elif "maskformer" in file:  # with a text tower
        options = ["MODEL.CLIP.WEIGHTS", str(tiny_open_clip(TINY[backbone], folder).file)]
        options += ["MODEL.CLIP.ARCHITECTURE", tiny_open_clip(TINY[backbone], folder).architecture]
    else:
        architecture = tiny_open_clip(TINY[backbone], folder).architecture
        options = ["MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP.ARCHITECTURE", architecture]
    return load(
        file, *options, "MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8", "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[4]", "INPUT.CROP.SIZE", "[48, 48]",
        "STYLE_MINING.IMS_PER_BATCH", "2", "STYLE_MINING.STEPS", "1", "STYLE_MINING.TEMPLATES", "['a {}']",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0",
        "MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.ENCODER_LAYERS", "1",
        "MODEL.MASK_FORMER.DECODER_LAYERS", "1", "MODEL.MASK_FORMER.NUM_POINTS", "64",
    )  # fmt: skip


@every_leaf
def test_config_trains_two_steps_and_predicts(file: str, miniature: Path) -> None:
    cfg, (_, method, _) = small(file, miniature), parts(file)
    cfg.MODEL.STYLE.BANK = __file__  # exists, so that nothing would be mined
    with registered():
        check_config(cfg, argparse.Namespace(eval_only=False, mine_styles_only=False))
        classes = len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes)
        torch.manual_seed(0)
        model: Any = build_model(cfg)
    tower = model.clip_backbone
    trained = {name for name, x in tower.named_parameters() if x.requires_grad}
    assert bool(trained) == (method != "source_only")
    assert all("parametrizations" in name for name in trained) == ("finetuning" not in method)
    if "famix" in method:
        bank, channels = StyleBank(), tower.output_shape()[cfg.MODEL.STYLE.STAGE].channels
        bank.add(torch.arange(classes), torch.randn(classes, channels), torch.rand(classes, channels))
        model.restyler.use_bank(bank)
        model.restyler.reseed(0)
    parameters = dict(model.named_parameters())
    before = {name: x.detach().clone() for name, x in parameters.items()}
    optimizer = build_optimizer(cfg, model)
    batch = [
        {"image": torch.randint(256, (3, 48, 48), dtype=torch.uint8), "sem_seg": torch.randint(classes, (48, 48))}
        for _ in range(2)
    ]
    if "maskformer" in file:
        for number, sample in enumerate(batch):
            present = sample["sem_seg"].unique().numpy()
            masks = sample["sem_seg"].numpy() == present[:, None, None]
            sample |= {"segments": make_segments(masks, present.tolist()), "point_seed": number}
    for _ in range(2):
        optimizer.zero_grad()
        loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    moved = {name for name, x in parameters.items() if not torch.equal(x, before[name])}
    assert moved and all(parameters[name].requires_grad for name in moved)
    in_tower = {id(x) for x in tower.parameters()}
    assert any(id(parameters[name]) in in_tower for name in moved) == bool(trained)
    (result,) = model.eval()([{"image": batch[0]["image"][:, :40], "height": 80, "width": 96}])
    assert result["sem_seg"].shape == (classes, 80, 96) and result["sem_seg"].isfinite().all()
    assert ("panoptic_seg" in result) == ("panoptic" in file)


def test_styles_are_mined(miniature: Path) -> None:
    cfg = small("GTA5/famix_EVA02-L-14.yaml", miniature)
    cfg.MODEL.CLIP.WEIGHTS = str(tiny_open_clip("eva02", miniature).file)
    with registered():
        bank = obtain_style_bank(cfg)
    assert len(bank) and (bank.std > 0).all()
    assert bank.num_channels == tower_without_weights(cfg).output_shape()["block1"].channels


# The model zoo


def large_part_of_zoo() -> str:
    return ZOO.read_text().partition("## Large backbones")[2].partition("\n## ")[0]


def test_zoo_lists_every_config() -> None:
    links = re.findall(r"\]\(configs/large/([^)#]+\.yaml)\)", large_part_of_zoo())
    assert sorted(links) == LEAVES


def test_zoo_has_published_numbers_and_none_of_ours() -> None:
    tables = [table for table in large_part_of_zoo().split("\n\n") if table.startswith("| backbone | configs")]
    assert len(tables) == 4
    for table in tables:
        head, _, *rows = (re.split(r" *\| *", line)[1:-1] for line in table.splitlines())
        assert head[-1] == "ours"
        assert all(len(row) == len(head) and row[-1] == "" for row in rows)
        assert all(re.fullmatch(r"\d\d\.\d|-", cell) for row in rows for cell in row[3:-1])
