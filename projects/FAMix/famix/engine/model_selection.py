"""The weights that are scored: the last ones, the best on the source, a moving average, or a file; never chosen on targets."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from famix.data.class_table import classes_of, trained_classes
from famix.data.domains import is_source
from famix.engine.hooks import SourceValidation, WeightAverageHook, changing_tensors
from famix.io.atomic import save_tensors
from famix.io.checkpointer import AVERAGE_FILE, BEST_FILE, LAST_FILE, SafeCheckpointer, read_checkpoint
from famix.reports.report import AVERAGE, BEST, FILE, LAST, ScoredWeights, file_sha256
from famix.utils.errors import ConfigError

__all__ = [
    "ModelSelection",
    "borrowed_weights",
    "check_selection",
    "describe_weights",
    "load_for_scoring",
    "save_weights",
]

_CHOICES = (LAST, BEST, AVERAGE)
_FACTS = ("selection", "source_val", "source_score")


class ModelSelection:
    """Hooks that MODEL_SELECTION configures, and the weights that it selects.

    Args:
        cfg: the effective config.
        model: the model that trains, without wrappers.
        score_source: scores a dataset with the current weights, in every process; returns mIoU on the main one.
        record: plain data that files of weights store, such as the settings of the run.

    Attributes:
        average: hook that averages the weights; None without MODEL_SELECTION.EMA_DECAY.
        validation: hook that scores SOURCE_VAL; None without it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        score_source: Callable[[str], float],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        selection = cfg.MODEL_SELECTION
        self._use, self._source_val = selection.USE, selection.SOURCE_VAL
        self._folder = cfg.OUTPUT_DIR
        self._model = model
        self._record = dict(record or {})
        self.average = WeightAverageHook(model, selection.EMA_DECAY) if selection.EMA_DECAY > 0 else None
        self.validation = None
        if self._source_val:
            self.validation = SourceValidation(
                self._source_val, _period(cfg), evaluate=lambda: score_source(self._source_val), keep=self._keep_best
            )

    @contextmanager
    def selected(self, iterations: int) -> Iterator[ScoredWeights]:
        """After training, give the model the selected weights while the block runs; called in all processes.

        Args:
            iterations: number of completed iterations.

        Yields:
            A description of the selected weights and of their file in OUTPUT_DIR.

        Raises:
            WeightsError: the file of the best weights is missing or damaged.
        """
        if self.average:
            with borrowed_weights(self._model, self.average.tensors):
                if comm.is_main_process():
                    path = os.path.join(self._folder, AVERAGE_FILE)
                    save_weights(self._model, path, iterations=iterations, selection=AVERAGE, **self._record)
        if self._use == LAST:
            yield self._describe(LAST_FILE, {"iteration": iterations - 1})
            return
        name = BEST_FILE if self._use == BEST else AVERAGE_FILE
        content = {"model": changing_tensors(self._model)}
        if comm.is_main_process():
            content = read_checkpoint(os.path.join(self._folder, name))
        with borrowed_weights(self._model, content.pop("model")):
            if comm.get_world_size() > 1:
                for value in changing_tensors(self._model).values():
                    torch.distributed.broadcast(value, src=0)
            yield self._describe(name, content)

    def _keep_best(self, iterations: int, score: float) -> None:
        facts = {"selection": BEST, "source_val": self._source_val, "source_score": score}
        path = os.path.join(self._folder, BEST_FILE)
        save_weights(self._model, path, iterations=iterations, **facts, **self._record)

    def _describe(self, name: str, content: Mapping[str, Any]) -> ScoredWeights:
        path = os.path.join(self._folder, name)
        # After zero iterations there is no file.
        return describe_weights(path, content) if comm.is_main_process() and os.path.exists(path) else ScoredWeights()


