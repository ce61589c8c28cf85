"""Detectron2's checkpointer, restricted to files that cannot run code, and strict where it matters."""

from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from famix.errors import WeightsError

__all__ = ["SafeCheckpointer"]


class SafeCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that loads tensors only and says plainly what is wrong with a file.

    Args:
        model: see DetectionCheckpointer, as all other arguments.
        save_dir: folder of the checkpoints.
        strict: refuse a checkpoint that leaves some of the model unset, which is otherwise only a logged warning.
        **checkpointables: saved and loaded along with the model.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, strict: bool = False, **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.strict = strict

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See DetectionCheckpointer.load.

        Raises:
            WeightsError: the file is missing, no checkpoint of tensors, or, if strict, not of this model.
        """
        if path and not self.path_manager.exists(path):
            raise WeightsError(f"checkpoint {path} does not exist; correct MODEL.WEIGHTS or OUTPUT_DIR")
        if self.strict and not path:
            raise WeightsError("there is no checkpoint to evaluate; set MODEL.WEIGHTS to one")
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # or Detectron2 would refuse to load anything after a bad file

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            with self.path_manager.open(filename, "rb") as file:
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises another type for every kind of damage
            reason = str(error).strip().splitlines() or [""]
            raise WeightsError(
                f"{filename} is no checkpoint of tensors ({type(error).__name__}: {reason[0]}); expected a file that "
                "this program saved"
            ) from error
        if not isinstance(checkpoint, dict):
            raise WeightsError(f"{filename} holds a {type(checkpoint).__name__}, expected a dictionary of tensors")
        checkpoint = checkpoint if "model" in checkpoint else {"model": checkpoint}
        _check_entries(filename, checkpoint["model"])
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        misshapen = [key for key, *_ in incompatible.incorrect_shapes]
        unset = list(dict.fromkeys([*misshapen, *incompatible.missing_keys]))  # what has another shape is missing too
        if self.strict and unset:
            raise WeightsError(
                f"the checkpoint leaves {len(unset)} entries of the model unset or of another shape, e.g. "
                f"{', '.join(unset[:3])}; evaluate it with the config that it was trained with"
            )
        return incompatible


def _check_entries(filename: str, entries: Any) -> None:
    if not isinstance(entries, dict):
        raise WeightsError(
            f"{filename} holds a {type(entries).__name__} as its model, expected a dictionary of tensors"
        )
    foreign = [name for name, value in entries.items() if not isinstance(value, torch.Tensor)]
    if foreign:
        raise WeightsError(
            f"{filename} holds {foreign[0]!r}, a {type(entries[foreign[0]]).__name__}, among the weights, expected names "
            "and tensors; it is a checkpoint of another program"
        )
