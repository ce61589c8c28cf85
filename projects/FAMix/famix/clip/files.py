"""Reader for CLIP weights files that never executes code from them.

The format is detected from the content, because OpenAI's TorchScript archives also have the suffix ".pt".
"""

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor

from famix.clip.openai import VOCAB_SIZE, model_urls
from famix.clip.text.tower import OPENAI_TEXT, Activation, TextDesign, causal_mask
from famix.io import TorchScript, load_tensors, read_torchscript, unwrapped_names
from famix.utils.errors import WeightsError

TOKEN_EMBEDDING = "token_embedding.weight"
TOKEN_ROWS = "token_rows"  # tensor name in compact files, see `famix.clip.export.save_compact`
_MAX_CHANNELS = 4096  # limit for a compact embedding, which is expanded to one row per token
_FORMS = "an OpenAI TorchScript archive, a state_dict saved by torch.save or a .safetensors file"
_DAMAGED = "It may be an incomplete download: fetch or copy it again."
_ACTIVATION, _CAUSAL = "activation", "causal"  # metadata keys in a file
_CLASSES: dict[str, Activation] = {"QuickGELU": "quick_gelu", "GELU": "gelu"}  # of modules in TorchScript


class CLIPStateDict(dict[str, Tensor]):
    """CLIP weights by name. Plain copies of the dictionary lose its attributes.

    Attributes:
        text_design: design of the text tower, where known, used by `PromptEncoder`.
        architecture: value of MODEL.CLIP.ARCHITECTURE for these weights, "" if the file determines it.
        tokenizer: value of MODEL.CLIP.TOKENIZER.
    """

    text_design = TextDesign()
    architecture = ""
    tokenizer = ""


def design_marks(design: TextDesign) -> dict[str, str]:
    """Return a design as file metadata. Unknown properties are ""."""
    return {_ACTIVATION: design.activation or "", _CAUSAL: "" if design.causal is None else str(design.causal).lower()}


def design_of_marks(marks: object) -> TextDesign:
    """Return the design in file metadata written with `design_marks`."""
    entries = marks if isinstance(marks, Mapping) else {}
    activation, causal = (entries.get(key) for key in (_ACTIVATION, _CAUSAL))
    masks = {"true": True, "false": False}
    return TextDesign(
        cast(Activation, activation) if activation in _CLASSES.values() else None,
        masks.get(causal) if isinstance(causal, str) else None,
    )


def read_clip(path: Path) -> CLIPStateDict:
    """Read a file's tensors onto the CPU in their stored precision.

    Args:
        path: a TorchScript archive; a state_dict saved by torch.save, optionally under the key "state_dict"; or a .safetensors
            file. Prefixes of DataParallel ("module.") and torch.compile ("_orig_mod.") are removed.

    Returns:
        The tensors. Their text design is known for TorchScript archives, OpenAI's files and files of this project.

    Raises:
        WeightsError: the file is missing or damaged, or contains objects other than tensors.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"CLIP weights not found: '{path}'. Correct the path, or use a published model, e.g. RN50.")
    try:
        with path.open("rb") as file:
            # A safetensors file starts with the length of a JSON header in 8 bytes, then the brace of the header.
            if file.read(9)[8:] == b"{":
                tensors, design = _read_safetensors(path)
            elif _is_torchscript(path):
                file.seek(0)
                archive = read_torchscript(file)
                tensors, design = archive.tensors, _design_in_archive(archive)
                if not design.known and _is_published(path):
                    design = OPENAI_TEXT
            else:
                file.seek(0)
                state_dict = _as_state_dict(load_tensors(file))
                own_metadata = getattr(state_dict, "_metadata", None)  # saved by torch with the tensors
                marks = own_metadata.get("") if isinstance(own_metadata, Mapping) else None
                tensors, design = dict(state_dict), design_of_marks(marks)
        content = CLIPStateDict(expand_compact(unwrapped_names(tensors)))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))  # torch also explains how to load the file unsafely
        part = f"a call to {found.group(1)}" if found else "content that torch did not write"
        raise WeightsError(
            f"CLIP weights {path} must be {_FORMS}, got {part}. Pickled objects can execute code and are not loaded. Save the "
            "model's state_dict() in a trusted environment."
        ) from error
    except Exception as error:  # torch and safetensors raise many types for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WeightsError(
            f"CLIP weights {path} must be {_FORMS}, got a damaged file ({reason}). {_DAMAGED}"
        ) from error
    content.text_design = design.or_else(OPENAI_TEXT) if TOKEN_ROWS in tensors else design
    return content


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], TextDesign]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, cannot be iterated over
        return tensors, design_of_marks(file.metadata())


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except Exception:  # reading the damaged archive reports the error
        return False


def _as_state_dict(content: object) -> Mapping[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise WeightsError(
            f"CLIP weights must be {_FORMS}, got a {type(content).__name__} with other content. Save the model's "
            'state_dict(), or {"state_dict": ...}.'
        )
    return content


def _design_in_archive(archive: TorchScript) -> TextDesign:
    """Infer the activation from the class names of modules, and the mask from the constants."""
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
    """Return whether the file is one of OpenAI's, based on the SHA-256 in their URLs."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return any(digest in url.split("/") for url in model_urls().values())


def expand_compact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restore all rows of the token embedding of a compact CLIP. Other tensors are returned unchanged.

    Raises:
        WeightsError: TOKEN_ROWS is invalid.
    """
    rows, embedding = tensors.get(TOKEN_ROWS), tensors.get(TOKEN_EMBEDDING)
    if rows is None:
        return tensors
    shape = () if embedding is None else tuple(embedding.shape)
    fits = len(shape) == 2 and tuple(rows.shape) == shape[:1] and 0 < shape[1] <= _MAX_CHANNELS
    fits &= not rows.is_floating_point()  # half precision cannot represent all token ids
    if embedding is None or not fits or ((rows < 0) | (rows >= VOCAB_SIZE)).any():
        raise WeightsError(
            f"{TOKEN_ROWS} must be one integer below {VOCAB_SIZE} per row of {TOKEN_EMBEDDING} with at most "
            f"{_MAX_CHANNELS} channels, got {rows.dtype} of shape {tuple(rows.shape)} for shape {shape}. Recreate the file "
            "with train_mini_clip.py."
        )
    others = {name: tensor for name, tensor in tensors.items() if name != TOKEN_ROWS}
    return {**others, TOKEN_EMBEDDING: full_embedding(embedding, rows)}


def full_embedding(rows: Tensor, token_ids: Tensor | Sequence[int]) -> Tensor:
    """Insert rows (T, C) into a token embedding (49408, C) of zeros."""
    embedding = rows.new_zeros(VOCAB_SIZE, rows.shape[1])
    embedding[torch.as_tensor(token_ids, dtype=torch.int64)] = rows
    return embedding