def check_selection(cfg: CfgNode) -> None:
    """Check MODEL_SELECTION against the rest of a training config and the registered datasets.

    Raises:
        ConfigError: a key has an invalid value, needs another one, or would select weights on a target.
    """
    selection = cfg.MODEL_SELECTION
    use, source_val, decay = selection.USE, selection.SOURCE_VAL, selection.EMA_DECAY
    if use not in _CHOICES:
        raise ConfigError(f"MODEL_SELECTION.USE must be one of {', '.join(_CHOICES)}, got {use!r}. Set it to last.")
    if not 0 <= decay < 1:
        raise ConfigError(
            f"MODEL_SELECTION.EMA_DECAY must be in [0, 1), got {decay}. Set it to 0.999, or to 0 for none."
        )
    if use == AVERAGE and not decay:
        raise ConfigError(
            f"MODEL_SELECTION.USE must be last or best without an average, got {use!r}. Set MODEL_SELECTION.EMA_DECAY, e.g. "
            "to 0.999."
        )
    if use == BEST and not source_val:
        raise ConfigError(
            f"MODEL_SELECTION.USE must be last or ema without a validation set, got {use!r}. Set "
            "MODEL_SELECTION.SOURCE_VAL to a dataset of the source."
        )
    if source_val in cfg.DATASETS.TRAIN:
        raise ConfigError(
            f"MODEL_SELECTION.SOURCE_VAL must not be in DATASETS.TRAIN, got {source_val!r}. Name a validation set."
        )
    if source_val and not is_source(cfg, source_val):
        raise ConfigError(
            f"MODEL_SELECTION.SOURCE_VAL must show the domain of DATASETS.TRAIN ({', '.join(cfg.DATASETS.TRAIN)}), got "
            f"{source_val!r}, on which weights would be selected by a target. Name a validation set of the source; if this "
            "is one, list it in TEST.SOURCE or set its 'domain'."
        )
    if source_val and _period(cfg) < 1:
        raise ConfigError(f"MODEL_SELECTION.PERIOD must be non-negative, got {selection.PERIOD}. Set it to 0.")


def _period(cfg: CfgNode) -> int:
    return cfg.MODEL_SELECTION.PERIOD or cfg.TEST.EVAL_PERIOD or cfg.SOLVER.CHECKPOINT_PERIOD


@contextmanager
def borrowed_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the state that training changes while the block runs.

    Args:
        model: the model; its own values are restored afterwards.
        tensors: name in the state dict -> value, for all `changing_tensors`; further names are ignored.
    """
    own = {name: value.clone() for name, value in changing_tensors(model).items()}
    _copy(tensors, model)
    try:
        yield
    finally:
        _copy(own, model)


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, value in changing_tensors(model).items():
        value.copy_(tensors[name])


def save_weights(model: nn.Module, path: str | os.PathLike[str], *, iterations: int, **facts: Any) -> None:
    """Write the state of a model as a checkpoint for MODEL.WEIGHTS.

    Args:
        model: the model.
        path: file to write or replace.
        iterations: number of completed iterations.
        **facts: selection, source_val and source_score as in `ScoredWeights`, and other plain data.

    Raises:
        OSError: the file cannot be written.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_tensors({"model": state, "iteration": iterations - 1, **facts}, path)  # checkpoints store the last iteration


def load_for_scoring(cfg: CfgNode, model: nn.Module, resume: bool = False) -> ScoredWeights:
    """Load the weights to evaluate.

    Args:
        cfg: config with MODEL.WEIGHTS and OUTPUT_DIR.
        model: receives the weights.
        resume: load the last checkpoint of OUTPUT_DIR if there is one.

    Returns:
        A description of the loaded file.

    Raises:
        ClassesError: the weights were trained for other classes than those of DATASETS.TEST.
        WeightsError: the file is missing, or does not hold the whole model.
    """
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, strict=True)
    from_run = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if from_run else cfg.MODEL.WEIGHTS
    content = checkpointer.load(path, checkpointables=[])
    trained, scored = trained_classes(content), cfg.DATASETS.TEST
    if trained is not None:
        trained.require_same(classes_of(cfg, scored), path, scored[0])
    return describe_weights(path, content)


def describe_weights(path: str | os.PathLike[str], content: Mapping[str, Any]) -> ScoredWeights:
    """Describe a checkpoint.

    Args:
        path: its file.
        content: its entries besides the model.
    """
    name, iteration = os.path.basename(path), content.get("iteration")
    facts = {key: content[key] for key in _FACTS if key in content}
    return ScoredWeights(
        **{"selection": LAST if name == LAST_FILE else FILE, **facts},
        file=name,
        sha256=file_sha256(PathManager.get_local_path(os.fspath(path))),
        iterations=iteration + 1 if isinstance(iteration, int) else None,
    )
