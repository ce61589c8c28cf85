"""Training hooks: style bank, randomness, progress, checkpoints, source validation, weight average and stop signals."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor, nn

from famix.io.checkpointer import SafeCheckpointer, first_not_finite
from famix.style.bank import StyleBank
from famix.utils.errors import ConfigError, TrainingError
from famix.utils.progress import progress_bar
from famix.utils.seeding import derive_seed

_TORCH, _STYLES = range(2)  # ids of the random streams
_MAX_HISTORY = 1000  # values per scalar; Detectron2 needs no more to estimate the remaining time
_LOG_PERIOD, _BAR_PERIOD = 20, 10  # iterations between log lines (as in Detectron2) and between loss updates in the bar
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNAL_PERIOD = 10  # iterations between checks for a signal in any of several processes
_SECONDS_OF_ONE_SIGNAL = 2.0


class StyleMiningHook(HookBase):
    """Hook that obtains the style bank before training. Register it first, so a bad bank stops the run immediately.

    Args:
        obtain: function that loads or mines the bank. It is called in every process; the processes share the work.
        use: function that receives the bank.
    """

    def __init__(self, *, obtain: Callable[[], StyleBank], use: Callable[[StyleBank], None]) -> None:
        self.obtain = obtain
        self.use = use
        self._done = False

    def before_train(self) -> None:
        """Obtain the bank and pass it to `use`. Repeated calls do nothing."""
        if not self._done:
            self.use(self.obtain())
            self._done = True


class IterationSeed(HookBase):
    """Hook that seeds dropout and styles before every step.

    A run that resumes at iteration i draws the same numbers as an uninterrupted run, so no random state is saved.

    Args:
        seed: non-negative seed of the run.
        reseed_styles: function that receives the seed for the iteration's styles.
    """

    def __init__(self, seed: int, reseed_styles: Callable[[int], None]) -> None:
        self.seed = seed
        self.reseed_styles = reseed_styles

    def before_step(self) -> None:
        """Seed the next iteration."""
        keys = (self.seed, comm.get_rank(), self.trainer.iter)
        torch.manual_seed(derive_seed(_TORCH, *keys))  # nn.Dropout uses the global generator only
        self.reseed_styles(derive_seed(_STYLES, *keys))


class TrainingProgress(HookBase):
    """Hook that shows a progress bar, logs the first iteration and keeps the last thousand values of every scalar.

    Detectron2 first logs at iteration 20 and keeps a million values, which takes half a kilobyte per iteration.
    """

    def before_train(self) -> None:
        """Show an empty bar."""
        self.trainer.storage.histories().default_factory = partial(HistoryBuffer, max_length=_MAX_HISTORY)
        self._bar = progress_bar(self.trainer.max_iter, "training", "it", done=self.trainer.start_iter)

    def after_step(self) -> None:
        """Advance the bar."""
        iteration, done = self.trainer.iter + 1, self.trainer.iter + 1 - self.trainer.start_iter
        if done == 1 and iteration % _LOG_PERIOD and iteration < self.trainer.max_iter:
            CommonMetricPrinter(self.trainer.max_iter).write()
        if done % _BAR_PERIOD == 1 and not self._bar.disable:
            latest = self.trainer.storage.latest()
            shown = {name: latest[key][0] for key, name in (("total_loss", "loss"), ("lr", "lr")) if key in latest}
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Close the bar, which stays visible."""
        self._bar.close()


