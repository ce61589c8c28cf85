"""Which weights of a training are scored, chosen without a look at any target: the last, the best on the source, or
the moving average."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from famix.data.domains import is_source
from famix.engine.source_validation import SourceValidation
from famix.engine.weight_average import WeightAverageHook, borrowed_weights, changing_tensors
from famix.engine.weights_file import LAST_FILE, read_checkpoint, save_weights, weights_of_file
from famix.reports.run_metadata import AVERAGE, BEST, LAST, ScoredWeights
from famix.utils.errors import ConfigError

__all__ = ["AVERAGE_FILE", "BEST_FILE", "ModelSelection", "check_selection"]

BEST_FILE, AVERAGE_FILE = "model_best.pth", "model_ema.pth"
"""Names in OUTPUT_DIR; MODEL.WEIGHTS takes both."""

_CHOICES = (LAST, BEST, AVERAGE)


class ModelSelection:
    """The hooks that MODEL_SELECTION asks for, and the weights that it selects.

    Args:
        cfg: the effective config.
        model: that trains, not wrapped for several processes.
        score_source: scores a data set with the weights as they are, in every process; the main one gets mIoU.
        record: plain data that the files of weights get, such as the settings of the run.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        score_source: Callable[[str], float],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        selection = cfg.MODEL_SELECTION
        self._use = selection.USE
        self._folder = cfg.OUTPUT_DIR
        self._model = model
        self._record = dict(record or {})
        self._source_val = selection.SOURCE_VAL
        self.average = WeightAverageHook(model, selection.EMA_DECAY) if selection.EMA_DECAY > 0 else None
        self.validation = None
        if self._source_val:
            self.validation = SourceValidation(
                self._source_val,
                _period(cfg),
                evaluate=lambda: score_source(self._source_val),
                keep=self._keep_best,
            )

    def add_hooks(self, hooks: list[HookBase], before_evaluation: int) -> list[HookBase]:
        """Put its hooks among others.

        Args:
            hooks: of a trainer.
            before_evaluation: place of the hook that scores the targets, behind the one that saves checkpoints.
        """
        average = [self.average] if self.average else []
        validation = [self.validation] if self.validation else []
        return [*average, *hooks[:before_evaluation], *validation, *hooks[before_evaluation:]]

    @contextmanager
    def selected(self, iterations: int) -> Iterator[ScoredWeights]:
        """After training, give the model the selected weights for a while; all processes call this.

        Args:
            iterations: that were done.

        Yields:
            What the model holds now, and the file in OUTPUT_DIR that holds the same.

        Raises:
            WeightsError: the file of the best weights is gone.
        """
        if self.average:
            self._save_average(iterations)
        if self._use == LAST:
            yield self._describe(LAST_FILE, {"iteration": iterations - 1})
            return
        path = self._path(BEST_FILE if self._use == BEST else AVERAGE_FILE)
        content = read_checkpoint(path) if comm.is_main_process() else {"model": changing_tensors(self._model)}
        with borrowed_weights(self._model, content.pop("model")):
            _share(self._model)
            yield self._describe(os.path.basename(path), content)

    def _keep_best(self, iterations: int, score: float) -> None:
        facts = {"selection": BEST, "source_val": self._source_val, "source_score": score}
        save_weights(self._model, self._path(BEST_FILE), iterations=iterations, **facts, **self._record)

    def _save_average(self, iterations: int) -> None:
        assert self.average is not None
        with borrowed_weights(self._model, self.average.average.tensors):
            if comm.is_main_process():
                save_weights(
                    self._model, self._path(AVERAGE_FILE), iterations=iterations, selection=AVERAGE, **self._record
                )

    def _describe(self, file: str, content: Mapping[str, Any]) -> ScoredWeights:
        if not comm.is_main_process():
            return ScoredWeights()
        path = self._path(file)
        return weights_of_file(path, content) if os.path.exists(path) else ScoredWeights()  # no iteration, no file

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)


def check_selection(cfg: CfgNode) -> None:
    """Find what of MODEL_SELECTION cannot work, from the config and the registered data sets alone.

    Args:
        cfg: the config of a training.

    Raises:
        ConfigError: a key has an impossible value, misses another, or would have weights chosen on a target.
    """
    selection = cfg.MODEL_SELECTION
    use, source_val, decay = selection.USE, selection.SOURCE_VAL, selection.EMA_DECAY
    if use not in _CHOICES:
        raise ConfigError(f"MODEL_SELECTION.USE is {use!r}, expected one of {', '.join(_CHOICES)}")
    if not 0 <= decay < 1:
        raise ConfigError(f"MODEL_SELECTION.EMA_DECAY is {decay}, expected 0 (none) or a number below 1, e.g. 0.999")
    if use == AVERAGE and not decay:
        raise ConfigError("MODEL_SELECTION.USE ema needs MODEL_SELECTION.EMA_DECAY, e.g. 0.999; it is 0")
    if use == BEST and not source_val:
        raise ConfigError("MODEL_SELECTION.USE best needs MODEL_SELECTION.SOURCE_VAL, a data set of the source")
    if source_val in cfg.DATASETS.TRAIN:
        raise ConfigError(f"MODEL_SELECTION.SOURCE_VAL {source_val} is trained on; name a data set of other images")
    if source_val and not is_source(cfg, source_val):
        raise ConfigError(
            f"MODEL_SELECTION.SOURCE_VAL is {source_val}, which does not show the domain of DATASETS.TRAIN "
            f"({', '.join(cfg.DATASETS.TRAIN)}): weights would be chosen on a target. Name a validation set of the source, "
            "or, if this is one, list it in TEST.SOURCE or state its 'domain'"
        )
    if source_val and _period(cfg) < 1:
        raise ConfigError(f"MODEL_SELECTION.PERIOD is {selection.PERIOD}, expected a number of iterations, or 0")


def _period(cfg: CfgNode) -> int:
    return cfg.MODEL_SELECTION.PERIOD or cfg.TEST.EVAL_PERIOD or cfg.SOLVER.CHECKPOINT_PERIOD


def _share(model: nn.Module) -> None:
    """Give every process what the main one holds."""
    if comm.get_world_size() > 1:
        for value in changing_tensors(model).values():
            torch.distributed.broadcast(value, src=0)
