"""Tensors of a TorchScript archive, read without TorchScript: neither its code nor its compiler is run.

An archive is a zip file with a pickle of the modules, whose tensors lie in entries of their own, and their code. torch
would compile the code to load the tensors, and hostile code can crash the compiler or run what a module defines for
being loaded. Here the modules become containers of what the pickle puts into them, and of the code only the lists of
their parameters and buffers are read.
"""

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from zipfile import ZipFile

import torch
from torch import Tensor

from famix.io.archives import check_zip
from famix.io.pickles import check_pickle
from famix.io.tensors import check_tensors
from famix.utils.errors import CorruptFileError

__all__ = ["Sealed", "TorchScript", "read_torchscript"]

_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_CODE = "__torch__"
_MAX_MODULES = 100_000
_MAX_DEPTH = 100
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  .*\n)*)", re.MULTILINE)
_LIST = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


class Sealed:
    """A function that a pickle may call, but not change: pickles can set attributes of whatever they can name."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._function(*arguments)


@dataclass(frozen=True)
class TorchScript:
    """Content of an archive.

    Attributes:
        tensors: parameters and buffers, by the names that they would have in a state_dict.
        classes: class name of each module, by its path, such as "transformer.resblocks.0"; that of the archive itself is "".
        others: tensors that are neither parameters nor buffers: plain attributes and constants of the code.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    others: list[Tensor] = field(default_factory=list)


def read_torchscript(stream: BinaryIO) -> TorchScript:
    """Read an archive.

    Args:
        stream: of the archive.

    Raises:
        CorruptFileError: the archive is damaged, claims what it does not hold, or refers to anything but modules,
            tensors, numbers and texts.
    """
    check_zip(stream)
    size = stream.seek(0, 2)
    try:
        with ZipFile(stream) as archive:
            content = _content_of(archive)
    except CorruptFileError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise CorruptFileError(f"its modules cannot be read: {type(error).__name__}: {error}") from error
    check_tensors(content.tensors, size)
    check_tensors(content.others, size)
    return content


def _content_of(archive: ZipFile) -> TorchScript:
    folder = archive.namelist()[0].split("/")[0]
    root = _unpickle(archive, folder, "data")
    if not isinstance(root, _Module):
        raise CorruptFileError(f"it holds a {type(root).__name__}, expected a module")
    declared = _Declarations(archive, folder)
    content, pending, count = TorchScript(), [("", root)], 0
    while pending:
        prefix, module = pending.pop()
        count += 1
        if count > _MAX_MODULES or prefix.count(".") > _MAX_DEPTH:
            raise CorruptFileError("its modules hold each other")
        content.classes[prefix.removesuffix(".")] = type(module).kind[1]
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and declared.has(module, name):
                content.tensors[prefix + name] = value
            elif isinstance(value, Tensor):
                content.others.append(value)
    if f"{folder}/constants.pkl" in archive.namelist():
        constants = _unpickle(archive, folder, "constants")
        content.others.extend(value for value in constants if isinstance(value, Tensor))
    return content


def _unpickle(archive: ZipFile, folder: str, name: str) -> Any:
    """Read {name}.pkl, whose tensors lie in the folder {name}."""
    content = archive.read(f"{folder}/{name}.pkl")
    check_pickle(io.BytesIO(content))
    return _ModuleUnpickler(content, archive, f"{folder}/{name}").load()


class _Module:
    """In the place of a module's class: holds what the pickle sets.

    Attributes:
        kind: the class's path in the archive's code and its name.
    """

    kind = ("", "")


class _ModuleUnpickler(pickle.Unpickler):
    """Resolves modules, and the functions that rebuild tensors."""

    def __init__(self, content: bytes, archive: ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(content))
        self._archive = archive
        self._folder = folder
        self._flat: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == _CODE:
            return type(name, (_Module,), {"kind": (module, name)})
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch.jit._pickle":
            return Sealed(_first)  # lists of numbers, and values with the name of their type
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in allowed:
            raise CorruptFileError(f"it refers to {module}.{name}, which weights have no use for")
        return Sealed(allowed[module, name])

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        if key not in self._flat:
            content, dtype = self._archive.read(f"{self._folder}/{key}"), _DTYPES[kind]
            self._flat[key] = (
                torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        if len(self._flat[key]) != count or self._flat[key].dtype != _DTYPES[kind]:
            raise CorruptFileError(f"its tensor {key} has another size than it claims")
        return self._flat[key]


def _view(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return flat.as_strided(size, stride, offset)


def _first(value: Any, *_: object) -> Any:
    return value


class _Declarations:
    """Which attributes of modules are parameters or buffers; tensors that are neither belong to no state_dict."""

    def __init__(self, archive: ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._classes: dict[str, dict[str, set[str] | None]] = {}  # by the path of their code

    def has(self, module: _Module, name: str) -> bool:
        """Whether an attribute is one. Code before torch 1.6 does not tell buffers: all tensors count there."""
        path, class_name = type(module).kind
        if path not in self._classes:
            self._classes[path] = self._read(path)
        names = self._classes[path][class_name]
        return names is None or name in names

    def _read(self, path: str) -> dict[str, set[str] | None]:
        code = self._archive.read(f"{self._folder}/code/{path.replace('.', '/')}.py").decode("utf-8")
        classes: dict[str, set[str] | None] = {}
        for name, body in _CLASS.findall(code):
            lists = _LIST.findall(body)
            classes[name] = set(re.findall(r'"([^"]+)"', " ".join(lists))) if len(lists) == 2 else None
        return classes
