"""Optimizer groups and learning-rate schedule of the recipe."""

import math
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
_RATES = (
    *("BASE_LR", "BACKBONE_LR_FACTOR", "BIAS_LR_FACTOR", "MOMENTUM"),
    *("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
)
_ADAMS = {"ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Build the optimizer of SOLVER.OPTIMIZER over the parameters that train, with a learning rate for the backbone.

    Args:
        cfg: config with SOLVER.
        model: meta-architecture with the attribute `backbone`.

    Raises:
        ConfigError: nothing trains, or a setting of SOLVER is invalid.
    """
    solver = cfg.SOLVER
    for name in _RATES:  # torch refuses some invalid rates, and diverges with the others
        rate = solver[name]
        if rate is not None and not 0 <= rate < math.inf:
            raise ConfigError(
                f"SOLVER.{name} must be a finite non-negative number, got {rate}. Set SOLVER.{name} 0.0 or more."
            )
    if solver.NESTEROV and not solver.MOMENTUM:
        raise ConfigError("SOLVER.NESTEROV must be False without SOLVER.MOMENTUM, got True. Set SOLVER.NESTEROV False.")
    # The convolutions of a feature pyramid are initialized randomly, like a head.
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
        raise ConfigError(
            f"MODEL.CLIP.TRAINABLE must select parameters in a model without a trainable head, got "
            f"{list(cfg.MODEL.CLIP.TRAINABLE)}. Name a submodule of the backbone, or all."
        )
    if solver.OPTIMIZER == "SGD":
        sgd = torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
        return maybe_add_gradient_clipping(cfg, sgd)
    if solver.OPTIMIZER in _ADAMS:
        return maybe_add_gradient_clipping(cfg, _ADAMS[solver.OPTIMIZER](groups, lr=solver.BASE_LR))
    raise ConfigError(
        f"SOLVER.OPTIMIZER must be one of SGD, {', '.join(_ADAMS)}, got {solver.OPTIMIZER!r}. Set it to SGD."
    )


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Build the schedule of SOLVER.LR_SCHEDULER_NAME: PolyLR, or one of Detectron2's.

    PolyLR decays the rate of each group with power POLY_LR_POWER, never below POLY_LR_FLOOR (an absolute rate), after
    WARMUP_ITERS iterations of linear warm-up from WARMUP_FACTOR.

    Raises:
        ConfigError: a setting of the schedule is invalid.
    """
    if cfg.SOLVER.MAX_ITER < 1:
        raise ConfigError(
            f"SOLVER.MAX_ITER must be positive, got {cfg.SOLVER.MAX_ITER}. Use --eval-only to evaluate without training."
        )
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME must be one of {', '.join(_SCHEDULES)}, got {name!r}. Use PolyLR.")
    if name == "PolyLR":
        return LambdaLR(optimizer, [_poly_lambda(cfg, group["lr"]) for group in optimizer.param_groups])
    try:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME {name} must have valid settings, got: {error}. Use PolyLR."
        ) from error


def _poly_lambda(cfg: CfgNode, base_lr: float) -> Callable[[int], float]:
    solver = cfg.SOLVER
    floor = solver.POLY_LR_FLOOR / base_lr if base_lr else 0.0  # a rate of 0 stays 0

    def factor(iteration: int) -> float:
        decayed = poly_factor(iteration, solver.MAX_ITER, solver.POLY_LR_POWER)
        warmup = min(1.0, solver.WARMUP_FACTOR + (1 - solver.WARMUP_FACTOR) * iteration / max(1, solver.WARMUP_ITERS))
        return max(decayed, floor) * (warmup if solver.WARMUP_ITERS else 1.0)

    return factor


def poly_factor(iteration: int, max_iter: int, power: float) -> float:
    """Return (1 - iteration / max_iter) ** power, and 0 from max_iter on."""
    return max(0.0, 1 - iteration / max_iter) ** power


def transfer_state(state: Mapping[str, Any], saved: Optimizer, optimizer: Optimizer) -> dict[str, Any]:
    """Transfer the momenta of a saved optimizer to one with other settings, which may group parameters differently.

    Args:
        state: saved state dict.
        saved: optimizer over the same parameters, with the settings of the saved one.
        optimizer: optimizer with the present rates, decays and other settings.

    Returns:
        State for `optimizer.load_state_dict`.

    Raises:
        WeightsError: the state belongs to other parameters.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    sizes = [[len(group["params"]) for group in groups] for groups in (state["param_groups"], saved.param_groups)]
    if sizes[0] != sizes[1]:
        raise WeightsError(
            f"the optimizer must have parameter groups of sizes {sizes[1]}, got {sizes[0]} in the checkpoint. Resume with the "
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
    """Set the learning rates to those after some iterations; the schedule must have a closed form.

    Args:
        scheduler: new scheduler of `build_lr_scheduler`.
        iterations: number of completed iterations, positive.
    """
    scheduler.last_epoch = iterations - 1
    scheduler._step_count = iterations + 1  # at 1, torch warns of a step before that of the optimizer
    scheduler.step()
    scheduler._step_count = iterations + 1
