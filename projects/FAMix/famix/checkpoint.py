"""Checkpoints of the released FAMix program, under this project's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from famix.errors import WeightsError

__all__ = ["load_released_checkpoint"]

# The decoder is this project's semantic head; the backbone has CLIP's names in both.
_PREFIXES = {"backbone.": "backbone.", "classifier.": "sem_seg_head."}
_REQUIRED = ("backbone.conv1.weight", "classifier.aspp.project.0.weight", "classifier.classifier.3.weight")


def load_released_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint of the released program.

    Args:
        path: a file with {"model_state": ..., "cur_itrs": ..., "best_score": ..., ...}. Nothing in it is executed.

    Returns:
        The weights of a FAMixSemanticSegmentor with CLIPDeepLabV3PlusHead. Saved as {"model": ...} with torch.save,
        they are what MODEL.WEIGHTS takes.

    Raises:
        WeightsError: the file is missing, damaged, would run code, or holds something else.
    """
    state = _model_state(_load(Path(path)), path)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    foreign = [name for name in state if not name.startswith(tuple(_PREFIXES))]
    missing = [name for name in _REQUIRED if name not in state]
    if foreign or missing:
        raise WeightsError(
            f"{path} is no checkpoint of the released program: expected only backbone.* and classifier.*, among them "
            f"{', '.join(_REQUIRED)}; unknown {foreign[:3]}, missing {missing}"
        )
    return {_rename(name): value for name, value in state.items()}


def _load(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"checkpoint {path} does not exist; expected one that the released program saved")
    try:
        # "best_score" is a NumPy number, which torch's safe loader takes only when told to.
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises another type for every kind of damage
        reason = (str(error).strip().splitlines() or [""])[0]
        raise WeightsError(f"{path} is no checkpoint that can be read safely: {reason}") from error


def _numpy_scalars() -> list[Any]:
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]  # the function that pickles of NumPy numbers call
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # before and since NumPy 2
    return [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, *((scalar, name) for name in names)]


def _model_state(checkpoint: Any, path: str | Path) -> Mapping[str, Tensor]:
    state = checkpoint.get("model_state") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise WeightsError(f"{path} has no 'model_state' of tensors as the released program saves it; it holds {found}")
    return state


def _rename(name: str) -> str:
    for released, ours in _PREFIXES.items():
        if name.startswith(released):
            return ours + name.removeprefix(released)
    raise AssertionError(name)
