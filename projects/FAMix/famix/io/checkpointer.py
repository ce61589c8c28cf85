"""Checkpoints that are written atomically, read without running code, and rejected if incomplete."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from glob import escape as glob_escape
from glob import glob
from typing import Any, ClassVar

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from famix.io.atomic import remove_stale_parts, save_tensors, whole_file
from famix.io.tensors import load_tensors, unwrapped_names
from famix.io.text_files import require_plain_file
from famix.utils.errors import CorruptFileError, FAMixError, WeightsError
from famix.utils.messages import first_line
from famix.utils.paths import require_local, similar_path

LAST_FILE, BEST_FILE, AVERAGE_FILE = "model_final.pth", "model_best.pth", "model_ema.pth"
"""File names in OUTPUT_DIR for the final weights, the best weights on the source domain, and their moving average."""

SETTINGS = "settings"
"""Checkpoint entry that stores the settings of the run as {key: value}."""

BASE = "base_weights"
"""Checkpoint entry of adapter-only checkpoints (see `famix.clip.adapter_files`)."""

_MAX_NAME_BYTES = 4096
_POINTER = "last_checkpoint"  # Detectron2's file that names the last checkpoint
_NUMBERED = "model_[0-9][0-9][0-9][0-9][0-9][0-9][0-9].pth"  # Detectron2's naming scheme for earlier checkpoints
_ADAPTER = re.compile(r"(^|\.)adapters\..*\.up$")  # see famix.clip.adapters


class SafeCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that loads only tensors and reports defective files.

    Args:
        model: the model, possibly wrapped.
        save_dir: see DetectionCheckpointer.
        strict: reject a checkpoint that leaves part of the model unset. If False, Detectron2 logs a warning.
        record: plain data to store in every checkpoint, such as the settings of the run.
        complete: function of the entries of an adapter-only checkpoint and its path that adds the base weights. None refuses
            such checkpoints.
        **checkpointables: objects that are saved and loaded along with the model.

    Attributes:
        resumed: file from which training resumed, or "" for a new run.
        loaded: entries of the file being loaded, except the model.
    """

    _read_ahead: ClassVar[dict[str, tuple[object, dict[str, Any]]]] = {}  # file -> (identity, content)

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        record: Mapping[str, Any] | None = None,
        complete: Callable[[dict[str, Any], str], dict[str, Any]] | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        inner: Any = model
        while isinstance(inner, DataParallel | DistributedDataParallel) or hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
        self.model: nn.Module = inner
        self.strict = strict
        self.record = dict(record or {})
        self.complete = complete
        self.resumed = ""
        self.loaded: dict[str, Any] = {}
        self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model, the checkpointables and `kwargs` atomically as {name}.pth.

        Raises:
            WeightsError: the file cannot be written. Earlier checkpoints are kept.
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
                f"Checkpoint '{path}' cannot be written ({error.strerror or error}). Free disk space, then continue "
                "from the previous checkpoint with --resume."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record the name of the last checkpoint."""
        with whole_file(os.path.join(self.save_dir, _POINTER)) as part:
            part.write_text(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume or load like DetectionCheckpointer, but fall back to earlier checkpoints if the last one is damaged.

        Raises:
            WeightsError: no checkpoint can be read. The message describes the last one. See also `load`.
        """
        if not resume or not self.has_checkpoint():
            return self.load(path, checkpointables=[])
        if self.save_to_disk:
            remove_stale_parts(self.save_dir)  # unfinished checkpoints would eventually fill the disk
        last, *before = self.resumable_files()
        self._resuming, self.resumed = True, last
        try:
            return self.load(last)
        except WeightsError as error:
            for file in before:
                with suppress(WeightsError):
                    self.resumed = file
                    content = self.load(file)
                    logging.getLogger(__name__).warning("Continuing from %s: %s", file, error)
                    return content
            raise
        finally:
            self._resuming = False

    def read_resumable(self) -> tuple[str, dict[str, Any]]:
        """Return the path and content of the checkpoint that `resume_or_load` would load. The next `load` reuses the content.

        Raises:
            WeightsError: no checkpoint can be read. The message describes the last one.
        """
        first: WeightsError | None = None
        for file in self.resumable_files():
            try:
                content = self._load_file(file)
            except WeightsError as error:
                first = first or error
            else:
                self._read_ahead.clear()
                self._read_ahead[file] = _identity(file), content
                return file, content
        raise first or WeightsError(f"No checkpoint to resume from in '{self.save_dir}'. Omit --resume.")

    def get_checkpoint_file(self) -> str:
        """Return the path of the last checkpoint, or of the file `last_checkpoint` if that file is damaged."""
        try:
            require_plain_file(os.path.join(self.save_dir, _POINTER), _MAX_NAME_BYTES)
            return super().get_checkpoint_file()
        except ValueError:  # not text
            return os.path.join(self.save_dir, _POINTER)

    def resumable_files(self) -> list[str]:
        """Return the checkpoints that training can resume from: the last one, then the others from latest to earliest."""
        last = self.get_checkpoint_file()
        return [last, *(file for file in self.numbered_files() if file != last)]

    def numbered_files(self) -> list[str]:
        """Return the checkpoints before the final one, from latest to earliest."""
        return sorted(glob(os.path.join(glob_escape(self.save_dir), _NUMBERED)), reverse=True)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint. See DetectionCheckpointer.load.

        Raises:
            WeightsError: the file is missing, damaged or not a checkpoint of tensors; when resuming, it is incomplete or
                belongs to a different run; if `strict`, it belongs to a different model.
        """
        require_local(path, "MODEL.WEIGHTS", WeightsError)
        if not path and self.strict:
            raise WeightsError("MODEL.WEIGHTS is empty; nothing to evaluate. Set MODEL.WEIGHTS to a checkpoint.")
        if not path:
            return {}  # fvcore would wrongly log that it initializes from scratch
        _require_file(path)
        try:
            # DetectionCheckpointer.load parses the path as a URL and would open a wrong file for a path with "?".
            return Checkpointer.load(self, path, *args, **kwargs)
        except FAMixError:
            raise
        except Exception as error:  # raised by checkpointables
            raise WeightsError(
                f"Checkpoint '{path}' does not fit this run ({type(error).__name__}: {first_line(error)})."
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        _require_file(filename)
        identity, content = self._read_ahead.pop(filename, (None, {}))
        content = content if identity == _identity(filename) else read_checkpoint(filename)
        if BASE not in content:
            return content
        if self.complete is None:
            raise WeightsError(
                f"Checkpoint '{filename}' contains adapters without the weights of their backbone. Use a complete checkpoint, "
                "e.g. from tools/export.py --format stripped."
            )
        return self.complete(content, filename)

    def load_content(self, content: dict[str, Any]) -> None:
        """Load the model from a checkpoint returned by `read_checkpoint`. If strict, reject different models."""
        self._log_incompatible_keys(self._load_model(dict(content)))

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._resuming:
            lost = [key for key in self.checkpointables if key not in checkpoint]
            if lost:
                raise WeightsError(f"The checkpoint lacks entries that are needed to resume: {', '.join(lost)}.")
            broken = first_not_finite(checkpoint["model"])
            if broken is not None:
                raise WeightsError(f"Non-finite values in '{broken}' of the checkpoint: training had already diverged.")
        self._check_adapters(checkpoint["model"])
        self.loaded = {key: value for key, value in checkpoint.items() if key != "model"}
        incompatible = super()._load_model(checkpoint)
        misshapen = {
            key: f"{key} with {tuple(found)} instead of {tuple(expected)}"
            for key, found, expected in incompatible.incorrect_shapes
        }
        unset = {key: key for key in incompatible.missing_keys} | misshapen  # misshapen entries are also missing
        if (self.strict or self._resuming) and unset:
            examples = [*misshapen.values(), *(key for key in unset if key not in misshapen)][:3]
            raise WeightsError(
                f"The checkpoint lacks {len(unset)} entries of the model or has them in a different shape, e.g. "
                f"{', '.join(examples)}. {'Resume' if self._resuming else 'Evaluate it'} with the config used for "
                "training."
            )
        return incompatible

    def _check_adapters(self, state: Mapping[str, Tensor]) -> None:
        """Raise WeightsError if adapters would be dropped or, unless training starts, were not loaded."""
        stored, used = (
            next((value.shape[1] for name, value in tensors.items() if _ADAPTER.search(name)), 0)
            for tensors in (state, self.model.state_dict())
        )
        if stored != used and (stored or self.strict or self._resuming):
            content = f"adapters of rank {stored}" if stored else "no adapters, or merged ones"
            raise WeightsError(
                f"MODEL.ADAPTERS.RANK must be {stored}, because the checkpoint has {content}, got {used}. Set "
                f"MODEL.ADAPTERS.RANK to {stored}."
            )


def read_checkpoint(path: str | os.PathLike[str], entry: str = "model") -> dict[str, Any]:
    """Read a checkpoint with a state dict under the key `entry`.

    A file without the key "model" is read as a bare state dict.

    Returns:
        The entries of the file. Prefixes of wrappers such as DataParallel are removed from the names in the state dict.

    Raises:
        WeightsError: the file is missing or damaged, or contains objects other than tensors and plain data.
    """
    _require_file(path)
    try:
        with open(path, "rb") as file:
            checkpoint = load_tensors(file)
        if entry == "model" and isinstance(checkpoint, dict) and "model" not in checkpoint:
            checkpoint = {"model": checkpoint}
        state = checkpoint.get(entry) if isinstance(checkpoint, dict) else None
        if not isinstance(state, dict):
            found = list(checkpoint)[:5] if isinstance(checkpoint, dict) else type(checkpoint).__name__
            raise CorruptFileError(f"it contains {found} but no dictionary '{entry}'")
        for name, value in state.items():
            if not (isinstance(name, str) and isinstance(value, Tensor)):
                raise CorruptFileError(f"entry {name!r} of '{entry}' is of type {type(value).__name__}, not a tensor")
        return {**checkpoint, entry: unwrapped_names(state)}
    except Exception as error:  # from the disk, the unpickler, or the content
        raise WeightsError(
            f"Cannot read tensors under '{entry}' in checkpoint '{path}': {first_line(error)}. Use a checkpoint saved "
            "by training."
        ) from error


def _require_file(path: str | os.PathLike[str]) -> None:
    if os.path.isdir(path):
        raise WeightsError(f"MODEL.WEIGHTS must be a file, got the folder '{path}'. Use e.g. its model_final.pth.")
    if not os.path.isfile(path):
        raise WeightsError(f"Checkpoint not found: '{path}'. Correct MODEL.WEIGHTS or OUTPUT_DIR.{similar_path(path)}")


def first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor in a state dict that contains infinity or NaN, or None if all are finite."""
    return next((name for name, value in state.items() if not value.isfinite().all()), None)


def _identity(path: str) -> object:
    """Return a value that identifies the current content of a file."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
