"""Scan a pickle without building its values.

A few bytes can occupy an unpickler for years even if it calls no functions: hashing tuples of shared tuples takes
exponential time, tuples a million deep overflow the stack, and one memo index makes the memo as large as the memory.
"""

import pickletools
from typing import BinaryIO

from famix.utils.errors import CorruptFileError

__all__ = ["check_pickle"]

_MAX_TUPLE = 10_000  # values of a tuple, nested ones included; those of tensors have about twenty
_MAX_MEMO = 1 << 22
_FILLS_MEMORY = ("builtins bytearray", "__builtin__ bytearray")  # torch accepts it, with any size
_GETS = ("GET", "BINGET", "LONG_BINGET")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


def check_pickle(stream: BinaryIO) -> bool:
    """Scan one pickle to its end.

    Args:
        stream: file at the first byte of the pickle; left behind its last byte.

    Returns:
        Whether the pickle is complete; the unpickler reports the error of an incomplete one.

    Raises:
        CorruptFileError: unpickling would take far more time or memory than a file of tensors needs.
    """
    scan = _Scan()
    steps = pickletools.genops(stream)
    while True:
        try:
            opcode, argument, _ = next(steps)
        except StopIteration:
            return True
        except Exception:  # pickletools raises errors of many types
            return False
        try:
            scan.step(opcode, argument)
        except IndexError:  # it takes from an empty stack
            return False


class _Scan:
    """Stack and memo of an unpickler, with the sizes of values in place of the values; a tuple counts all its values."""

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        """Apply an opcode to the sizes."""
        name = opcode.name
        if name == "MARK":
            self._marks.append(len(self._stack))
        elif name in _GETS and isinstance(argument, int):
            self._stack.append(self._memo.get(argument, 1))
        elif name in _PUTS and isinstance(argument, int):
            self._remember(argument)
        elif name == "MEMOIZE":
            self._remember(len(self._memo))
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "POP" and self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        elif name in _TUPLES:
            self._push_tuple(1 + sum(self._take(opcode)))
        else:
            if name == "GLOBAL" and argument in _FILLS_MEMORY:
                raise CorruptFileError("it asks for bytes that it does not hold")
            self._take(opcode)
            self._stack.extend(1 for kind in opcode.stack_after if kind is not pickletools.markobject)

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """Remove the operands of an opcode."""
        kinds = opcode.stack_before
        taken = []
        if pickletools.markobject in kinds:
            mark = self._marks.pop()
            taken = self._stack[mark:]
            del self._stack[mark:]
            kinds = kinds[: kinds.index(pickletools.markobject)]
        return taken + [self._stack.pop() for _ in kinds]

    def _push_tuple(self, size: int) -> None:
        if size > _MAX_TUPLE:
            raise CorruptFileError("its pickle nests tuples more deeply than files of tensors do")
        self._stack.append(size)

    def _remember(self, place: int) -> None:
        if place > _MAX_MEMO:
            raise CorruptFileError("its pickle refers to more values than it holds")
        self._memo[place] = self._stack[-1]
