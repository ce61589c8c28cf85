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
_REMEDY = "Copy the released saved_params.pkl again, or mine a bank with --mine-styles-only."


def read_released_styles(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Read a `saved_params.pkl`: a pickled dict of lists of tensors (C, 1, 1), "<class>_mu" and "<class>_std".

    Args:
        path: of the file.

    Returns:
        class_ids (N,) int64, mean (N, C) and std (N, C) float32; the class named "255" has the id 255.

    Raises:
        BankError: the file is missing or damaged, has another structure, or refers to anything but tensors.
    """
    content = _unpickle(Path(path))
    expected = [f"{name}_{kind}" for name in _CLASS_IDS for kind in ("mu", "std")]
    foreign = [key for key in content if key not in expected]
    if foreign:
        raise BankError(
            f"'{path}' must have the entries {expected[0]!r}, {expected[1]!r}, ... of the 19 classes of Cityscapes and of "
            f"'255', got {first_few(foreign)}. {_REMEDY}"
        )
    for key in expected:
        styles = content.get(key)
        if not isinstance(styles, list) or not all(_is_style(style) for style in styles):
            raise BankError(
                f"'{path}' must have a list of floating-point tensors (C, 1, 1) as {key!r}, got another value. {_REMEDY}"
            )
    for name in _CLASS_IDS:
        num_means, num_stds = len(content[f"{name}_mu"]), len(content[f"{name}_std"])
        if num_means != num_stds:
            raise BankError(
                f"'{path}' must have as many means as standard deviations, got {num_means} and {num_stds} of {name!r}. "
                f"{_REMEDY}"
            )
    mean, std = (_stack([x for name in _CLASS_IDS for x in content[f"{name}_{kind}"]], path) for kind in ("mu", "std"))
    return torch.tensor([id_ for name, id_ in _CLASS_IDS.items() for _ in content[f"{name}_mu"]]), mean, std


def _is_style(style: Any) -> bool:
    is_vector = isinstance(style, Tensor) and style.dim() == 3 and style.shape[1:] == (1, 1)
    return is_vector and style.is_floating_point() and 0 < len(style) <= _MAX_CHANNELS


def _stack(styles: list[Tensor], path: str | os.PathLike[str]) -> Tensor:
    channels = sorted({len(style) for style in styles})
    if len(channels) != 1:
        raise BankError(f"'{path}' must have styles of one number of channels, got {channels or 'no style'}. {_REMEDY}")
    if len(styles) * channels[0] > os.stat(path).st_size:  # a list can repeat one tensor any number of times
        raise BankError(
            f"'{path}' is too small for its {len(styles)} styles of {channels[0]} channels: it is damaged. {_REMEDY}"
        )
    stacked = torch.stack([style.detach().float().flatten() for style in styles])
    if not stacked.isfinite().all():
        raise BankError(f"'{path}' must have finite styles, got NaN or infinity. {_REMEDY}")
    return stacked


def _unpickle(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise BankError(f"style bank not found: '{path}'. Name the saved_params.pkl of the released program.")
    if path.stat().st_size > _MAX_BYTES:
        raise BankError(
            f"'{path}' must have at most {_MAX_BYTES >> 20} MiB, got {path.stat().st_size >> 20} MiB. {_REMEDY}"
        )
    try:
        with path.open("rb") as file:
            check_pickle(file)
            file.seek(0)
            content = _TensorUnpickler(file).load()
    except (BankError, CorruptFileError) as error:
        raise BankError(f"'{path}' must be a style bank of the released program: {error}. {_REMEDY}") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise BankError(f"'{path}' must be a pickle of tensors, got {type(error).__name__}. {_REMEDY}") from error
    if not isinstance(content, dict):
        raise BankError(f"'{path}' must hold a dict of lists of tensors, got a {type(content).__name__}. {_REMEDY}")
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
            raise BankError(f"it refers to {module}.{name}, which is not part of a tensor; nothing was executed")
        return Sealed(allowed[module, name])
