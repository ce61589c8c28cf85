"""Reader of style banks of the released FAMix program, pickles of which nothing is executed."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from famix.io import Sealed, check_pickle, load_tensors
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import BankError, CorruptFileError
from famix.utils.messages import first_few

__all__ = ["RELEASED_CLASSES", "read_released_styles"]

# Cityscapes train ids 0, 1, ...; the file names classes instead of numbering them.
RELEASED_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_CLASS_IDS = {name: class_id for class_id, name in enumerate(RELEASED_CLASSES)} | {"255": IGNORE_CLASS}
_MAX_BYTES = 4 << 30  # the released bank has about 25 MB
_MAX_CHANNELS = 1 << 16  # a few bytes can claim any size; RN50x64 has 512 channels at its first stage


def read_released_styles(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Read a `saved_params.pkl`: a pickled dict of lists of tensors (C, 1, 1), "<class>_mu" and "<class>_std".

    Args:
        path: of the file.

    Returns:
        class_ids (N,) int64, mean (N, C) and std (N, C) float32; the class named "255" has the id 255.

    Raises:
        BankError: the file is missing or damaged, has another structure, or refers to anything but tensors.
    """
    if not os.path.isfile(path):
        raise BankError(f"style bank not found: '{path}'. Name the saved_params.pkl of the released program.")
    size = os.path.getsize(path)
    try:
        if size > _MAX_BYTES:
            raise CorruptFileError(f"{size >> 20} MiB, more than {_MAX_BYTES >> 20}")
        content = _unpickle(Path(path))
        foreign = [key for key in content if key.rpartition("_")[0] not in _CLASS_IDS]
        if foreign:
            raise CorruptFileError(f"entries of other classes, {first_few(foreign)}")
        mean, std = (_stack(content, kind, size) for kind in ("mu", "std"))
        numbers = {name: [len(content[f"{name}_{kind}"]) for kind in ("mu", "std")] for name in _CLASS_IDS}
        for name, (means, stds) in numbers.items():
            if means != stds:
                raise CorruptFileError(f"{means} means and {stds} standard deviations of {name!r}")
    except CorruptFileError as error:
        raise BankError(
            f"'{path}' must be a pickle of the styles of the 19 Cityscapes classes and 255, as in the released program, got "
            f"{error}. Copy saved_params.pkl again, or mine a bank with --mine-styles-only."
        ) from error
    return torch.tensor([id_ for name, id_ in _CLASS_IDS.items() for _ in range(numbers[name][0])]), mean, std


def _stack(content: dict[str, Any], kind: str, size: int) -> Tensor:
    """Return the means or standard deviations of all classes, (N, C) float32, from a file of `size` bytes."""
    styles: list[Tensor] = []
    for key in (f"{name}_{kind}" for name in _CLASS_IDS):
        entry = content.get(key)
        if not isinstance(entry, list) or not all(_is_style(style) for style in entry):
            raise CorruptFileError(f"no list of floating-point tensors (C, 1, 1) as {key!r}")
        styles += entry
    channels = sorted({len(style) for style in styles})
    if len(channels) != 1:
        raise CorruptFileError(f"styles of {channels} channels" if channels else "no style")
    if len(styles) * channels[0] > size:  # a list can repeat one tensor any number of times
        raise CorruptFileError(f"{len(styles)} styles of {channels[0]} channels in {size} bytes")
    stacked = torch.stack([style.detach().float().flatten() for style in styles])
    if not stacked.isfinite().all():
        raise CorruptFileError("NaN or infinity")
    return stacked


def _is_style(style: Any) -> bool:
    is_vector = isinstance(style, Tensor) and style.dim() == 3 and style.shape[1:] == (1, 1)
    return is_vector and style.is_floating_point() and 0 < len(style) <= _MAX_CHANNELS


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            check_pickle(file)
            file.seek(0)
            content = _TensorUnpickler(file).load()
    except CorruptFileError:
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        raise CorruptFileError(f"a file that cannot be unpickled ({type(error).__name__})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CorruptFileError(f"a {type(content).__name__}")
    return content


class _TensorUnpickler(pickle.Unpickler):
    """Resolves only the functions that rebuild tensors and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, backward_hooks: data,
            # torch's function of this name unpickles without restriction.
            ("torch.storage", "_load_from_bytes"): lambda content: load_tensors(io.BytesIO(content)),
            ("collections", "OrderedDict"): dict,
            # Bytes in pickles before protocol 3, always with this encoding.
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        }
        if (module, name) not in allowed:
            raise CorruptFileError(
                f"a reference to {module}.{name}, which is not part of a tensor; nothing was executed"
            )
        return Sealed(allowed[module, name])
