"""Read checkpoints of the FAMix reference implementation and convert them to the parameter names of this package."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from famix.io.atomic import save_tensors
from famix.io.checkpointer import read_checkpoint
from famix.utils.errors import WeightsError
from famix.utils.messages import first_few

# The decoder is called sem_seg_head here. The backbone has CLIP's parameter names in both.
_PREFIXES = {"backbone.": "backbone.", "classifier.": "sem_seg_head."}
# Convolutions that all its networks have, regardless of the CLIP model.
_REQUIRED = ("backbone.conv1.weight", "classifier.aspp.project.0.weight", "classifier.classifier.3.weight")


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A checkpoint of the reference implementation. Numbers missing from the file are None."""

    weights: dict[str, Tensor]  # state dict of a FAMixSemanticSegmentor with CLIPDeepLabV3PlusHead
    iterations: int | None
    best_score: float | None  # best validation mIoU so far, in [0, 1]


def load_released_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights from a checkpoint of the reference implementation.

    Args:
        path: file that contains {"model_state": ..., "cur_itrs": ..., "best_score": ..., ...}. Nothing in it is executed.

    Returns:
        State dict for a FAMixSemanticSegmentor with CLIPDeepLabV3PlusHead. Save it with `save_weights` to use it as
        MODEL.WEIGHTS.

    Raises:
        WeightsError: the file is missing or damaged, would run code, or has different weights.
    """
    return read_released_checkpoint(path).weights


def read_released_checkpoint(path: str | Path) -> ReleasedCheckpoint:
    """Read a checkpoint with its iteration count and score. See `load_released_checkpoint`."""
    checkpoint = read_checkpoint(path, "model_state")
    state = checkpoint["model_state"]
    unknown = [name for name in state if not name.startswith(tuple(_PREFIXES))]
    missing = [name for name in _REQUIRED if name not in state or state[name].dim() != 4]
    if unknown or missing:
        raise WeightsError(
            f"'model_state' in '{path}' does not match the reference implementation's backbone.* and classifier.* "
            f"weights: unknown {unknown[:3]}, missing {missing}. Use a checkpoint of that implementation."
        )
    weights = {}
    for name, value in state.items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        weights[_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    iterations, score = (_number(checkpoint.get(key)) for key in ("cur_itrs", "best_score"))
    return ReleasedCheckpoint(weights, None if iterations is None else int(iterations), score)


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and abs(value) < 1 << 63 else None


def save_weights(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Atomically write weights to a file for MODEL.WEIGHTS, usually .pth. Raises WeightsError if it cannot be written."""
    try:
        save_tensors({"model": dict(weights)}, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WeightsError(f"Weights cannot be written to '{path}' ({reason}). Choose another file.") from error


def require_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless weights have exactly the names and shapes of a model.

    Args:
        weights: weights to load.
        expected: state dict of the model. Its values are ignored.

    Raises:
        WeightsError: names are missing or unexpected, or shapes differ.
    """
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "with a different shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ],
    }
    problems = [f"{len(found)} {kind}: {first_few(found)}" for kind, found in kinds.items() if found]
    if problems:
        raise WeightsError(
            f"The weights do not fit the model in the config: {'; '.join(problems)}. Pass the matching --config-file."
        )
