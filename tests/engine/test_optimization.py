"""Parameter groups, and learning rates in absolute terms."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from error_matching import expect_error
from famix.config import add_famix_config
from famix.engine import build_lr_scheduler, build_optimizer
from famix.engine.optimization import poly_factor
from famix.utils.errors import ConfigError
from model_factory import tiny_backbone, tiny_segmentor
from query_factory import tiny_maskformer


def config(**solver):
    cfg = get_cfg()
    add_famix_config(cfg)
    recipe = {"BASE_LR": 0.1, "MAX_ITER": 100, "LR_SCHEDULER_NAME": "PolyLR", "WARMUP_ITERS": 0}
    cfg.SOLVER.update(recipe | {"WEIGHT_DECAY": 1e-4, "WEIGHT_DECAY_NORM": 1e-3} | solver)
    return cfg


def two_layers():
    return nn.ModuleDict({"backbone": nn.Linear(1, 1), "sem_seg_head": nn.Linear(1, 1)})


def groups_by_parameter(cfg, model):
    """Name of every parameter in the optimizer -> its group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    return {names[parameter]: group for group in groups for parameter in group["params"]}


def rates(cfg, steps):
    """Learning rates of the backbone and of the head before steps 0, 1, ..."""
    optimizer = build_optimizer(cfg, two_layers())
    scheduler, got = build_lr_scheduler(cfg, optimizer), []
    for _ in range(steps):
        got.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return list(zip(*got, strict=True))


# Groups


def test_every_trained_parameter_has_its_rate_and_decay():
    model = tiny_segmentor(backbone=tiny_backbone((1, 1, 1, 3), trainable=["layer4.2"]))
    groups = groups_by_parameter(config(), model)
    assert groups.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in groups} == {"backbone", "sem_seg_head"}
    assert all(name.startswith("backbone.layer4.2.") for name in groups if name.startswith("backbone."))
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(0.01 if name.startswith("backbone.") else 0.1), name
        assert group["weight_decay"] == (1e-3 if name.rpartition(".")[0] in norms else 1e-4), name
        assert (group["momentum"], group["nesterov"]) == (0.9, False)


def test_solver_settings_apply():
    settings = {"MOMENTUM": 0.5, "NESTEROV": True, "BACKBONE_LR_FACTOR": 0.5, "WEIGHT_DECAY_BIAS": 0.0}
    groups = groups_by_parameter(config(**settings), two_layers())
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "backbone.weight": (0.05, 1e-4),
        "backbone.bias": (0.05, 0.0),
        "sem_seg_head.weight": (0.1, 1e-4),
        "sem_seg_head.bias": (0.1, 0.0),
    }
    assert {(g["momentum"], g["nesterov"]) for g in groups.values()} == {(0.5, True)}


def test_embeddings_have_their_own_decay():
    cfg = config(WEIGHT_DECAY_EMBED=0.0, OPTIMIZER="ADAMW")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "test_vit"
    cfg.MODEL.CLIP.TRAINABLE, cfg.MODEL.FPN.OUT_CHANNELS = ["all"], 8
    model = tiny_maskformer(build_backbone(cfg))
    groups = groups_by_parameter(cfg, model)
    assert groups.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tower = next(name for name in groups if name.endswith("pos_embed")).removesuffix("pos_embed")
    queries = {f"decoder.transformer.queries_{name}.weight" for name in ("embedder", "features")}
    levels = {"decoder.transformer.level_embed.weight", "decoder.pixel_decoder.level_embed"}
    without = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert without == {*queries, *levels, f"{tower}pos_embed", f"{tower}cls_token"}
    assert {groups[name]["lr"] for name in without} == {0.1, 0.1 * cfg.SOLVER.BACKBONE_LR_FACTOR}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)}
    for name in groups.keys() - without:
        assert groups[name]["weight_decay"] == (1e-3 if name.rpartition(".")[0] in norms else 1e-4), name
    cfg.SOLVER.WEIGHT_DECAY_EMBED = None  # as in earlier releases
    assert all(groups_by_parameter(cfg, model)[name]["weight_decay"] == 1e-4 for name in without)


