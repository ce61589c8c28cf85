"""Training hooks: style bank, randomness, progress, checkpoints, validation on the source, weight averages and stop signals."""

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

_TORCH, _STYLES = range(2)  # names of the random streams
_MAX_HISTORY = 1000  # values per scalar; Detectron2 reads at most as many, for the remaining time
_LOG_PERIOD, _BAR_PERIOD = 20, 10  # iterations between log lines (Detectron2's) and between updates of the bar's loss
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNAL_PERIOD = 10  # iterations after which several processes agree on a stop
_SECONDS_OF_ONE_SIGNAL = 2.0


class StyleMiningHook(HookBase):
    """Obtains the style bank before training. Register it first, so that a bad bank stops the run before other hooks.

    Args:
        obtain: loads or mines the bank; called in every process of a job, which share the work.
        use: receives the bank.
    """

    def __init__(self, *, obtain: Callable[[], StyleBank], use: Callable[[StyleBank], None]) -> None:
        self.obtain = obtain
        self.use = use
        self._done = False

    def before_train(self) -> None:
        """Obtain the bank and pass it on; further calls do nothing."""
        if not self._done:
            self.use(self.obtain())
            self._done = True


class IterationSeed(HookBase):
    """Seed dropout and styles before every step.

    A run that resumes at iteration i draws the same numbers as an uninterrupted run, without saved random state.

    Args:
        seed: seed of the run, non-negative.
        reseed_styles: called with the seed of the iteration's styles.
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
    """Show a progress bar, log the first iteration, and keep a thousand values of every scalar.

    Detectron2 logs iteration 20 first and keeps a million values, half a kilobyte per iteration.
    """

    def before_train(self) -> None:
        """Show the empty bar."""
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
        """Close the bar; it stays visible."""
        self._bar.close()


class KeepingCheckpointer(PeriodicCheckpointer):
    """Save finite weights periodically, so that --resume finds a usable checkpoint, and remove the oldest checkpoints.

    Args:
        checkpointer: writes the checkpoints.
        period: iterations between checkpoints.
        kept: number of checkpoints to keep besides the final one; 0 keeps all.
    """

    def __init__(self, checkpointer: SafeCheckpointer, period: int, kept: int) -> None:
        super().__init__(checkpointer, period)
        self.kept = kept

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Save a checkpoint if it is due, then remove the surplus.

        Raises:
            TrainingError: the weights are not finite.
        """
        due = (iteration + 1) % self.period == 0
        if due or iteration + 1 >= (self.max_iter or math.inf):
            broken = first_not_finite(self.checkpointer.model.state_dict())
            if broken is not None:
                raise TrainingError(
                    f"weights must be finite to be saved, got {broken} at iteration {iteration}. Continue from the last "
                    "checkpoint with --resume and a lower SOLVER.BASE_LR"
                )
        super().step(iteration, **kwargs)
        if self.kept and due:
            for file in self.checkpointer.numbered_files()[self.kept :]:
                os.remove(file)


