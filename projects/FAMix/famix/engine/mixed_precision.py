"""Detectron2's mixed-precision trainer, on any device."""

import time

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn
from torch.utils.data import DataLoader

from famix.errors import ConfigError

__all__ = ["MixedPrecisionTrainer", "build_step_trainer"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class MixedPrecisionTrainer(AMPTrainer):
    """AMPTrainer without its ties to CUDA: bfloat16 also runs on the CPU.

    Args:
        model: maps a batch to a dict of losses.
        data_loader: of batches, endless.
        optimizer: of the model.
        device_type: "cuda", "cpu", ...
        dtype: torch.float16, whose gradients are scaled, or torch.bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        *,
        device_type: str,
        dtype: torch.dtype,
    ) -> None:
        scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype)
        self.device_type = device_type

    def run_step(self) -> None:
        """One iteration: forward under autocast, backward of the scaled loss, optimiser step."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.precision):
            loss_dict = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(loss_dict.values())).backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.unscale_(self.optimizer)  # before the optimiser may clip them
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: DataLoader, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """The trainer that runs single iterations, in the precision of SOLVER.AMP.

    Raises:
        ConfigError: a precision that the device lacks.
    """
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return SimpleTrainer(model, data_loader, optimizer)
    device_type = torch.device(cfg.MODEL.DEVICE).type
    if amp.DTYPE not in _DTYPES or (amp.DTYPE == "float16" and device_type == "cpu"):
        raise ConfigError(
            f"SOLVER.AMP.DTYPE must be float16 (not on the CPU) or bfloat16; got {amp.DTYPE!r} with MODEL.DEVICE "
            f"{cfg.MODEL.DEVICE}"
        )
    return MixedPrecisionTrainer(model, data_loader, optimizer, device_type=device_type, dtype=_DTYPES[amp.DTYPE])
