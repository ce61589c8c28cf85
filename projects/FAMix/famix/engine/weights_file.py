"""Files of weights alone: written whole or not at all, and described for the table of what they scored."""

import os
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from famix.data.class_table import classes_of, trained_classes
from famix.engine.checkpointer import SafeCheckpointer
from famix.io import load_tensors
from famix.io.atomic import save_tensors
from famix.reports.run_metadata import FILE, LAST, ScoredWeights, file_sha256
from famix.utils.errors import WeightsError

__all__ = ["LAST_FILE", "load_for_scoring", "read_checkpoint", "save_weights", "weights_of_file"]

LAST_FILE = "model_final.pth"
"""What Detectron2 calls the checkpoint after the last iteration."""

_FACTS = ("selection", "source_val", "source_score")


def save_weights(model: nn.Module, path: str | os.PathLike[str], *, iterations: int, **facts: Any) -> None:
    """Write a model's state as a checkpoint that MODEL.WEIGHTS takes.

    Args:
        model: whose state is saved.
        path: of the file, which is replaced.
        iterations: that were done.
        facts: selection, source_val and source_score as in `ScoredWeights`, and other plain data.

    Raises:
        OSError: the file cannot be written.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_tensors({"model": state, "iteration": iterations - 1, **facts}, path)  # checkpoints name the last one done


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_weights` wrote: "model", and the facts beside it.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        with open(path, "rb") as file:
            return load_tensors(file)
    except Exception as error:  # torch raises another type for every kind of damage
        reason = (str(error).strip().splitlines() or [""])[0]
        raise WeightsError(
            f"{path} cannot be read ({type(error).__name__}: {reason}); expected what training saved"
        ) from error


def load_for_scoring(cfg: CfgNode, model: nn.Module, resume: bool = False) -> ScoredWeights:
    """Load what an evaluation scores.

    Args:
        cfg: reads MODEL.WEIGHTS and OUTPUT_DIR.
        model: gets the weights.
        resume: take the last checkpoint of OUTPUT_DIR, where there is one.

    Returns:
        What was loaded.

    Raises:
        ClassesError: it was trained for other classes than those of DATASETS.TEST.
        WeightsError: there is no file, or it does not hold all of the model.
    """
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, strict=True)
    from_run = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if from_run else cfg.MODEL.WEIGHTS
    content = checkpointer.load(path, checkpointables=[])
    trained, scored = trained_classes(content), cfg.DATASETS.TEST
    if trained is not None:
        trained.require_same(classes_of(cfg, scored), path, scored[0])
    return weights_of_file(path, content)


def weights_of_file(path: str | os.PathLike[str], content: Mapping[str, Any]) -> ScoredWeights:
    """Describe a checkpoint.

    Args:
        path: of the file.
        content: of the file, beside the model.
    """
    name, iteration = os.path.basename(path), content.get("iteration")
    facts = {key: content[key] for key in _FACTS if key in content}
    return ScoredWeights(
        **{"selection": LAST if name == LAST_FILE else FILE, **facts},
        file=name,
        sha256=file_sha256(PathManager.get_local_path(os.fspath(path))),
        iterations=iteration + 1 if isinstance(iteration, int) else None,
    )
