"""Stopping when asked to: a signal ends the iteration, saves a checkpoint and leaves, as pre-emption on clusters needs."""

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["StopOnSignal", "StoppedBySignal", "raise_when_stopped"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PERIOD = 10  # iterations between agreements of several processes
_SECONDS_OF_ONE_SIGNAL = 2.0


class StoppedBySignal(KeyboardInterrupt):
    """The training was asked to stop, and has saved a checkpoint.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


def raise_when_stopped() -> None:
    """On SIGTERM, raise StoppedBySignal wherever the program is, as SIGINT raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)


class StopOnSignal(HookBase):
    """On SIGTERM or SIGINT, saves a checkpoint after the running iteration and raises StoppedBySignal.

    Several processes stop at the same iteration, one that is a multiple of ten. A second SIGINT stops at once.
    Children forked during the training end at once, unless they have handlers of their own.
    """

    def __init__(self) -> None:
        self._received = 0
        self._time = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def before_train(self) -> None:
        """Begin to listen; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def after_step(self) -> None:
        """Stop if asked to.

        Raises:
            StoppedBySignal: see the class.
        """
        number = self._agree()
        if not number:
            return
        if comm.is_main_process():
            iteration = self.trainer.iter
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()
        raise StoppedBySignal(number)

    def after_train(self) -> None:
        """Leave signals as they were."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT and not self._is_repeated():
            raise KeyboardInterrupt
        self._time = time.monotonic()
        self._received = number
        name = signal.Signals(number).name
        logging.getLogger(__name__).warning("%s: stopping after this iteration, with a checkpoint", name)

    def _is_repeated(self) -> bool:
        """Whether this is the first signal again: a terminal sends it to all processes, and torchrun once more."""
        return "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() < self._time + _SECONDS_OF_ONE_SIGNAL

    def _agree(self) -> int:
        if comm.get_world_size() == 1:
            return self._received
        if (self.trainer.iter + 1) % _PERIOD:
            return 0
        received = torch.tensor([self._received], device=next(self.trainer.model.parameters()).device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)


def _leave_children_alone() -> None:
    """In a forked child, of a pool of some evaluator for one: who ends it with SIGTERM would wait for ever otherwise."""
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler is _raise or isinstance(getattr(handler, "__self__", None), StopOnSignal):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_children_alone)
