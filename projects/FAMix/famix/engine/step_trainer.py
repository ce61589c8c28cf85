"""Training iterations with mixed precision on any device, gradient accumulation and a check for non-finite losses."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from famix.config import require_setting
from famix.io.atomic import save_tensors
from famix.utils.errors import TrainingError
from famix.utils.messages import first_few

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

Sample = dict[str, Any]


class StepTrainer(AMPTrainer):
    """AMPTrainer that supports any device and also full precision.

    Args:
        model: model that maps a batch (a list of samples) to a dict of losses.
        data_loader: endless loader of batches.
        optimizer: optimizer for the model.
        device_type: device type in torch, e.g. "cuda" or "cpu".
        dtype: torch.float32, torch.bfloat16, or torch.float16 with scaled gradients.
        accumulate: number of parts into which a batch is split for successive forward passes. The gradient is the mean
            over the parts. Must divide the batch size.
        max_skipped: number of batches with a non-finite loss to skip before training stops.
        folder: folder for a file that reproduces the batch at which training stops.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        *,
        device_type: str,
        dtype: torch.dtype = torch.float32,
        accumulate: int = 1,
        max_skipped: int = 0,
        folder: str = ".",
    ) -> None:
        scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype)
        self.device_type = device_type
        self.accumulate = accumulate
        self.max_skipped = max_skipped
        self.skipped = 0
        self.folder = Path(folder)

    def run_step(self) -> None:
        """Run one iteration: forward and backward passes for all parts, then an optimizer step.

        Raises:
            TrainingError: the loss is not finite, and no more batches may be skipped.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        buffers = [buffer.clone() for buffer in self.model.buffers()] if self.skipped < self.max_skipped else []
        losses = self._backward(data)
        if not _finite_everywhere(losses):
            self._skip_or_stop(data, losses)
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):  # batch norm statistics
                buffer.copy_(before)
            return
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.unscale_(self.optimizer)  # before the optimizer clips the gradients
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a checkpoint. The gradient scale is reset if the precision has changed."""
        scale = state_dict["grad_scaler"] or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scale})

    def _backward(self, data: Sequence[Sample]) -> dict[str, Tensor]:
        """Accumulate the gradients of all parts and return the detached mean losses."""
        means: dict[str, Tensor] = {}
        for first in range(self.accumulate):
            exchanges = first == self.accumulate - 1 or not isinstance(self.model, DistributedDataParallel)
            with nullcontext() if exchanges else self.model.no_sync():  # exchange gradients only once
                with torch.autocast(self.device_type, dtype=self.precision, enabled=self.precision != torch.float32):
                    losses = self.model(data[first :: self.accumulate])
                self.grad_scaler.scale(sum(losses.values()) / self.accumulate).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / self.accumulate
        return means

    def _skip_or_stop(self, data: Sequence[Sample], losses: Mapping[str, Tensor]) -> None:
        files = first_few([sample.get("file_name", "an unnamed sample") for sample in data], 20)
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        self.optimizer.zero_grad()
        self.skipped += 1
        problem = f"The loss is not finite at iteration {self.iter} ({values}) for {files}"
        if self.skipped <= self.max_skipped:
            message = "%s. Skipped batch %d of at most %d (SOLVER.MAX_SKIPPED_BATCHES)."
            logging.getLogger(__name__).warning(message, problem, self.skipped, self.max_skipped)
            return
        path = self.folder / f"not_finite_{self.iter:07d}_rank{comm.get_rank()}.pth"
        model: Any = getattr(self.model, "module", self.model)
        saved = f"'{path}' contains these samples and the weights"
        try:
            save_tensors({"model": model.state_dict(), "samples": list(data), "iteration": self.iter}, path)
        except OSError as error:  # the loss error takes precedence
            saved = f"The samples cannot be written to '{path}' ({error.strerror or error})"
        raise TrainingError(
            f"{problem}. {saved}. Lower SOLVER.BASE_LR, check the files, or set SOLVER.MAX_SKIPPED_BATCHES to skip "
            "such batches, and continue from the last checkpoint with --resume."
        )


def _finite_everywhere(losses: Mapping[str, Tensor]) -> bool:
    """Return, in every process, whether the losses of all processes are finite."""
    finite = torch.stack([loss.isfinite().all() for loss in losses.values()]).all().int()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    return bool(finite)


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: DataLoader, optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """Build a StepTrainer from the SOLVER settings. Raises the errors of `check_steps`."""
    check_steps(cfg)
    solver, amp = cfg.SOLVER, cfg.SOLVER.AMP
    return StepTrainer(
        model,
        data_loader,
        optimizer,
        device_type=torch.device(cfg.MODEL.DEVICE).type,
        dtype=_DTYPES[amp.DTYPE] if amp.ENABLED else torch.float32,
        accumulate=solver.ACCUMULATE,
        max_skipped=solver.MAX_SKIPPED_BATCHES,
        folder=cfg.OUTPUT_DIR,
    )


def check_steps(cfg: CfgNode) -> None:
    """Check batch size, accumulation and precision against the number of processes and the device.

    Raises:
        ConfigError: a SOLVER setting is invalid.
    """
    solver, amp, processes = cfg.SOLVER, cfg.SOLVER.AMP, comm.get_world_size()
    images = solver.IMS_PER_BATCH // processes
    scales = amp.DTYPE == "float16" and torch.device(cfg.MODEL.DEVICE).type != "cpu"
    for name, valid, constraint, remedy in (
        ("IMS_PER_BATCH", images > 0 and images * processes == solver.IMS_PER_BATCH,
         f"a positive multiple of {processes}, the number of processes", f"Set it to a multiple of {processes}"),
        ("AMP.DTYPE", not amp.ENABLED or scales or amp.DTYPE == "bfloat16",
         f"bfloat16 (or float16 on a GPU) if MODEL.DEVICE is {cfg.MODEL.DEVICE}", "Set it to bfloat16"),
        ("ACCUMULATE", solver.ACCUMULATE > 0 and images % solver.ACCUMULATE == 0,
         f"a divisor of {images}, the number of images per batch and process", "Set it to 1"),
        ("MAX_SKIPPED_BATCHES", solver.MAX_SKIPPED_BATCHES >= 0, "non-negative", "Set it to 0"),
    ):  # fmt: skip
        require_setting(cfg, f"SOLVER.{name}", valid, constraint, remedy)
