"""Selection of the weights to score: the last, the best on the source, an average or a file, never by target scores."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from famix.clip.adapter_files import with_base
from famix.config import require_setting
from famix.data.classes import classes_of, trained_classes
from famix.data.registration import is_source
from famix.data.vocabulary import vocabulary_of
from famix.engine.hooks import SourceValidation, WeightAverageHook, changing_tensors
from famix.io import file_sha256
from famix.io.atomic import save_tensors
from famix.io.checkpointer import AVERAGE_FILE, BEST_FILE, LAST_FILE, SafeCheckpointer, read_checkpoint
from famix.reports.report import AVERAGE, BEST, FILE, LAST, ScoredWeights

_FILES = {LAST: LAST_FILE, BEST: BEST_FILE, AVERAGE: AVERAGE_FILE}  # MODEL_SELECTION.USE -> name in OUTPUT_DIR
_FACTS = ("selection", "source_val", "source_score")


class ModelSelection:
    """Hooks configured by MODEL_SELECTION, and access to the selected weights.

    Args:
        cfg: the effective config.
        model: model being trained, without wrappers.
        score_source: function that scores a dataset with the current weights. It is called in every process and returns
            the mIoU on the main one.
        record: plain data to store in weight files, such as the settings of the run.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        score_source: Callable[[str], float],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        selection = cfg.MODEL_SELECTION
        self._use, self._source_val, self._folder = selection.USE, selection.SOURCE_VAL, cfg.OUTPUT_DIR
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
        """After training, load the selected weights into the model for the duration of a block, in all processes.

        Args:
            iterations: number of completed iterations.

        Yields:
            Description of the selected weights and their file in OUTPUT_DIR.

        Raises:
            WeightsError: the file with the best weights is missing or damaged.
        """
        if self.average and comm.is_main_process():
            with borrowed_weights(self._model, self.average.tensors):
                self._save(AVERAGE_FILE, iterations, selection=AVERAGE)
        path = os.path.join(self._folder, _FILES[self._use])
        content: dict[str, Any] = {"iteration": iterations - 1}
        weights: Mapping[str, Tensor] = changing_tensors(self._model)
        if self._use != LAST and comm.is_main_process():
            content = read_checkpoint(path)
            weights = content.pop("model")
        with borrowed_weights(self._model, weights):
            if self._use != LAST and comm.get_world_size() > 1:
                for value in changing_tensors(self._model).values():
                    torch.distributed.broadcast(value, src=0)
            exists = comm.is_main_process() and os.path.exists(path)  # no file after zero iterations
            yield describe_weights(path, content) if exists else ScoredWeights()

    def _keep_best(self, iterations: int, score: float) -> None:
        self._save(BEST_FILE, iterations, selection=BEST, source_val=self._source_val, source_score=score)

    def _save(self, name: str, iterations: int, **facts: Any) -> None:
        save_weights(self._model, os.path.join(self._folder, name), iterations=iterations, **facts, **self._record)


def check_selection(cfg: CfgNode) -> None:
    """Check MODEL_SELECTION against the rest of a training config and the registered datasets.

    Raises:
        ConfigError: a key has an invalid value, requires another key, or would select weights on a target.
    """
    use, source_val = cfg.MODEL_SELECTION.USE, cfg.MODEL_SELECTION.SOURCE_VAL
    decay, train = cfg.MODEL_SELECTION.EMA_DECAY, cfg.DATASETS.TRAIN
    for name, valid, constraint, remedy in (
        ("USE", use in _FILES, f"one of {', '.join(_FILES)}", "Set it to last"),
        ("EMA_DECAY", 0 <= decay < 1, "in [0, 1)", "Set it to 0.999, or to 0 to disable the average"),
        ("USE", use != AVERAGE or decay, "last or best if MODEL_SELECTION.EMA_DECAY is 0",
         "Set MODEL_SELECTION.EMA_DECAY, e.g. to 0.999"),
        ("USE", use != BEST or source_val, "last or ema if MODEL_SELECTION.SOURCE_VAL is empty",
         "Set MODEL_SELECTION.SOURCE_VAL to a source validation set"),
        ("SOURCE_VAL", source_val not in train, "a dataset outside DATASETS.TRAIN", "Set it to a validation set"),
        ("SOURCE_VAL", not source_val or is_source(cfg, source_val), f"a dataset in the domain of {', '.join(train)}",
         "Weights must not be selected on a target. Use a source validation set, or declare this dataset a source in "
         "TEST.SOURCE or through its 'domain'"),
        ("PERIOD", not source_val or _period(cfg) > 0, "non-negative", "Set it to 0"),
    ):  # fmt: skip
        require_setting(cfg, f"MODEL_SELECTION.{name}", valid, constraint, remedy)


def _period(cfg: CfgNode) -> int:
    return cfg.MODEL_SELECTION.PERIOD or cfg.TEST.EVAL_PERIOD or cfg.SOLVER.CHECKPOINT_PERIOD


@contextmanager
def borrowed_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace all `changing_tensors` of a model with `tensors`, by state-dict names, for the duration of a block."""
    own = {name: value.clone() for name, value in changing_tensors(model).items()}
    try:
        _copy(tensors, model)
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
        model: model to save.
        path: file to write or replace.
        iterations: number of completed iterations.
        **facts: `selection`, `source_val` and `source_score` as in `ScoredWeights`, and other plain data.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_tensors({"model": state, "iteration": iterations - 1, **facts}, path)  # checkpoints store the last iteration


def load_for_scoring(cfg: CfgNode, model: nn.Module, resume: bool = False) -> ScoredWeights:
    """Load the weights to evaluate and return a description of their file.

    Args:
        cfg: config with MODEL.WEIGHTS and OUTPUT_DIR.
        model: model that receives the weights.
        resume: whether to load the last checkpoint in OUTPUT_DIR if there is one.

    Raises:
        ClassesError: the weights were trained on classes that differ from those of DATASETS.TEST.
        WeightsError: the file is missing or does not contain the whole model.
    """
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, strict=True, complete=partial(with_base, cfg=cfg))
    from_run = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if from_run else cfg.MODEL.WEIGHTS
    content = checkpointer.load(path, checkpointables=[])
    trained, scored = trained_classes(content), cfg.DATASETS.TEST if vocabulary_of(cfg) is None else cfg.DATASETS.TRAIN
    if trained is not None:
        trained.require_same(classes_of(cfg, scored), path, scored[0])
    return describe_weights(path, content)


def describe_weights(path: str | os.PathLike[str], content: Mapping[str, Any]) -> ScoredWeights:
    """Describe a checkpoint by its file and by its entries other than the model."""
    name, iteration = os.path.basename(path), content.get("iteration")
    facts = {key: content[key] for key in _FACTS if key in content}
    return ScoredWeights(
        **{"selection": LAST if name == LAST_FILE else FILE, **facts},
        file=name,
        sha256=file_sha256(PathManager.get_local_path(os.fspath(path))),
        iterations=iteration + 1 if isinstance(iteration, int) else None,
    )
