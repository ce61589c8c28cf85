"""Read the tensors of a TorchScript archive without running its code or its compiler.

An archive is a zip file that contains the pickled modules, an entry for each tensor, and the code of the modules. torch
compiles the code to load the tensors, and hostile code can crash the compiler or run during loading. Here, modules become
plain containers, and only the lists of their parameters and buffers are read from the code.
"""

import re
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from torch import Tensor

from famix.io.pickles import Module, TensorUnpickler
from famix.io.tensors import TensorArchive, check_tensors
from famix.utils.errors import CorruptFileError
from famix.utils.messages import first_line

_MAX_MODULES = 100_000
_MAX_DEPTH = 100
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  .*\n)*)", re.MULTILINE)
_LIST = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)


@dataclass(frozen=True)
class TorchScript:
    """Content of a TorchScript archive."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # parameters and buffers by state dict name
    classes: dict[str, str] = field(default_factory=dict)  # module path ("" for the root) -> class name
    others: list[Tensor] = field(default_factory=list)  # plain attributes, and constants in the code


def read_torchscript(stream: BinaryIO) -> TorchScript:
    """Read a TorchScript archive.

    Raises:
        CorruptFileError: the archive is damaged, claims more than it contains, or refers to objects that are not allowed.
    """
    try:
        content = _read(TensorArchive(stream))
    except CorruptFileError:
        raise
    except Exception as error:  # a damaged archive can raise any exception
        raise CorruptFileError(f"its modules cannot be read: {type(error).__name__}: {first_line(error)}") from error
    check_tensors([content.tensors, content.others], stream.seek(0, 2))
    return content


def _read(archive: TensorArchive) -> TorchScript:
    root = archive.unpickle("data", _ModuleUnpickler)
    if not isinstance(root, Module):
        raise CorruptFileError(f"its root is of type {type(root).__name__}, expected a module")
    content, declared = TorchScript(), dict[str, dict[str, set[str] | None]]()
    pending, count = [("", root)], 0
    while pending:
        prefix, module = pending.pop()
        count += 1
        if count > _MAX_MODULES or prefix.count(".") > _MAX_DEPTH:
            raise CorruptFileError("its modules are nested too deeply or contain each other")
        path, class_name = type(module).kind
        if path not in declared:
            declared[path] = _declared_tensors(archive.read(f"code/{path.replace('.', '/')}.py").decode("utf-8"))
        names = declared[path][class_name]
        content.classes[prefix.removesuffix(".")] = class_name
        for name, value in module.attributes.items():
            if isinstance(value, Module):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and (names is None or name in names):
                content.tensors[prefix + name] = value
            elif isinstance(value, Tensor):
                content.others.append(value)
    if "constants.pkl" in archive:
        constants = archive.unpickle("constants")
        if isinstance(constants, list | tuple):
            content.others.extend(value for value in constants if isinstance(value, Tensor))
    return content


class _ModuleUnpickler(TensorUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type(name, (Module,), {"kind": (module, name)})
        if module == "torch.jit._pickle":  # lists of numbers, and values tagged with their type
            return lambda value, *_: value
        return super().find_class(module, name)


def _declared_tensors(code: str) -> dict[str, set[str] | None]:
    """Return a mapping from each class to the names of its parameters and buffers.

    A state dict omits other tensors. Before torch 1.6, the code lists no buffers; None then selects all tensors.
    """
    classes: dict[str, set[str] | None] = {}
    for name, body in _CLASS.findall(code):
        lists = _LIST.findall(body)
        classes[name] = set(re.findall(r'"([^"]+)"', " ".join(lists))) if len(lists) == 2 else None
    return classes
