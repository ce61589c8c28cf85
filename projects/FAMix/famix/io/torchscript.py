"""Read the tensors of a TorchScript archive without running its code or its compiler.

An archive is a zip file with a pickle of the modules, an entry for each tensor, and the code of the modules. torch would
compile the code to load the tensors; hostile code can crash the compiler or run while it is loaded. Here modules become
plain containers, and only the lists of their parameters and buffers are read from the code.
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

from famix.io.pickles import check_pickle
from famix.io.tensors import check_tensors, check_zip
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
    """A function that a pickle can call but not modify; pickles can set attributes of any object that they can name."""

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
        tensors: parameters and buffers by their names in a state dict.
        classes: path of a module, such as "transformer.resblocks.0", -> its class name; the path of the root is "".
        others: further tensors: plain attributes and constants of the code.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    others: list[Tensor] = field(default_factory=list)


def read_torchscript(stream: BinaryIO) -> TorchScript:
    """Read an archive.

    Args:
        stream: the archive.

    Raises:
        CorruptFileError: the archive is damaged, claims more than it holds, or refers to objects other than modules,
            tensors, numbers and texts.
    """
    check_zip(stream)
    size = stream.seek(0, 2)
    try:
        with ZipFile(stream) as archive:
            content = _content_of(archive)
    except CorruptFileError:
        raise
    except Exception as error:  # a damaged pickle raises errors of any type
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
            raise CorruptFileError("its modules contain each other")
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
    """Read {name}.pkl; the folder {name} holds its tensors."""
    content = archive.read(f"{folder}/{name}.pkl")
    check_pickle(io.BytesIO(content))
    return _ModuleUnpickler(content, archive, f"{folder}/{name}").load()


class _Module:
    """Substitute for a module; the pickle sets its attributes.

    Attributes:
        kind: path of the class in the code of the archive, and its name.
    """

    kind = ("", "")


class _ModuleUnpickler(pickle.Unpickler):
    """Resolve modules and the functions that rebuild tensors."""

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
            return Sealed(_first)  # lists of numbers, and values with their type names
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in allowed:
            raise CorruptFileError(f"it refers to {module}.{name}, which weights do not need")
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
    """Find the attributes of modules that are parameters or buffers; a state dict leaves out other tensors."""

    def __init__(self, archive: ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._classes: dict[str, dict[str, set[str] | None]] = {}  # keyed by the path of their code

    def has(self, module: _Module, name: str) -> bool:
        """Return whether an attribute is one of them; before torch 1.6, code lists no buffers, and all tensors count."""
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
