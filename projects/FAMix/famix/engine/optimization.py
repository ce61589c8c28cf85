"""Optimiser groups and learning-rate schedule of the recipe."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from famix.utils.errors import ConfigError, WeightsError

__all__ = ["build_lr_scheduler", "build_optimizer", "poly_factor", "set_position", "transfer_state"]

_BACKBONE, _BOTTOM_UP = "backbone.", "backbone.bottom_up."
_SCHEDULES = ("PolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
_ADAMS = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """The optimiser of SOLVER.OPTIMIZER over the parameters that train, the backbone's at a rate of their own.

    Args:
        cfg: reads SOLVER.
        model: a meta-architecture whose backbone is called `backbone`.

    Raises:
        ConfigError: nothing trains, or there is no such optimiser.
    """
    solver = cfg.SOLVER
    # The convolutions of a feature pyramid start from nothing, as those of a head do.
    pretrained = _BOTTOM_UP if hasattr(getattr(model, "backbone", None), "bottom_up") else _BACKBONE
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_LR_FACTOR if name.startswith(pretrained) else 1.0,
    )
    if not groups:
        raise ConfigError("no parameter of the model trains; name some of the backbone's in MODEL.CLIP.TRAINABLE")
    if solver.OPTIMIZER == "SGD":
        sgd = torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
        return maybe_add_gradient_clipping(cfg, sgd)
    if solver.OPTIMIZER in _ADAMS:
        return maybe_add_gradient_clipping(cfg, _ADAMS[solver.OPTIMIZER](groups, lr=solver.BASE_LR))
    raise ConfigError(f"SOLVER.OPTIMIZER must be one of SGD, {', '.join(_ADAMS)}; got {solver.OPTIMIZER!r}")


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that SOLVER.LR_SCHEDULER_NAME names: PolyLR, or any of Detectron2's.

    PolyLR decays each group's rate with power POLY_LR_POWER, never below POLY_LR_FLOOR (an absolute rate), after
    WARMUP_ITERS iterations of linear warm-up from WARMUP_FACTOR.

    Raises:
        ConfigError: there is no such schedule.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME must be one of {', '.join(_SCHEDULES)}, got {name!r}")
    if name != "PolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    return LambdaLR(optimizer, [_poly_lambda(cfg, group["lr"]) for group in optimizer.param_groups])


def _poly_lambda(cfg: CfgNode, base_lr: float) -> Callable[[int], float]:
    solver = cfg.SOLVER
    floor = solver.POLY_LR_FLOOR / base_lr if base_lr else 0.0  # a group of rate 0 stands still

    def factor(iteration: int) -> float:
        decayed = poly_factor(iteration, solver.MAX_ITER, solver.POLY_LR_POWER)
        warmup = min(1.0, solver.WARMUP_FACTOR + (1 - solver.WARMUP_FACTOR) * iteration / max(1, solver.WARMUP_ITERS))
        return max(decayed, floor) * (warmup if solver.WARMUP_ITERS else 1.0)

    return factor


def poly_factor(iteration: int, max_iter: int, power: float) -> float:
    """(1 - iteration / max_iter) ** power, 0 from max_iter on."""
    return max(0.0, 1 - iteration / max_iter) ** power


def transfer_state(state: Mapping[str, Any], saved: Optimizer, optimizer: Optimizer) -> dict[str, Any]:
    """The momenta of a saved optimiser for one with other settings, by which parameters may be grouped otherwise.

    Args:
        state: state_dict that was saved.
        saved: an optimiser over the same parameters, with the settings of the saved one.
        optimizer: its rates, decays and other settings hold from now on.

    Returns:
        What `optimizer.load_state_dict` takes.

    Raises:
        WeightsError: the state is of other parameters.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    sizes = [[len(group["params"]) for group in groups] for groups in (state["param_groups"], saved.param_groups)]
    if sizes[0] != sizes[1]:
        raise WeightsError(
            f"its optimiser has parameters in groups of {sizes[0]}, got {sizes[1]} from its settings; resume with the "
            "MODEL.CLIP.TRAINABLE and the settings of SOLVER that it was trained with"
        )
    parameters = [parameter for group in saved.param_groups for parameter in group["params"]]
    number_of = dict(zip(parameters, numbers, strict=True))
    present = optimizer.state_dict()
    momenta = {}
    for group, described in zip(optimizer.param_groups, present["param_groups"], strict=True):
        for parameter, number in zip(group["params"], described["params"], strict=True):
            entries = state["state"].get(number_of[parameter])
            if entries is not None:
                momenta[number] = entries
    return {"state": momenta, "param_groups": present["param_groups"]}


def set_position(scheduler: LRScheduler, iterations: int) -> None:
    """Set the rates to those after some iterations, from a schedule that gives them in closed form.

    Args:
        scheduler: of `build_lr_scheduler`, new.
        iterations: that were done, at least 1.
    """
    scheduler.last_epoch = iterations - 1
    scheduler._step_count = iterations + 1  # at 1, torch warns of a step before that of the optimiser
    scheduler.step()
    scheduler._step_count = iterations + 1
