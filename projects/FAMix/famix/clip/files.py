"""Reading CLIP weights from the three forms in which they are passed around, without running their code.

The form is told from the content, never from the suffix: OpenAI's TorchScript archives are called ".pt" as well.
"""

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from famix.clip.openai import model_urls
from famix.clip.text_tower import OPENAI_TEXT, Activation, TextDesign, causal_mask
from famix.io import TorchScript, load_tensors, read_torchscript, unwrapped_names
from famix.utils.errors import CorruptFileError, WeightsError

__all__ = ["CLIPStateDict", "design_marks", "design_of_marks", "read_clip"]

_EXPECTED = "expected a TorchScript archive of OpenAI, a state_dict saved by torch.save or a .safetensors file"
_DAMAGED = "It may be a part of a download: fetch or copy it again."
_ACTIVATION, _CAUSAL = "activation", "causal"  # marks in a file
_CLASSES: dict[str, Activation] = {"QuickGELU": "quick_gelu", "GELU": "gelu"}  # of modules in TorchScript


class CLIPStateDict(dict[str, Tensor]):
    """Names to tensors of a CLIP, with the design of its text tower as far as the file shows it.

    Attributes:
        text_design: the mark that `PromptEncoder` reads. Copies into plain dictionaries lose it.
    """

    text_design = TextDesign()


def design_marks(design: TextDesign) -> dict[str, str]:
    """Write a design as metadata of a file; unknown properties become ""."""
    return {_ACTIVATION: design.activation or "", _CAUSAL: "" if design.causal is None else str(design.causal).lower()}


def design_of_marks(marks: object) -> TextDesign:
    """Read the design that `design_marks` wrote among other metadata; unknown where there is no such mark."""
    entries = marks if isinstance(marks, Mapping) else {}
    activation, causal = (entries.get(key) for key in (_ACTIVATION, _CAUSAL))
    masks = {"true": True, "false": False}
    return TextDesign(
        cast(Activation, activation) if activation in _CLASSES.values() else None,
        masks.get(causal) if isinstance(causal, str) else None,
    )


def read_clip(path: Path) -> CLIPStateDict:
    """Read all tensors of a file onto the CPU, in the precision they are stored in.

    Args:
        path: a TorchScript archive; a state_dict (names to tensors) saved by torch.save, by itself or as the entry
            "state_dict" of a dictionary; or a .safetensors file. What DataParallel ("module.") and torch.compile
            ("_orig_mod.") add to names is removed.

    Returns:
        The tensors. Their design is known from archives, whose modules have names, from files of this project, which
        have marks, and from OpenAI's own files; other files do not show it.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else than tensors.
    """
    if not os.path.isfile(path):
        raise WeightsError(
            f"Got no file of weights at {path}, {_EXPECTED}. Correct the path, or name a published model, e.g. RN50."
        )
    if _is_safetensors(path):
        tensors, design = _read_safetensors(path)
    elif _is_torchscript(path):
        archive = _read_torchscript(path)
        tensors, design = archive.tensors, _design_in_archive(archive)
        if not design.known and _is_published(path):
            design = OPENAI_TEXT
    else:
        tensors, design = _read_state_dict(path)
    try:
        content = CLIPStateDict(unwrapped_names(tensors))
    except CorruptFileError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    content.text_design = design
    return content


def _design_in_archive(archive: TorchScript) -> TextDesign:
    """The activation from the classes of the text tower's modules, and the mask from the tensors in its code."""
    found = {
        _CLASSES[name]
        for path, name in archive.classes.items()
        if path.startswith("transformer.resblocks.") and name in _CLASSES
    }
    positions = archive.tensors.get("positional_embedding")
    length = len(positions) if positions is not None and positions.ndim == 2 else 0
    masks = [other for other in archive.others if length and tuple(other.shape) == (length, length)]
    causal = any(torch.equal(mask.float(), causal_mask(length)) for mask in masks if mask.is_floating_point())
    return TextDesign(found.pop() if len(found) == 1 else None, causal or None)


def _is_published(path: Path) -> bool:
    """Whether a file is one that OpenAI published: the URLs of those name their SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return any(digest in url.split("/") for url in model_urls().values())


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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], TextDesign]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no iteration
            return tensors, design_of_marks(file.metadata())
    except Exception as error:  # SafetensorError and, of tensors that make no sense, torch's own
        raise WeightsError(f"Got a damaged safetensors file {path} ({error}), {_EXPECTED}. {_DAMAGED}") from error


def _read_torchscript(path: Path) -> TorchScript:
    try:
        with path.open("rb") as file:
            return read_torchscript(file)
    except (CorruptFileError, OSError) as error:
        raise WeightsError(
            f"Got a damaged TorchScript archive {path} ({_first_line(error)}), {_EXPECTED}. {_DAMAGED}"
        ) from error


def _read_state_dict(path: Path) -> tuple[dict[str, Tensor], TextDesign]:
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
    return dict(content), design_of_marks(_own_metadata(content))


def _own_metadata(state_dict: Mapping[str, Any]) -> object:
    """What a state_dict says of the model as a whole: torch keeps it beside the tensors, and in files."""
    metadata = getattr(state_dict, "_metadata", None)
    return metadata.get("") if isinstance(metadata, Mapping) else None


def _foreign_part(error: pickle.UnpicklingError) -> str:
    """What the pickle holds beside tensors, out of torch's pages of advice on how to load it unsafely."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it calls for {found.group(1)}" if found else "it is none that torch wrote"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