def test_tower_in_a_pyramid_has_the_rate_of_backbones():
    cfg = config()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "test_vit"
    cfg.MODEL.CLIP.TRAINABLE, cfg.MODEL.FPN.OUT_CHANNELS = ["trunk.blocks.1"], 8
    groups = groups_by_parameter(cfg, nn.ModuleDict({"backbone": build_backbone(cfg)}))
    slow = {name for name, group in groups.items() if group["lr"] == pytest.approx(0.01)}
    assert slow == {name for name in groups if ".blocks.1." in name} and slow
    assert {groups[name]["lr"] for name in groups.keys() - slow} == {0.1}


def test_step_moves_trained_parameters_only():
    model = tiny_segmentor(backbone=tiny_backbone((1, 1, 1, 2), trainable=["layer4.1"]))
    optimizer = build_optimizer(config(), model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # also for frozen ones
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with expect_error(ConfigError, "MODEL.CLIP.TRAINABLE", remedy="submodule of the backbone"):
        build_optimizer(config(), nn.Linear(1, 1).requires_grad_(False))


# Schedules


@pytest.mark.parametrize(
    "settings",
    [
        {"WARMUP_FACTOR": 0.001, "POLY_LR_FLOOR": 1e-6},  # without warm-up
        {"POLY_LR_FLOOR": 0.02},
        {"WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.1, "POLY_LR_FLOOR": 1e-6},
        {"BACKBONE_LR_FACTOR": 0.0, "POLY_LR_FLOOR": 1e-6},
    ],
)
def test_poly_schedule(settings):
    factor = settings.get("BACKBONE_LR_FACTOR", 0.1)
    iterations = settings.get("WARMUP_ITERS", 0)
    warmup = [min(1, 0.1 + 0.9 * i / 10) if iterations else 1 for i in range(120)]
    for found, base in zip(rates(config(**settings), 120), (0.1 * factor, 0.1), strict=True):
        floor = settings["POLY_LR_FLOOR"] if base else 0.0
        decayed = [base * (1 - i / 100) ** 0.9 if i < 100 else 0.0 for i in range(120)]
        assert found == pytest.approx([max(rate, floor) * w for rate, w in zip(decayed, warmup, strict=True)])
        assert found[-1] == pytest.approx(floor)
    assert poly_factor(25, 100, 0.5) == pytest.approx(0.75**0.5) and poly_factor(101, 100, 0.9) == 0


@pytest.mark.parametrize(
    ("name", "after_50"), [("WarmupMultiStepLR", 0.01), ("WarmupCosineLR", 0.05), ("WarmupStepWithFixedGammaLR", 0.01)]
)
def test_schedules_of_detectron2(name, after_50):
    cfg = config(LR_SCHEDULER_NAME=name, STEPS=(50,), GAMMA=0.1, NUM_DECAYS=1)
    _, head = rates(cfg, 51)
    assert head[0] == pytest.approx(0.1)
    assert head[50] == pytest.approx(after_50)


# Optimizers


@pytest.mark.parametrize(
    ("name", "kind"), [("SGD", torch.optim.SGD), ("ADAM", torch.optim.Adam), ("ADAMW", torch.optim.AdamW)]
)
def test_optimizer_and_gradient_clipping(name, kind):
    cfg, model = config(OPTIMIZER=name), tiny_segmentor()
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is kind
    assert {(round(group["lr"], 9), group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.01, 1e-4), (0.1, 1e-4), (0.01, 1e-3), (0.1, 1e-3)
    }  # fmt: skip
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", "value", "CLIP_VALUE", 0.5])
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 9.0)
    optimizer.step()
    assert all((parameter.grad == 0.5).all() for parameter in model.parameters())
