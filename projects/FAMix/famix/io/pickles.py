"""Unpickler for untrusted tensor files.

An ordinary unpickler calls any function. Even with a list of allowed functions, a few bytes can keep it busy for years:
hashing tuples of shared tuples takes exponential time, deeply nested tuples overflow the stack, one argument can be
copied a million times, and a tensor with a stride of zero can have any number of elements to iterate over.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from famix.utils.errors import CorruptFileError

# Opcodes that create sets, buffers of a claimed size, extension objects, and instances of old-style classes.
_REFUSED = (
    pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
    pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX,
)  # fmt: skip
_KEYS = (str, bytes, int, float, bool, type(None))
_COPIES, _SMALL = 4, 1 << 20  # calls may copy _COPIES times the size of the pickle, plus _SMALL bytes
_NUMPY_KINDS = re.compile(r"[<>=|]?(b1|\?|[iu][1248]|f[248]|c8|c16|U\d{1,6})")
_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class Module:
    """Stand-in for a TorchScript module."""

    kind = ("", "")  # (module path, name) of the class in the archive's code
    attributes: Any = MappingProxyType({})  # set by the pickle


class TensorUnpickler(pickle._Unpickler):
    """Unpickler that builds tensors and plain containers, and never lets the file choose which functions to call.

    Storage classes and dtypes become dtypes, NumPy numbers become Python numbers, and NumPy arrays become tensors. `load`
    raises pickle.UnpicklingError for references to anything else, and CorruptFileError if loading would need far more
    time or memory than the size of the file justifies.

    Args:
        stream: in-memory pickle, so that no claimed length is allocated before it is read.
        storage: function that maps a key, a dtype and a number of values to the flat tensor.
        functions: additional functions that the pickle may call, keyed by (module, name).
    """

    stack: list[Any]  # declared here because pickle._Unpickler has no annotations
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED
    }

    def __init__(
        self,
        stream: BytesIO,
        storage: Callable[[str, torch.dtype, int], Tensor] | None = None,
        functions: Mapping[tuple[str, str], Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__(stream)
        self._storage, self._functions = storage, {**_FUNCTIONS, **(functions or {})}
        self._room = _COPIES * stream.getbuffer().nbytes + _SMALL

    def find_class(self, module: str, name: str) -> Any:
        """Return a dtype or an allowed function."""
        if module in ("torch", "torch.storage"):
            dtype = _STORAGES.get(name, vars(torch).get(name))
            if isinstance(dtype, torch.dtype):
                return dtype
        if (module, name) not in self._functions:
            printable = re.sub(r"[^\w.]", "?", f"{module}.{name}")[:100]
            raise pickle.UnpicklingError(
                f"it refers to GLOBAL {printable}, which is not allowed (nothing was executed)"
            )
        return self._functions[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor."""
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, _, int() as count, *_) if self._storage:
                return self._storage(key, dtype, count)
        raise pickle.UnpicklingError("it refers to data outside the pickle")

    def _call(self) -> None:
        arguments = self.stack.pop()
        self._spend(arguments)
        self.stack[-1] = self.stack[-1](*arguments)

    def _build(self) -> None:
        """Set an object's state without letting the file choose which methods to call or attributes to set."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Module):
            target.attributes = state
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            vars(target)["_metadata"] = state.get("_metadata")
        elif isinstance(target, _NumpyType) and isinstance(state, tuple):
            target.set_order(state[1])
        elif isinstance(target, Tensor) and not target.numel():  # a NumPy array starts as an empty tensor
            self._spend(state)
            target.data = _array(*state)
        else:
            raise pickle.UnpicklingError(
                f"it modifies an object of type {type(target).__name__} (nothing was executed)"
            )

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("it sets items of an object that is not a dictionary")
        _require_plain(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    dispatch |= {
        pickle.REDUCE[0]: _call, pickle.NEWOBJ[0]: _call, pickle.BUILD[0]: _build, pickle.DICT[0]: _make_dict,
        pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
    }  # fmt: skip

    def _spend(self, arguments: Any) -> None:
        """Count the bytes that a call may copy, since a pickle can refer to the same bytes any number of times."""
        if not isinstance(arguments, tuple):
            raise CorruptFileError(f"its pickle passes arguments of type {type(arguments).__name__} instead of a tuple")
        self._room -= sum(len(value) for value in arguments if isinstance(value, str | bytes | list | tuple | dict))
        if self._room < 0:
            raise CorruptFileError("its pickle copies far more than it contains")


def _require_plain(keys: Iterable[Any]) -> None:
    """Raise unless all dictionary keys are cheap to hash."""
    for key in keys:
        if type(key) not in _KEYS or (isinstance(key, int) and key.bit_length() > 64):
            raise CorruptFileError(f"its pickle has a dictionary key of type {type(key).__name__}")


def _view(flat: Tensor, offset: int, size: Any, stride: Any, *rest: object) -> Tensor:
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), flat.dtype)
    return torch.as_strided(flat.view(dtype), size, stride, offset)


def _dictionary(items: Any = ()) -> Any:
    pairs = list(items.items()) if isinstance(items, dict) else items
    if not isinstance(pairs, list | tuple):
        raise CorruptFileError(f"its pickle builds a dictionary from a value of type {type(items).__name__}")
    _require_plain(key for key, _ in pairs)
    return OrderedDict(pairs)


class _NumpyType:
    """Stand-in for np.dtype, restricted to numbers and strings."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not _NUMPY_KINDS.fullmatch(name):
            raise CorruptFileError(f"it contains a NumPy value of type {name!r}; only numbers are allowed")
        self.dtype = np.dtype(name)

    def set_order(self, order: Any) -> None:
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)

    def values(self, content: Any) -> Any:
        if not isinstance(content, bytes):
            raise CorruptFileError("it contains a NumPy array of objects; only numbers are allowed")
        array = np.frombuffer(content, self.dtype)
        return array.astype(self.dtype.newbyteorder("="))


def _array(_: object, shape: Any, kind: _NumpyType, is_fortran: object, content: object) -> Tensor:
    return torch.from_numpy(kind.values(content).reshape(shape, order="F" if is_fortran else "C").copy(order="C"))


def _number(kind: _NumpyType, content: object) -> Any:
    (value,) = kind.values(content)
    return value.item()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    **{("torch._utils", f"_rebuild_tensor{version}"): _view for version in ("", "_v2", "_v3")},
    **{("torch._utils", f"_rebuild_parameter{end}"): lambda value, *_: value for end in ("", "_with_state")},
    ("torch", "Size"): lambda sizes: sizes,
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "Counter"): _dictionary,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # encodes bytes before protocol 3
    **{(builtins, "bytes"): lambda: b"" for builtins in ("__builtin__", "builtins")},
    ("numpy", "dtype"): _NumpyType,
    ("numpy", "ndarray"): lambda: None,  # passed to _reconstruct
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},  # before and since NumPy 2
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: torch.empty(0) for core in ("core", "_core")},
}
