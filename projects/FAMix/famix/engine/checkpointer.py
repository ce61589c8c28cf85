"""Detectron2's checkpointer, restricted to files that cannot run code, and strict where it matters."""

import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from glob import escape as glob_escape
from glob import glob
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks import PeriodicCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from famix.io import load_tensors, require_plain_file, unwrapped_names
from famix.io.atomic import remove_stale_parts, save_tensors, whole_file
from famix.utils.errors import CorruptFileError, FAMixError, TrainingError, WeightsError
from famix.utils.paths import require_local

__all__ = ["KeepingCheckpointer", "SafeCheckpointer"]

_LONGEST_NAME = 4096  # bytes
_LAST = "last_checkpoint"  # Detectron2's name of the file that names the last checkpoint
_NUMBERED = "model_[0-9][0-9][0-9][0-9][0-9][0-9][0-9].pth"  # how it names those in between


class SafeCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that loads tensors only and says plainly what is wrong with a file.

    Args:
        model: see DetectionCheckpointer, as all other arguments.
        save_dir: folder of the checkpoints.
        strict: refuse a checkpoint that leaves some of the model unset, which is otherwise only a logged warning.
        record: plain data that every checkpoint gets, such as the settings of the run.
        **checkpointables: saved and loaded along with the model.

    Attributes:
        resumed: the file that a training went on from; "" where it began anew.
        loaded: entries of the file that is being loaded, but for the model.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        record: Mapping[str, Any] | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.model: nn.Module = _unwrapped(model)
        self.strict = strict
        self.record = dict(record or {})
        self.resumed = ""
        self.loaded: dict[str, Any] = {}
        self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model, the checkpointables and more; the file appears whole or not at all.

        Args:
            name: of the file, without ".pth".
            **kwargs: what else to save.

        Raises:
            WeightsError: the file cannot be written; the checkpoints before it stay.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            save_tensors({"model": self.model.state_dict(), **states, **self.record, **kwargs}, path)
            self.tag_last_checkpoint(os.path.basename(path))
        except OSError as error:
            raise WeightsError(
                f"checkpoint {path} cannot be written ({error.strerror or error}); make room, then go on from the one before with --resume"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which checkpoint is the last one."""
        with whole_file(os.path.join(self.save_dir, _LAST)) as part:
            part.write_text(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """See DetectionCheckpointer.resume_or_load; a last checkpoint that is damaged gives way to the one before.

        Raises:
            WeightsError: see `load`; of the last checkpoint, where none can be read.
        """
        if not resume or not self.has_checkpoint():
            return self.load(path, checkpointables=[])
        if self.save_to_disk:
            remove_stale_parts(self.save_dir)  # of checkpoints, which would fill the disk in the long run
        last, *before = self.resumable_files()
        self._resuming, self.resumed = True, last
        try:
            return self.load(last)
        except WeightsError as error:
            for file in before:
                with suppress(WeightsError):
                    self.resumed = file
                    content = self.load(file)
                    logging.getLogger(__name__).warning("Going on from %s, since %s", file, error)
                    return content
            raise
        finally:
            self._resuming = False

    def read_resumable(self) -> tuple[str, dict[str, Any]]:
        """The file that `resume_or_load` would take up, and its content, without loading it into the model.

        Raises:
            WeightsError: of the last checkpoint, where none can be read.
        """
        first: WeightsError | None = None
        for file in self.resumable_files():
            try:
                self._require_file(file)
                return file, self._load_file(file)
            except WeightsError as error:
                first = first or error
        raise first or WeightsError(f"{self.save_dir} holds no checkpoint; leave --resume out")

    def get_checkpoint_file(self) -> str:
        """Path of the last checkpoint; of no file where the one that names it is damaged."""
        try:
            require_plain_file(os.path.join(self.save_dir, _LAST), _LONGEST_NAME)
            return super().get_checkpoint_file()
        except ValueError:  # it is no text
            return os.path.join(self.save_dir, _LAST)

    def resumable_files(self) -> list[str]:
        """Checkpoints of the folder that a training can go on from: the last one, then others from late to early."""
        last = self.get_checkpoint_file()
        return [last, *(file for file in self.numbered_files() if file != last)]

    def numbered_files(self) -> list[str]:
        """The checkpoints before the final one, from late to early."""
        return sorted(glob(os.path.join(glob_escape(self.save_dir), _NUMBERED)), reverse=True)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See DetectionCheckpointer.load.

        Raises:
            WeightsError: the file is missing, damaged, no checkpoint of tensors, of another run where it is to be gone
                on from, or, if strict, not of this model.
        """
        require_local(path, "MODEL.WEIGHTS", WeightsError)
        if path:
            self._require_file(path)
        if self.strict and not path:
            raise WeightsError("there is no checkpoint to evaluate; set MODEL.WEIGHTS to one")
        if not path:
            return {}  # fvcore would say that it starts from scratch, which CLIP is not
        try:
            # Not DetectionCheckpointer's, which reads the path as a URL: of one with ? it would open another file.
            return Checkpointer.load(self, path, *args, **kwargs)
        except FAMixError:
            raise
        except Exception as error:  # of those who take their part of its content
            raise WeightsError(
                f"{path} does not fit this run ({type(error).__name__}: {_first_line(error)})"
            ) from error

    def _require_file(self, path: str) -> None:
        if not self.path_manager.isfile(path):
            raise WeightsError(f"checkpoint {path} does not exist; correct MODEL.WEIGHTS or OUTPUT_DIR")

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            with self.path_manager.open(filename, "rb") as file:
                checkpoint = load_tensors(file)
        except Exception as error:  # torch raises another type for every kind of damage
            raise WeightsError(
                f"{filename} is no checkpoint of tensors ({type(error).__name__}: {_first_line(error)}); expected a file "
                "that this program saved"
            ) from error
        if not isinstance(checkpoint, dict):
            raise WeightsError(f"{filename} holds a {type(checkpoint).__name__}, expected a dictionary of tensors")
        checkpoint = checkpoint if "model" in checkpoint else {"model": checkpoint}
        _check_entries(filename, checkpoint["model"])
        try:
            return {**checkpoint, "model": unwrapped_names(checkpoint["model"])}
        except CorruptFileError as error:
            raise WeightsError(f"{filename} cannot be read: {error}") from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        lost = [key for key in self.checkpointables if key not in checkpoint]
        if self._resuming and lost:
            raise WeightsError(f"the checkpoint lacks {', '.join(lost)}, without which a training cannot go on")
        broken = first_not_finite(checkpoint["model"]) if self._resuming else None
        if broken is not None:
            raise WeightsError(f"{broken} of the checkpoint is not finite: the training had broken down before")
        self.loaded = {key: value for key, value in checkpoint.items() if key != "model"}
        incompatible = super()._load_model(checkpoint)
        misshapen = [key for key, *_ in incompatible.incorrect_shapes]
        unset = list(dict.fromkeys([*misshapen, *incompatible.missing_keys]))  # what has another shape is missing too
        if (self.strict or self._resuming) and unset:
            raise WeightsError(
                f"the checkpoint leaves {len(unset)} entries of the model unset or of another shape, e.g. "
                f"{', '.join(unset[:3])}; {'go on' if self._resuming else 'evaluate it'} with the config that it was "
                "trained with"
            )
        return incompatible


class KeepingCheckpointer(PeriodicCheckpointer):
    """Detectron2's hook that saves now and then, which removes the oldest checkpoints of the folder, too.

    A model whose weights are not finite is not saved, so that --resume finds a sound checkpoint.

    Args:
        checkpointer: saves them.
        period: iterations from one to the next.
        kept: how many stay beside the final one; 0 for all.
    """

    def __init__(self, checkpointer: SafeCheckpointer, period: int, kept: int) -> None:
        super().__init__(checkpointer, period)
        self.kept = kept

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Save if it is time to, then remove what is too much.

        Raises:
            TrainingError: the weights are not finite.
        """
        if (iteration + 1) % self.period == 0 or iteration + 1 >= (self.max_iter or math.inf):
            broken = first_not_finite(self.checkpointer.model.state_dict())
            if broken is not None:
                raise TrainingError(
                    f"iteration {iteration}: {broken} is not finite, so that no checkpoint is saved. Go on from the last one "
                    "with --resume and a lower SOLVER.BASE_LR"
                )
        super().step(iteration, **kwargs)
        if self.kept and (iteration + 1) % self.period == 0:
            for file in self.checkpointer.numbered_files()[self.kept :]:
                os.remove(file)


def first_not_finite(state: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor of a state_dict that holds infinity or NaN; None where all numbers are finite."""
    return next((name for name, value in state.items() if not value.isfinite().all()), None)


def _unwrapped(model: Any) -> nn.Module:
    """The model itself, by whose names weights are saved, without torch.compile and several processes around it."""
    while isinstance(model, DataParallel | DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    inner: nn.Module = model
    return inner


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _check_entries(filename: str, entries: Any) -> None:
    if not isinstance(entries, dict):
        raise WeightsError(
            f"{filename} holds a {type(entries).__name__} as its model, expected a dictionary of tensors"
        )
    foreign = [
        name for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if foreign:
        raise WeightsError(
            f"{filename} holds {foreign[0]!r}, a {type(entries[foreign[0]]).__name__}, among the weights, expected names "
            "and tensors; it is a checkpoint of another program"
        )
