"""A bound on what a training remembers of its own scalars."""

from functools import partial

from detectron2.engine import HookBase
from fvcore.common.history_buffer import HistoryBuffer

__all__ = ["BoundedHistory"]

_KEPT = 1000  # values of a scalar; the longest window that is read, that of the remaining time, has as many


class BoundedHistory(HookBase):
    """Keeps the last thousand values of every scalar, where Detectron2 keeps a million: half a kilobyte an iteration."""

    def before_train(self) -> None:
        """Set the bound before the first scalar comes."""
        self.trainer.storage.histories().default_factory = partial(HistoryBuffer, max_length=_KEPT)
