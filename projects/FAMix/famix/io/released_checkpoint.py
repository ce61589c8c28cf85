"""Checkpoints of the released FAMix program, under this project's names."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from famix.io import load_tensors, unwrapped_names
from famix.io.atomic import save_tensors
from famix.utils.errors import CorruptFileError, WeightsError
from famix.utils.messages import first_few

__all__ = ["ReleasedCheckpoint", "load_released_checkpoint", "read_released_checkpoint", "require_fit", "save_weights"]

# The decoder is this project's semantic head; the backbone has CLIP's names in both.
_PREFIXES = {"backbone.": "backbone.", "classifier.": "sem_seg_head."}
# Convolutions that any of its networks has, whatever its CLIP.
_REQUIRED = ("backbone.conv1.weight", "classifier.aspp.project.0.weight", "classifier.classifier.3.weight")


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A checkpoint of the released program.

    Attributes:
        weights: of a FAMixSemanticSegmentor with CLIPDeepLabV3PlusHead, under their names there.
        iterations: that were trained; None where the file does not say.
        best_score: mIoU of the best validation so far, 0-1; None where the file does not say.
    """

    weights: dict[str, Tensor]
    iterations: int | None
    best_score: float | None


def load_released_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint of the released program.

    Args:
        path: a file with {"model_state": ..., "cur_itrs": ..., "best_score": ..., ...}. Nothing in it is executed.

    Returns:
        The weights of a FAMixSemanticSegmentor with CLIPDeepLabV3PlusHead. Written by `save_weights`, they are what
        MODEL.WEIGHTS takes.

    Raises:
        WeightsError: the file is missing, damaged, would run code, or holds something else.
    """
    return read_released_checkpoint(path).weights


def read_released_checkpoint(path: str | Path) -> ReleasedCheckpoint:
    """Read a checkpoint of the released program with what it says of itself.

    Args:
        path: see `load_released_checkpoint`.

    Raises:
        WeightsError: see `load_released_checkpoint`.
    """
    checkpoint = _load(Path(path))
    state = _model_state(checkpoint, path)
    foreign = [name for name in state if not name.startswith(tuple(_PREFIXES))]
    missing = [name for name in _REQUIRED if name not in state or state[name].dim() != 4]
    if foreign or missing:
        raise WeightsError(
            f"{path} is no checkpoint of the released program: expected only backbone.* and classifier.*, among them "
            f"{', '.join(_REQUIRED)}; unknown {foreign[:3]}, missing {missing}"
        )
    weights = {_rename(name): value for name, value in state.items()}
    iterations = _number(checkpoint, "cur_itrs")
    return ReleasedCheckpoint(
        weights, None if iterations is None else int(iterations), _number(checkpoint, "best_score")
    )


def require_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless weights have exactly the names and shapes of a model's.

    Args:
        weights: to be loaded.
        expected: the model's state_dict; its values do not matter.

    Raises:
        WeightsError: names are missing or left over, or shapes differ; names the first of each.
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
        raise WeightsError(f"the weights are not those of the config's model; {'; '.join(problems)}")


def save_weights(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Write weights as a file for MODEL.WEIGHTS; it appears whole or not at all.

    Args:
        weights: names to tensors.
        path: of the file, .pth by custom; its folder is made where it is missing.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        save_tensors({"model": dict(weights)}, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WeightsError(f"the weights cannot be written to {path} ({reason}); choose another file") from error


def _load(path: Path) -> Any:
    if not os.path.isfile(path):
        raise WeightsError(f"checkpoint {path} does not exist; expected one that the released program saved")
    try:
        with path.open("rb") as file:
            return load_tensors(file)
    except Exception as error:  # torch raises another type for every kind of damage
        raise WeightsError(f"{path} is no checkpoint that can be read safely: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong, in one line; torch's own words are many, and advise to read the file unsafely."""
    refused = re.search(r"GLOBAL:? ([\w.]+)", str(error))
    if refused:
        return f"it refers to {refused[1]}, which weights have no use for; nothing was executed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    detail = error if isinstance(error, CorruptFileError | WeightsError) else type(error).__name__
    return f"it is truncated, damaged or no file that torch saved ({detail})"


def _model_state(checkpoint: Any, path: str | Path) -> Mapping[str, Tensor]:
    state = checkpoint.get("model_state") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        found = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise WeightsError(f"{path} has no 'model_state' of tensors as the released program saves it; it holds {found}")
    try:
        return unwrapped_names(state)
    except CorruptFileError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def _number(checkpoint: Mapping[str, Any], key: str) -> float | None:
    value = checkpoint.get(key)
    return float(value) if isinstance(value, int | float) else None


def _rename(name: str) -> str:
    for released, ours in _PREFIXES.items():
        if name.startswith(released):
            return ours + name.removeprefix(released)
    raise AssertionError(name)
