"""Reading tensors by name from the three forms in which CLIP weights are passed around, without running their code.

The form is told from the content, never from the suffix: OpenAI's TorchScript archives are called ".pt" as well.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from famix.errors import WeightsError
from famix.intake import DoubtfulFileError, load_tensors, read_torchscript

__all__ = ["read_tensors"]

_EXPECTED = "expected a TorchScript archive of OpenAI, a state_dict saved by torch.save or a .safetensors file"
_DAMAGED = "It may be a part of a download: fetch or copy it again."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file onto the CPU, in the precision they are stored in.

    Args:
        path: a TorchScript archive; a state_dict (names to tensors) saved by torch.save, by itself or as the entry
            "state_dict" of a dictionary; or a .safetensors file. The prefix "module." that DataParallel puts before
            all names is removed.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else than tensors.
    """
    if not os.path.isfile(path):
        raise WeightsError(
            f"Got no file of weights at {path}, {_EXPECTED}. Correct the path, or name a published model, e.g. RN50."
        )
    if _is_safetensors(path):
        tensors = _read_safetensors(path)
    elif _is_torchscript(path):
        tensors = _read_torchscript(path)
    else:
        tensors = _read_state_dict(path)
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts like one: the length of a JSON header in 8 bytes, then the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except Exception:  # whatever a damaged one leads to; it will be refused with what is wrong
        return False


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # SafetensorError and, of tensors that make no sense, torch's own
        raise WeightsError(f"Got a damaged safetensors file {path} ({error}), {_EXPECTED}. {_DAMAGED}") from error


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            return read_torchscript(file)
    except (DoubtfulFileError, OSError) as error:
        raise WeightsError(
            f"Got a damaged TorchScript archive {path} ({_first_line(error)}), {_EXPECTED}. {_DAMAGED}"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            content = load_tensors(file)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"Got {path}, which is no file of plain tensors ({_foreign_part(error)}), {_EXPECTED}. Objects in a pickle "
            "can run code and are never loaded: save the model's state_dict() where you trust it."
        ) from error
    except Exception as error:  # torch raises another type for every kind of damage
        raise WeightsError(f"Got a damaged file {path} ({_first_line(error)}), {_EXPECTED}. {_DAMAGED}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise WeightsError(
            f"Got {path} with a {type(content).__name__} that is no state_dict, {_EXPECTED}. "
            'Save the model\'s state_dict() alone or as {"state_dict": ...}.'
        )
    return dict(content)


def _foreign_part(error: pickle.UnpicklingError) -> str:
    """What the pickle holds beside tensors, out of torch's pages of advice on how to load it unsafely."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it calls for {found.group(1)}" if found else "it is none that torch wrote"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
