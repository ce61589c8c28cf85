"""Checkpoints that hold what inference needs and nothing else."""

import os
from collections.abc import Mapping

from torch import Tensor

from famix.config import flat_settings
from famix.data.class_table import SHIPPED
from famix.inference.loading import LoadedModel
from famix.io.atomic import save_tensors
from famix.utils.errors import WeightsError

__all__ = ["halve", "strip_checkpoint"]

_LOCAL = {  # keys that name files of the machine that trained -> what they are where a checkpoint is shipped
    "MODEL.WEIGHTS": "",
    "MODEL.STYLE.BANK": "",
    "DATASETS.FILES": [],
    "OUTPUT_DIR": "./output",
}


def strip_checkpoint(loaded: LoadedModel, path: str | os.PathLike[str], *, half: bool = False) -> None:
    """Write the weights of a network with its config and its classes, as one file that MODEL.WEIGHTS and Predictor take.

    What goes is the optimiser's state, the trainer's, and weights that the network does not use, e.g. CLIP's attention
    pool; what stays of the rest says how the network was trained.

    Args:
        loaded: of the checkpoint.
        path: of the file, replaced if there.
        half: keep matrices and kernels in half precision. Vectors, which are norms and biases, stay as they are.

    Raises:
        WeightsError: the file cannot be written.
    """
    state = {name: value.cpu() for name, value in loaded.model.state_dict().items()}
    shipped = {"config": flat_settings(loaded.cfg) | _LOCAL, "classes": loaded.classes.to_dict()}
    content = {**loaded.facts, "model": halve(state) if half else state, SHIPPED: shipped}
    try:
        save_tensors(content, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WeightsError(f"{path} cannot be written ({reason}); choose another file") from error


def halve(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in half precision; a variance can be below what that can hold."""
    return {
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value for name, value in state.items()
    }
