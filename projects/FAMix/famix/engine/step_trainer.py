"""Single iterations: mixed precision on any device, accumulated gradients, and a stop where numbers break down."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from famix.io.atomic import save_tensors
from famix.utils.errors import ConfigError, TrainingError
from famix.utils.messages import first_few

__all__ = ["StepTrainer", "build_step_trainer", "check_steps"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

Sample = dict[str, Any]


class StepTrainer(AMPTrainer):
    """AMPTrainer without its ties to CUDA, and with full precision as well.

    Args:
        model: maps a batch, a list of samples, to a dict of losses.
        data_loader: of batches, endless.
        optimizer: of the model.
        device_type: "cuda", "cpu", ...
        dtype: torch.float32; torch.float16, whose gradients are scaled; or torch.bfloat16.
        accumulate: parts that a batch is cut into, one after the other through the model; the gradient is the mean of
            theirs, so that a batch fits a device that holds only a part. Divides the size of a batch.
        max_skipped: batches with a loss that is not finite that are left out before one stops the training.
        folder: for what reproduces the one that stops it.
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
        """One iteration: forward and backward of all parts, then the optimiser's step.

        Raises:
            TrainingError: the loss is not finite, and no more batches may be left out.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        buffers = [buffer.clone() for buffer in self.model.buffers()] if self.skipped < self.max_skipped else []
        losses = self._backward(data)
        if not _finite_everywhere(losses):
            self._skip_or_stop(data, losses)
            self._restore(buffers)
            return
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.unscale_(self.optimizer)  # before the optimiser may clip them
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint; where that was trained in another precision, the scale of gradients starts anew."""
        scale = state_dict["grad_scaler"] or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scale})

    def _backward(self, data: Sequence[Sample]) -> dict[str, Tensor]:
        """Add up the gradients of all parts; returns the mean losses, without a graph."""
        parts = [data[first :: self.accumulate] for first in range(self.accumulate)]
        means: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            with self._synchronised(number == len(parts)):
                with torch.autocast(self.device_type, dtype=self.precision, enabled=self.precision != torch.float32):
                    losses = self.model(part)
                self.grad_scaler.scale(sum(losses.values()) / len(parts)).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / len(parts)
        return means

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once, in the last part."""
        split = isinstance(self.model, DistributedDataParallel) and not last
        return self.model.no_sync() if split else nullcontext()

    def _skip_or_stop(self, data: Sequence[Sample], losses: Mapping[str, Tensor]) -> None:
        files = first_few([sample.get("file_name", "an unnamed sample") for sample in data], 20)
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        self.optimizer.zero_grad()
        self.skipped += 1
        what = f"iteration {self.iter}: the loss is not finite ({values}) with {files}"
        if self.skipped <= self.max_skipped:
            message = "%s; left out, %d of at most %d (SOLVER.MAX_SKIPPED_BATCHES)"
            logging.getLogger(__name__).warning(message, what, self.skipped, self.max_skipped)
            return
        path = self.folder / f"not_finite_{self.iter:07d}_rank{comm.get_rank()}.pth"
        model: Any = getattr(self.model, "module", self.model)
        saved = f"{path} holds these samples and the weights"
        try:
            save_tensors({"model": model.state_dict(), "samples": list(data), "iteration": self.iter}, path)
        except OSError as error:  # of less concern than what led here
            saved = f"{path}, which would hold the samples, cannot be written ({error.strerror or error})"
        raise TrainingError(
            f"{what}. {saved}. Lower SOLVER.BASE_LR, look at the files, or leave such "
            "batches out with SOLVER.MAX_SKIPPED_BATCHES; --resume goes on from the last checkpoint"
        )

    def _restore(self, buffers: Sequence[Tensor]) -> None:
        """Undo what a batch that is left out did to the statistics of batch norms."""
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _finite_everywhere(losses: Mapping[str, Tensor]) -> bool:
    """Whether the losses of all processes are finite, which all processes must agree on."""
    finite = torch.stack([loss.isfinite().all() for loss in losses.values()]).all()
    if comm.get_world_size() > 1:
        agreed = finite.int()
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
        return bool(agreed)
    return bool(finite)


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: DataLoader, optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """The trainer that runs single iterations, as SOLVER says.

    Raises:
        ConfigError: a precision that the device lacks, or parts that a batch cannot be cut into.
    """
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
    """Raise ConfigError for a precision that the device lacks, or parts that a batch cannot be cut into."""
    solver, amp = cfg.SOLVER, cfg.SOLVER.AMP
    device_type = torch.device(cfg.MODEL.DEVICE).type
    if amp.ENABLED and (amp.DTYPE not in _DTYPES or (amp.DTYPE == "float16" and device_type == "cpu")):
        raise ConfigError(
            f"SOLVER.AMP.DTYPE must be float16 (not on the CPU) or bfloat16; got {amp.DTYPE!r} with MODEL.DEVICE "
            f"{cfg.MODEL.DEVICE}"
        )
    images = solver.IMS_PER_BATCH // comm.get_world_size()
    if solver.ACCUMULATE < 1 or images % solver.ACCUMULATE:
        raise ConfigError(
            f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}, expected a divisor of the {images} images of a process's batch"
        )
    if solver.MAX_SKIPPED_BATCHES < 0:
        raise ConfigError(f"SOLVER.MAX_SKIPPED_BATCHES is {solver.MAX_SKIPPED_BATCHES}, expected 0 or more")