class KeepingCheckpointer(PeriodicCheckpointer):
    """Periodic checkpointer that saves only finite weights, so --resume can use them, and removes old checkpoints.

    Args:
        checkpointer: checkpointer that writes the files.
        period: number of iterations between checkpoints.
        kept: number of checkpoints to keep besides the final one; 0 keeps all.
    """

    def __init__(self, checkpointer: SafeCheckpointer, period: int, kept: int) -> None:
        super().__init__(checkpointer, period)
        self.kept = kept

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Save a checkpoint if one is due, then remove surplus ones.

        Raises:
            TrainingError: the weights are not finite.
        """
        due = (iteration + 1) % self.period == 0
        if due or iteration + 1 >= (self.max_iter or math.inf):
            broken = first_not_finite(self.checkpointer.model.state_dict())
            if broken is not None:
                raise TrainingError(
                    f"Non-finite values in '{broken}' at iteration {iteration}; checkpoint not saved. Lower "
                    "SOLVER.BASE_LR and continue from the last checkpoint with --resume."
                )
        super().step(iteration, **kwargs)
        if self.kept and due:
            for file in self.checkpointer.numbered_files()[self.kept :]:
                os.remove(file)


class SourceValidation(HookBase):
    """Hook that scores a source validation set periodically and after the last iteration, and keeps the best weights.

    Register it after the hook that saves checkpoints. If a run resumes from a checkpoint that has not been scored yet,
    that checkpoint is scored first. Ties go to the earliest score.

    Args:
        dataset_name: name of the validation set.
        period: positive number of iterations between scores.
        evaluate: function that scores the current weights. It is called in every process and returns the mIoU in
            percent on the main process.
        keep: function that saves the current weights, given the number of completed iterations and the score. It is
            called in the main process only.
    """

    def __init__(
        self, dataset_name: str, period: int, *, evaluate: Callable[[], float], keep: Callable[[int, float], None]
    ) -> None:
        self._name = dataset_name
        self._period = period
        self._evaluate = evaluate
        self._keep = keep
        self._scored = 0  # number of completed iterations at the last score
        self._best, self._best_at = -math.inf, 0

    def before_train(self) -> None:
        """Score the resumed weights if their score is due but missing."""
        if self.trainer.iter > self._scored:
            self._validate_if_due(self.trainer.iter)

    def after_step(self) -> None:
        """Score the weights if a score is due.

        Raises:
            ConfigError: the validation set has no labeled pixels.
        """
        self._validate_if_due(self.trainer.iter + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far. The best weights are stored in a separate file."""
        return {"scored": self._scored, "best": self._best, "best_at": self._best_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the scores from a checkpoint."""
        self._scored, self._best, self._best_at = state["scored"], state["best"], state["best_at"]

    def _validate_if_due(self, done: int) -> None:
        if done % self._period and done != self.trainer.max_iter:
            return
        score = self._evaluate()
        self._scored = done
        if comm.is_main_process():
            if math.isnan(score):
                raise ConfigError(
                    f"MODEL_SELECTION.SOURCE_VAL is {self._name!r}, which has no labeled pixels. Set it to another "
                    "source dataset."
                )
            if score > self._best:
                self._keep(done, score)
                self._best, self._best_at = score, done
            self.trainer.storage.put_scalar(f"source/{self._name}/mIoU", score, smoothing_hint=False)
            logging.getLogger(__name__).info(
                f"Source validation after {done} iterations: mIoU {score:.2f} on {self._name}; best {self._best:.2f} after "
                f"{self._best_at}."
            )
        comm.synchronize()


class WeightAverageHook(HookBase):
    """Hook that keeps an exponential moving average of all tensors that training changes, and stores it in checkpoints.

    The average starts as a copy of the weights, and update t = 1, 2, ... sets it to d * average + (1 - d) * model
    with d = min(decay, t / (9 + t)), so the random start fades quickly. torch's AveragedModel would also copy frozen
    weights and start from the first update. Register the hook before the one that saves checkpoints.

    Args:
        model: model being trained.
        decay: decay in [0, 1); the average spans about 1 / (1 - decay) updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.updates = 0
        self.tensors: dict[str, Tensor] = {}  # state-dict name -> average; empty before training

    def before_train(self) -> None:
        """Start from the current weights unless a checkpoint has restored an average."""
        self.tensors = self.tensors or {name: value.clone() for name, value in changing_tensors(self._model).items()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the average after an iteration."""
        self.updates += 1
        decay = min(self._decay, self.updates / (9 + self.updates))
        for name, value in changing_tensors(self._model).items():
            self.tensors[name].lerp_(value, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its number of updates."""
        return {"updates": self.updates, "tensors": dict(self.tensors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint bit for bit.

        Raises:
            ConfigError: the state is an average of different weights.
        """
        own = changing_tensors(self._model)
        shapes, expected = ({name: value.shape for name, value in of.items()} for of in (state["tensors"], own))
        if shapes != expected:
            different = sorted(name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name))
            raise ConfigError(
                f"MODEL.CLIP.TRAINABLE does not match the weights averaged in the checkpoint: '{different[0]}' "
                f"differs. Resume with the MODEL.CLIP.TRAINABLE of the original run."
            )
        self.updates = int(state["updates"])
        self.tensors = {name: state["tensors"][name].to(value, copy=True) for name, value in own.items()}


def changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state that training changes: parameters with gradients, and statistics of layers that are not frozen.

    Args:
        model: model whose frozen parameters have `requires_grad=False`.

    Returns:
        Mapping from state-dict names to the tensors themselves. It omits integer buffers, such as batch counts, and the
        buffers of layers whose parameters are all frozen.
    """
    saved = model.state_dict()
    tensors = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    for prefix, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            continue
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name in saved and buffer.is_floating_point():
                tensors[name] = buffer
    return tensors


class StoppedBySignal(KeyboardInterrupt):
    """Raised when a signal has stopped the run. `signal` is the signal number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


def raise_when_stopped() -> None:
    """Make SIGTERM raise StoppedBySignal, just as SIGINT raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)


class StopOnSignal(HookBase):
    """Hook that, on SIGTERM or SIGINT, saves a checkpoint after the current iteration and raises StoppedBySignal.

    Several processes stop at the same iteration, a multiple of ten. A second SIGINT stops the run at once. Forked
    children end at once unless they install their own handlers.
    """

    def __init__(self) -> None:
        self._received = 0
        self._time = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def before_train(self) -> None:
        """Install the handlers, which is possible only in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def after_step(self) -> None:
        """Stop if a process has received a signal.

        Raises:
            StoppedBySignal: a process has received a signal.
        """
        number, iteration = self._received, self.trainer.iter
        if comm.get_world_size() > 1:
            if (iteration + 1) % _SIGNAL_PERIOD:
                return
            received = torch.tensor([number], device=next(self.trainer.model.parameters()).device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            number = int(received)
        if number:
            if comm.is_main_process():
                self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            comm.synchronize()
            raise StoppedBySignal(number)

    def after_train(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A terminal sends SIGINT to all processes, and torchrun sends it again.
        repeated = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() < self._time + _SECONDS_OF_ONE_SIGNAL
        if self._received and number == signal.SIGINT and not repeated:
            raise KeyboardInterrupt
        self._time = time.monotonic()
        self._received = number
        name = signal.Signals(number).name
        logging.getLogger(__name__).warning("Received %s: saving a checkpoint and stopping after this iteration.", name)


def _reset_signals_of_children() -> None:
    """Let SIGTERM end a forked child, such as a worker in an evaluator's pool."""
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler is _raise or isinstance(getattr(handler, "__self__", None), StopOnSignal):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_reset_signals_of_children)
