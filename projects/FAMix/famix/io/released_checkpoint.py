"""Read checkpoints of the released FAMix program, with the names of this package."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from famix.io.atomic import save_tensors
from famix.io.tensors import load_tensors, unwrapped_names
from famix.utils.errors import CorruptFileError, WeightsError
from famix.utils.messages import first_few

__all__ = ["ReleasedCheckpoint", "load_released_checkpoint", "read_released_checkpoint", "require_fit", "save_weights"]

# The decoder is the semantic head here; the backbone has CLIP's names in both.
_PREFIXES = {"backbone.": "backbone.", "classifier.": "sem_seg_head."}
# Convolutions of all its networks, regardless of their CLIP.
_REQUIRED = ("backbone.conv1.weight", "classifier.aspp.project.0.weight", "classifier.classifier.3.weight")


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A checkpoint of the released program.

    Attributes:
        weights: state dict of a FAMixSemanticSegmentor with CLIPDeepLabV3PlusHead.
        iterations: number of trained iterations; None if the file lacks it.
        best_score: mIoU of the best validation so far, in [0, 1]; None if the file lacks it.
    """

    weights: dict[str, Tensor]
    iterations: int | None
    best_score: float | None


def load_released_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint of the released program.

    Args:
        path: a file with {"model_state": ..., "cur_itrs": ..., "best_score": ..., ...}. Nothing in it is executed.

    Returns:
        State dict of a FAMixSemanticSegmentor with CLIPDeepLabV3PlusHead; `save_weights` writes it for MODEL.WEIGHTS.

    Raises:
        WeightsError: the file is missing, damaged, would run code, or holds something else.
    """
    return read_released_checkpoint(path).weights


def read_released_checkpoint(path: str | Path) -> ReleasedCheckpoint:
    """Read a checkpoint of the released program with its iterations and score.

    Args:
        path: see `load_released_checkpoint`.

    Raises:
        WeightsError: see `load_released_checkpoint`.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"checkpoint {path} does not exist. Name a file that the released program saved")
    try:
        with open(path, "rb") as file:
            checkpoint = load_tensors(file)
        state = checkpoint.get("model_state") if isinstance(checkpoint, Mapping) else None
        if isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            state = unwrapped_names(state)
        else:
            found = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
            raise WeightsError(
                f"{path} must hold 'model_state' with tensors, as the released program saves, got {found}"
            )
    except WeightsError:
        raise
    except Exception as error:  # torch raises another type for every kind of damage
        raise WeightsError(f"{path} must be a checkpoint that can be read safely, got: {_reason(error)}") from error
    foreign = [name for name in state if not name.startswith(tuple(_PREFIXES))]
    missing = [name for name in _REQUIRED if name not in state or state[name].dim() != 4]
    if foreign or missing:
        raise WeightsError(
            f"{path} must be a checkpoint of the released program, with backbone.* and classifier.*, got unknown "
            f"{foreign[:3]}, missing {missing}"
        )
    weights = {}
    for name, value in state.items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        weights[_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    iterations, score = (checkpoint.get(key) for key in ("cur_itrs", "best_score"))
    return ReleasedCheckpoint(
        weights,
        int(iterations) if isinstance(iterations, int | float) else None,
        float(score) if isinstance(score, int | float) else None,
    )


def _reason(error: Exception) -> str:
    """Describe an error in one line, without torch's advice to read the file unsafely."""
    refused = re.search(r"GLOBAL:? ([\w.]+)", str(error))
    if refused:
        return f"it refers to {refused[1]}, which weights do not need; nothing was executed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    detail = error if isinstance(error, CorruptFileError) else type(error).__name__
    return f"it is truncated, damaged or not a file of torch ({detail})"


def require_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless weights have exactly the names and shapes of a model.

    Args:
        weights: weights to load.
        expected: state dict of the model; its values do not matter.

    Raises:
        WeightsError: names are missing or surplus, or shapes differ; names the first of each.
    """
    missing = [name for name in expected if name not in weights]
    extra = [name for name in weights if name not in expected]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    kinds = {"missing": missing, "left over": extra, "of another shape": misshapen}
    problems = [f"{len(found)} {kind}: {first_few(found)}" for kind, found in kinds.items() if found]
    if problems:
        raise WeightsError(f"the weights must fit the model of the config, got {'; '.join(problems)}")


def save_weights(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Write weights atomically as a file for MODEL.WEIGHTS.

    Args:
        weights: names to tensors.
        path: file to write, usually .pth; its folder is created if it is missing.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        save_tensors({"model": dict(weights)}, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WeightsError(f"the weights cannot be written to {path} ({reason}). Choose another file") from error
