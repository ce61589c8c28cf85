"""Parameter groups and the learning-rate schedule of the recipe."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from famix.config import require_setting
from famix.utils.errors import ConfigError, WeightsError

_SCHEDULES = ("PolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
_RATES = (
    *("BASE_LR", "BACKBONE_LR_FACTOR", "BIAS_LR_FACTOR", "MOMENTUM"),
    *("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS", "WEIGHT_DECAY_EMBED"),
)
_OPTIMIZERS = {"SGD": torch.optim.SGD, "ADAM": torch.optim.Adam, "ADAMW": torch.optim.AdamW}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Build the optimizer set in SOLVER.OPTIMIZER for all trainable parameters, with a separate rate for the backbone.

    Raises:
        ConfigError: no parameter is trainable, or a SOLVER setting is invalid.
    """
    solver = cfg.SOLVER
    for name in _RATES:  # torch rejects some invalid rates and diverges with the others
        valid = solver[name] is None or 0 <= solver[name] < math.inf
        require_setting(cfg, f"SOLVER.{name}", valid, "a finite non-negative number", "Set it to 0.0 or more")
    valid = not solver.NESTEROV or solver.MOMENTUM > 0
    require_setting(cfg, "SOLVER.NESTEROV", valid, "False if SOLVER.MOMENTUM is 0", "Set SOLVER.NESTEROV to False")
    names = ", ".join(_OPTIMIZERS)
    require_setting(cfg, "SOLVER.OPTIMIZER", solver.OPTIMIZER in _OPTIMIZERS, f"one of {names}", "Set it to SGD")
    # Like a head, the convolutions of a feature pyramid are initialized randomly.
    backbone = getattr(model, "backbone", None)
    pretrained = getattr(backbone, "bottom_up", backbone)
    prefix = next((f"{name}." for name, module in model.named_modules() if module is pretrained), "backbone.")
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_LR_FACTOR if name.startswith(prefix) else 1.0,
    )
    if solver.WEIGHT_DECAY_EMBED is not None:
        embeddings = {"params": _embeddings(model), "weight_decay": solver.WEIGHT_DECAY_EMBED}
        groups = reduce_param_groups([*groups, embeddings])
    remedy = "Set it to a submodule of the backbone, or to all"
    require_setting(cfg, "MODEL.CLIP.TRAINABLE", bool(groups), "non-empty if the model has no trainable head", remedy)
    settings = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV} if solver.OPTIMIZER == "SGD" else {}
    return maybe_add_gradient_clipping(cfg, _OPTIMIZERS[solver.OPTIMIZER](groups, lr=solver.BASE_LR, **settings))


def _embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable embeddings: tables such as queries, and parameters named like positions and class tokens."""
    return [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and (isinstance(module, nn.Embedding) or "embed" in name or name.endswith("token"))
    ]


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Build the schedule set in SOLVER.LR_SCHEDULER_NAME: PolyLR or one of Detectron2's.

    PolyLR decays the rate of each group with power POLY_LR_POWER, never below POLY_LR_FLOOR (an absolute rate), after
    WARMUP_ITERS iterations of linear warm-up from WARMUP_FACTOR.

    Raises:
        ConfigError: a schedule setting is invalid.
    """
    name, max_iter = cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.MAX_ITER
    require_setting(cfg, "SOLVER.MAX_ITER", max_iter > 0, "positive", "Use --eval-only to evaluate without training")
    require_setting(
        cfg, "SOLVER.LR_SCHEDULER_NAME", name in _SCHEDULES, f"one of {', '.join(_SCHEDULES)}", "Use PolyLR"
    )
    if name == "PolyLR":
        return LambdaLR(optimizer, [_poly_lambda(cfg, group["lr"]) for group in optimizer.param_groups])
    try:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise ConfigError(
            f"Invalid settings for SOLVER.LR_SCHEDULER_NAME {name}: {error}. Set it to PolyLR."
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
    """Return (1 - iteration / max_iter) ** power, or 0 from max_iter on."""
    return max(0.0, 1 - iteration / max_iter) ** power


def transfer_state(state: Mapping[str, Any], saved: Optimizer, optimizer: Optimizer) -> dict[str, Any]:
    """Transfer the state of a saved optimizer to one whose settings and parameter groups may differ.

    Args:
        state: state dict of the saved optimizer.
        saved: new optimizer for the same parameters, built with the saved settings.
        optimizer: optimizer with the current rates, decays and other settings.

    Returns:
        State for `optimizer.load_state_dict`.

    Raises:
        WeightsError: the state belongs to different parameters.
    """
    sizes, expected = ([len(g["params"]) for g in groups] for groups in (state["param_groups"], saved.param_groups))
    if sizes != expected:
        raise WeightsError(
            f"The optimizer has parameter groups of sizes {expected}, but the checkpoint has groups of sizes {sizes}. "
            "Resume with the MODEL.CLIP.TRAINABLE and SOLVER settings of the original run."
        )
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in saved.param_groups for parameter in group["params"]]
    entries = {p: state["state"][n] for p, n in zip(parameters, numbers, strict=True) if n in state["state"]}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    momenta = {number: entries[parameter] for number, parameter in enumerate(ordered) if parameter in entries}
    return {"state": momenta, "param_groups": optimizer.state_dict()["param_groups"]}  # numbered in that order


def set_position(scheduler: LRScheduler, iterations: int) -> None:
    """Advance a new closed-form scheduler to its learning rates after a positive number of iterations."""
    scheduler.last_epoch = iterations - 1
    scheduler._step_count = iterations + 1  # at 1, torch warns about stepping before the optimizer
    scheduler.step()
    scheduler._step_count = iterations + 1
