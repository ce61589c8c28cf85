"""Style banks of the released FAMix program, read without executing anything in them."""

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

# Its files name the classes; these are those of its Cityscapes train ids 0, 1, ...
RELEASED_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_CLASS_IDS = {name: class_id for class_id, name in enumerate(RELEASED_CLASSES)} | {"255": IGNORE_CLASS}
_KINDS = ("mu", "std")
_MAX_BYTES = 4 << 30  # the released bank has about 25 MB
_MAX_CHANNELS = 1 << 16  # a few bytes can claim any size; RN50x64 has 512 channels at its first stage


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
    expected = [f"{name}_{kind}" for name in _CLASS_IDS for kind in _KINDS]
    foreign = [key for key in content if key not in expected]
    if foreign:
        raise BankError(
            f"{path} has entries of other classes than the released program's, {first_few(foreign)}; expected "
            f"{expected[0]!r}, {expected[1]!r} and so on for the 19 classes of Cityscapes and '255'"
        )
    ids: list[int] = []
    styles: dict[str, list[Tensor]] = {kind: [] for kind in _KINDS}
    for name, class_id in _CLASS_IDS.items():
        found = {kind: _styles(content, f"{name}_{kind}", path) for kind in _KINDS}
        num_means, num_stds = (len(tensors) for tensors in found.values())
        if num_means != num_stds:
            raise BankError(f"{path} has {num_means} means and {num_stds} standard deviations of {name!r}")
        ids += [class_id] * num_means
        for kind in _KINDS:
            styles[kind] += found[kind]
    mean, std = (_stack(styles[kind], path) for kind in _KINDS)
    return torch.tensor(ids), mean, std


def _styles(content: dict[str, Any], key: str, path: str | os.PathLike[str]) -> list[Tensor]:
    styles = content.get(key)
    if not isinstance(styles, list) or not all(_is_style(style) for style in styles):
        raise BankError(
            f"{path} lacks a list of tensors (C, 1, 1) under {key!r}; expected the released saved_params.pkl"
        )
    return styles


def _is_style(style: Any) -> bool:
    return (
        isinstance(style, Tensor)
        and style.is_floating_point()
        and style.dim() == 3
        and style.shape[1:] == (1, 1)
        and 0 < style.shape[0] <= _MAX_CHANNELS
    )


def _stack(styles: list[Tensor], path: str | os.PathLike[str]) -> Tensor:
    channels = sorted({len(style) for style in styles})
    if len(channels) != 1:
        problem = (
            f"holds styles of {first_few(channels)} channels; expected one number" if channels else "holds no style"
        )
        raise BankError(f"{path} {problem}")
    if len(styles) * channels[0] > os.stat(path).st_size:  # one tensor can stand in a list any number of times
        raise BankError(f"{path} shows {len(styles)} styles of {channels[0]} channels, which it is too small for")
    stacked = torch.stack([style.detach().float().flatten() for style in styles])
    if not stacked.isfinite().all():
        raise BankError(f"{path} holds styles that are NaN or infinite; its mining went astray")
    return stacked


def _unpickle(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise BankError(f"style bank {path} does not exist; expected the released saved_params.pkl")
    if path.stat().st_size > _MAX_BYTES:
        raise BankError(f"{path} has {path.stat().st_size >> 20} MiB, more than any released style bank")
    try:
        with path.open("rb") as file:
            check_pickle(file)
            file.seek(0)
            content = _TensorUnpickler(file).load()
    except (BankError, CorruptFileError) as error:
        raise BankError(f"{path} is no released style bank: {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise BankError(
            f"{path} is no pickle of tensors ({type(error).__name__}); it is damaged or another file"
        ) from error
    if not isinstance(content, dict):
        raise BankError(f"{path} holds a {type(content).__name__}, expected a dict of lists of tensors")
    return content


class _TensorUnpickler(pickle.Unpickler):
    """Resolves only the functions that rebuild tensors; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch._utils", "_rebuild_parameter"): _data_of_parameter,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("collections", "OrderedDict"): dict,
            ("_codecs", "encode"): _bytes_of_text,
        }
        if (module, name) not in allowed:
            raise BankError(f"it refers to {module}.{name}, which styles have no use for; nothing was executed")
        return Sealed(allowed[module, name])


def _load_storage(content: bytes) -> Any:
    """torch's own function of this name unpickles without restriction."""
    return load_tensors(io.BytesIO(content))


def _data_of_parameter(data: Tensor, requires_grad: bool, backward_hooks: object) -> Tensor:
    return data


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """How pickles before protocol 3 hold bytes; the encoding is always the same."""
    return text.encode("latin1")
