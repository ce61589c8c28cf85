"""The hook that scores the source's validation set while a model trains, and keeps the best weights so far."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from famix.utils.errors import ConfigError

__all__ = ["SourceValidation"]


class SourceValidation(HookBase):
    """Scores a validation set of the source every so many iterations and after the last, and keeps what is best.

    It belongs behind the hook that saves checkpoints, so that nothing is lost where it fails. A run that is resumed
    from the checkpoint of an iteration whose score that does not have yet scores it first. Of equal scores the
    earlier one is kept.

    Args:
        dataset_name: of the validation set.
        period: iterations between scores, at least 1.
        evaluate: scores the weights as they are, called in every process; the main one's result is mIoU in percent.
        keep: saves the weights as they are; gets the number of iterations done, and the score. Called in the main
            process only.
    """

    def __init__(
        self, dataset_name: str, period: int, *, evaluate: Callable[[], float], keep: Callable[[int, float], None]
    ) -> None:
        self._name = dataset_name
        self._period = period
        self._evaluate = evaluate
        self._keep = keep
        self._scored = 0  # iterations that were done at the last score
        self._best, self._best_at = -math.inf, 0

    def before_train(self) -> None:
        """Score what was resumed, if that is due and not done yet."""
        done = self.trainer.iter  # the first iteration to come
        if done > self._scored and self._is_due(done):
            self._validate(done)

    def after_step(self) -> None:
        """Score, if that is due."""
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._validate(done)

    def state_dict(self) -> dict[str, Any]:
        """How far this is, for checkpoints; the best weights are in a file of their own."""
        return {"scored": self._scored, "best": self._best, "best_at": self._best_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as a checkpoint says."""
        self._scored, self._best, self._best_at = state["scored"], state["best"], state["best_at"]

    def _is_due(self, done: int) -> bool:
        return done % self._period == 0 or done == self.trainer.max_iter

    def _validate(self, done: int) -> None:
        score = self._evaluate()
        self._scored = done
        if comm.is_main_process():
            if math.isnan(score):
                raise ConfigError(
                    f"MODEL_SELECTION.SOURCE_VAL {self._name} has no labelled pixel; name another data set"
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
