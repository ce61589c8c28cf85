"""Style banks of the released FAMix program, read without executing anything in them."""

import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from famix.errors import BankError
from famix.style.dominant import IGNORE_CLASS

__all__ = ["RELEASED_CLASSES", "read_released_styles"]

# Its files name the classes; these are those of its Cityscapes train ids 0, 1, ...
RELEASED_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_MAX_BYTES = 4 << 30  # the released bank has about 25 MB


def read_released_styles(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Read a `saved_params.pkl`: a pickled dict of lists of tensors (C, 1, 1), "<class>_mu" and "<class>_std".

    Args:
        path: of the file.

    Returns:
        class_ids (N,) int64, mean (N, C) and std (N, C) float32; the class named "255" has the id 255.

    Raises:
        BankError: the file is missing, damaged, of another form, or refers to anything but tensors.
    """
    content = _unpickle(Path(path))
    ids: list[int] = []
    means: list[Tensor] = []
    stds: list[Tensor] = []
    for class_id, name in [*enumerate(RELEASED_CLASSES), (IGNORE_CLASS, "255")]:
        mean, std = (_stack(content, f"{name}_{kind}", path) for kind in ("mu", "std"))
        if len(mean) != len(std):
            raise BankError(f"{path} has {len(mean)} means and {len(std)} standard deviations of {name!r}")
        ids += [class_id] * len(mean)
        means, stds = [*means, *mean], [*stds, *std]
    if not ids:
        raise BankError(f"{path} holds no style")
    return torch.tensor(ids), torch.stack(means), torch.stack(stds)


def _stack(content: dict[str, Any], key: str, path: str | os.PathLike[str]) -> Sequence[Tensor]:
    styles = content.get(key)
    if not isinstance(styles, list) or not all(isinstance(s, Tensor) and s.dim() == 3 for s in styles):
        raise BankError(
            f"{path} lacks a list of tensors (C, 1, 1) under {key!r}; expected the released saved_params.pkl"
        )
    return [style.detach().float().flatten() for style in styles]


def _unpickle(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BankError(f"style bank {path} does not exist; expected the released saved_params.pkl")
    if path.stat().st_size > _MAX_BYTES:
        raise BankError(f"{path} has {path.stat().st_size >> 20} MiB, more than any released style bank")
    try:
        with path.open("rb") as file:
            content = _TensorUnpickler(file).load()
    except BankError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise BankError(f"{path} is no pickle of tensors: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise BankError(f"{path} holds a {type(content).__name__}, expected a dict of lists of tensors")
    return content


class _TensorUnpickler(pickle.Unpickler):
    """Resolves only the functions that rebuild tensors; a pickle that names anything else is refused unopened."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("collections", "OrderedDict"): dict,
        }
        try:
            return allowed[module, name]
        except KeyError:
            raise BankError(
                f"the file refers to {module}.{name}, which a style bank has no use for; it was not executed"
            ) from None


def _load_storage(content: bytes) -> Any:
    """torch's own function of this name unpickles without restriction."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