class SourceValidation(HookBase):
    """Score a validation set of the source periodically and after the last iteration, and keep the best weights.

    Register it after the hook that saves checkpoints. A run that resumes from a checkpoint without its score computes
    that score first. Among equal scores the earliest wins.

    Args:
        dataset_name: name of the validation set.
        period: iterations between scores, positive.
        evaluate: scores the current weights and returns mIoU in percent on the main process; called in every process.
        keep: saves the current weights, given the number of completed iterations and the score; called in the main
            process only.
    """

    def __init__(
        self, dataset_name: str, period: int, *, evaluate: Callable[[], float], keep: Callable[[int, float], None]
    ) -> None:
        self._name = dataset_name
        self._period = period
        self._evaluate = evaluate
        self._keep = keep
        self._scored = 0  # completed iterations at the last score
        self._best, self._best_at = -math.inf, 0

    def before_train(self) -> None:
        """Score resumed weights whose score is due and missing."""
        if self.trainer.iter > self._scored:
            self._validate_if_due(self.trainer.iter)

    def after_step(self) -> None:
        """Score the weights if due.

        Raises:
            ConfigError: the validation set has no labeled pixel.
        """
        self._validate_if_due(self.trainer.iter + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far; the best weights have a file of their own."""
        return {"scored": self._scored, "best": self._best, "best_at": self._best_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the scores of a checkpoint."""
        self._scored, self._best, self._best_at = state["scored"], state["best"], state["best_at"]

    def _validate_if_due(self, done: int) -> None:
        if done % self._period and done != self.trainer.max_iter:
            return
        score = self._evaluate()
        self._scored = done
        if comm.is_main_process():
            if math.isnan(score):
                raise ConfigError(
                    f"MODEL_SELECTION.SOURCE_VAL must name a dataset with labeled pixels, got {self._name!r}. Name "
                    "another dataset of the source."
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
    """Keep an exponential moving average of all tensors that training changes, which checkpoints include.

    The average starts as a copy of the weights, and update t = 1, 2, ... makes it d * average + (1 - d) * model with
    d = min(decay, t / (9 + t)), so that the random start fades quickly. torch's AveragedModel would also copy frozen
    weights and starts from the first update. Register the hook before the one that saves checkpoints.

    Args:
        model: the model that trains.
        decay: in [0, 1); the average spans about 1 / (1 - decay) updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.updates = 0
        self.tensors: dict[str, Tensor] = {}  # the average by names of the state dict; empty before training

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
        """Restore the state of a checkpoint bit for bit.

        Raises:
            ConfigError: the state averages different weights.
        """
        own = changing_tensors(self._model)
        shapes, expected = ({name: value.shape for name, value in of.items()} for of in (state["tensors"], own))
        if shapes != expected:
            different = sorted(name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name))
            raise ConfigError(
                f"MODEL.CLIP.TRAINABLE must select the weights that the checkpoint averages, got a difference in "
                f"{different[0]}. Resume with the MODEL.CLIP.TRAINABLE of the run."
            )
        self.updates = int(state["updates"])
        self.tensors = {name: state["tensors"][name].to(value, copy=True) for name, value in own.items()}


def changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state that training changes: parameters with gradients, and statistics of layers that are not frozen.

    Args:
        model: model that marks frozen parameters by `requires_grad`.

    Returns:
        Name in the state dict -> the tensor itself. Integer buffers, such as the count of batches, are left out, and so
        are the buffers of layers whose parameters are all frozen.
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
    """Raised when a signal has stopped the run; `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


def raise_when_stopped() -> None:
    """Make SIGTERM raise StoppedBySignal, as SIGINT raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)


class StopOnSignal(HookBase):
    """On SIGTERM or SIGINT, save a checkpoint after the current iteration and raise StoppedBySignal.

    Several processes stop at the same iteration, a multiple of ten. A second SIGINT stops at once. Forked children end
    at once unless they install handlers of their own.
    """

    def __init__(self) -> None:
        self._received = 0
        self._time = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def before_train(self) -> None:
        """Install the handlers; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def after_step(self) -> None:
        """Stop if a process has received a signal.

        Raises:
            StoppedBySignal: see the class.
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
        # A terminal sends SIGINT to all processes, and torchrun once more.
        repeated = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() < self._time + _SECONDS_OF_ONE_SIGNAL
        if self._received and number == signal.SIGINT and not repeated:
            raise KeyboardInterrupt
        self._time = time.monotonic()
        self._received = number
        name = signal.Signals(number).name
        logging.getLogger(__name__).warning("%s: stopping after this iteration, with a checkpoint", name)


def _reset_signals_of_children() -> None:
    """Let SIGTERM end a forked child, such as a worker in the pool of an evaluator."""
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler is _raise or isinstance(getattr(handler, "__self__", None), StopOnSignal):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_reset_signals_of_children)
