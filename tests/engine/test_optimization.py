"""Parameter groups, and learning rates in absolute terms."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from error_matching import expect_error
from famix.config import add_famix_config
from famix.engine import build_lr_scheduler, build_optimizer
from famix.engine.optimization import poly_factor
from famix.utils.errors import ConfigError
from model_factory import tiny_backbone, tiny_segmentor


def config(**solver):
    cfg = get_cfg()
    add_famix_config(cfg)
    recipe = {"BASE_LR": 0.1, "MAX_ITER": 100, "LR_SCHEDULER_NAME": "PolyLR", "WARMUP_ITERS": 0}
    cfg.SOLVER.update(recipe | {"WEIGHT_DECAY": 1e-4, "WEIGHT_DECAY_NORM": 1e-3} | solver)
    return cfg


def groups_by_parameter(optimizer, model):
    """Name of every parameter in the optimiser -> its group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]}


def rates(cfg, steps):
    """Learning rates of a backbone's and a head's group before steps 0, 1, ..."""
    model = nn.ModuleDict({"backbone": nn.Linear(1, 1), "sem_seg_head": nn.Linear(1, 1)})
    optimizer = build_optimizer(cfg, model)
    scheduler, got = build_lr_scheduler(cfg, optimizer), []
    for _ in range(steps):
        got.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return list(zip(*got, strict=True))


# Groups


def test_every_trained_parameter_has_its_rate_and_decay():
    model = tiny_segmentor(backbone=tiny_backbone((1, 1, 1, 3), trainable=["layer4.2"]))
    groups = groups_by_parameter(build_optimizer(config(), model), model)
    assert groups.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in groups} == {"backbone", "sem_seg_head"}
    assert all(name.startswith("backbone.layer4.2.") for name in groups if name.startswith("backbone."))
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(0.01 if name.startswith("backbone.") else 0.1), name
        assert group["weight_decay"] == (1e-3 if name.rpartition(".")[0] in norms else 1e-4), name
        assert (group["momentum"], group["nesterov"]) == (0.9, False)


def test_settings_of_the_solver():
    model = nn.ModuleDict({"backbone": nn.Linear(1, 1), "sem_seg_head": nn.Linear(1, 1)})
    settings = {"MOMENTUM": 0.5, "NESTEROV": True, "BACKBONE_LR_FACTOR": 0.5, "WEIGHT_DECAY_BIAS": 0.0}
    groups = groups_by_parameter(build_optimizer(config(**settings), model), model)
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "backbone.weight": (0.05, 1e-4),
        "backbone.bias": (0.05, 0.0),
        "sem_seg_head.weight": (0.1, 1e-4),
        "sem_seg_head.bias": (0.1, 0.0),
    }
    assert {(g["momentum"], g["nesterov"]) for g in groups.values()} == {(0.5, True)}


def test_a_step_moves_what_trains_and_nothing_else():
    model = tiny_segmentor(backbone=tiny_backbone((1, 1, 1, 2), trainable=["layer4.1"]))
    optimizer = build_optimizer(config(), model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # also where it is frozen
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_something_must_train():
    model = nn.Linear(1, 1).requires_grad_(False)
    with expect_error(ConfigError, "MODEL.CLIP.TRAINABLE", remedy="submodule of the backbone"):
        build_optimizer(config(), model)


# Schedule


def test_poly_schedule():
    backbone, head = rates(config(WARMUP_ITERS=0, WARMUP_FACTOR=0.001), 101)
    expected = [0.1 * (1 - i / 100) ** 0.9 for i in range(100)]
    assert head[:100] == pytest.approx(expected)
    assert backbone[:100] == pytest.approx([rate / 10 for rate in expected])


@pytest.mark.parametrize("floor", [1e-6, 0.02])
def test_the_floor_is_an_absolute_rate_in_every_group(floor):
    backbone, head = rates(config(POLY_LR_FLOOR=floor), 120)
    assert head == pytest.approx([max(0.1 * poly_factor(i, 100, 0.9), floor) for i in range(120)])
    assert backbone == pytest.approx([max(0.01 * poly_factor(i, 100, 0.9), floor) for i in range(120)])
    assert head[-1] == backbone[-1] == pytest.approx(floor)


def test_warm_up():
    backbone, head = rates(config(WARMUP_ITERS=10, WARMUP_FACTOR=0.1), 20)
    warmup = [min(1, 0.1 + 0.9 * i / 10) for i in range(20)]
    assert head == pytest.approx([0.1 * poly_factor(i, 100, 0.9) * w for i, w in enumerate(warmup)])
    assert head[0] == pytest.approx(0.01) and backbone[0] == pytest.approx(0.001)


def test_a_backbone_factor_of_zero_stands_still():
    backbone, head = rates(config(BACKBONE_LR_FACTOR=0.0), 120)
    assert set(backbone) == {0.0} and head[0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "after_50"), [("WarmupMultiStepLR", 0.01), ("WarmupCosineLR", 0.05), ("WarmupStepWithFixedGammaLR", 0.01)]
)
def test_detectron2s_schedules_can_be_chosen(name, after_50):
    cfg = config(LR_SCHEDULER_NAME=name, STEPS=(50,), GAMMA=0.1, NUM_DECAYS=1)
    _, head = rates(cfg, 51)
    assert head[0] == pytest.approx(0.1)
    assert head[50] == pytest.approx(after_50)


# Optimisers


@pytest.mark.parametrize(
    ("name", "kind"), [("SGD", torch.optim.SGD), ("ADAM", torch.optim.Adam), ("ADAMW", torch.optim.AdamW)]
)
def test_the_config_names_the_optimiser(name, kind):
    optimizer = build_optimizer(config(OPTIMIZER=name), tiny_segmentor())
    assert type(optimizer) is kind
    assert {(round(group["lr"], 9), group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.01, 1e-4), (0.1, 1e-4), (0.01, 1e-3), (0.1, 1e-3)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_gradients_are_clipped_where_the_config_says_so(name):
    cfg = config(OPTIMIZER=name)
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", "value", "CLIP_VALUE", 0.5])
    model = tiny_segmentor()
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 9.0)
    optimizer.step()
    assert all((parameter.grad == 0.5).all() for parameter in model.parameters())
