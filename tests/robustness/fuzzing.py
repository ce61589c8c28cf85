"""Damaged files, one by one: each must load or be refused by the package's own error, soon and without much memory."""

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from famix.utils.errors import FAMixError
from robustness.formats import FORMATS
from robustness.mutations import mutate_bytes

LOADED, REFUSED, WRONG = "loaded", "refused", "wrong"

_SECONDS = 20  # after which a load counts as hanging
_BYTES = 512 << 20  # that a load of these small files may take
_MESSAGE = 2000  # characters of an error that a person still reads


@dataclass(frozen=True)
class Outcome:
    """Outcome of loading a damaged file."""

    kind: str  # LOADED, REFUSED or WRONG
    detail: str  # the error, or what is wrong
    seconds: float


class Hanging(BaseException):
    """A load takes too long."""


class Trials:
    """Damaged files of one format.

    Args:
        name: key of FORMATS.
        folder: an empty folder.
        seed: seed of the damage.
    """

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.name = name
        self.format = FORMATS[name]
        self.path = self.format.make(folder)
        self.seed = seed
        self.sound = self.path.read_bytes()
        self.expected = digest(self.format.load(self.path))

    def run(self, number: int) -> Outcome:
        """Write damaged file `number`, which follows from the seed and the number alone, and load it."""
        rng = np.random.default_rng((self.seed, sorted(FORMATS).index(self.name), number))
        choices = (mutate_bytes, *self.format.mutations)
        mutate = choices[number % len(choices)]
        self.path.write_bytes(mutate(self.sound, rng))
        os.utime(self.path, ns=(number, number))  # some readers look at a file again only when its time has changed
        start = time.perf_counter()
        kind, detail = self._load(must_be_equal=self.format.has_checksum and mutate is mutate_bytes)
        return Outcome(kind, detail, time.perf_counter() - start)

    def _load(self, must_be_equal: bool) -> tuple[str, str]:
        def stop(*_: object) -> None:
            raise Hanging

        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is measured from now on
        before = _peak()
        previous = signal.signal(signal.SIGALRM, stop)
        signal.alarm(_SECONDS)
        try:
            loaded = digest(self.format.load(self.path))
        except FAMixError as error:
            kind, detail = REFUSED, f"{type(error).__name__}: {error}"
            if len(str(error)) > _MESSAGE:
                kind, detail = WRONG, f"a message of {len(str(error))} characters: {str(error)[:200]}"
        except Hanging:
            kind, detail = WRONG, f"not done after {_SECONDS} s"
        except BaseException as error:
            kind, detail = WRONG, f"{type(error).__name__}: {str(error)[:200]}"
        else:
            kind, detail = LOADED, ""
            if must_be_equal and loaded != self.expected:
                kind, detail = WRONG, "damage went unnoticed and changed the content"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        if _peak() - before > _BYTES:
            kind, detail = WRONG, f"took {(_peak() - before) >> 20} MiB"
        return kind, detail


def digest(value: Any) -> str:
    """Hash nested containers, tensors and numbers bit for bit."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        state.update(f"{value.dtype}{tuple(value.shape)}".encode())
        state.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        state.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            state.update(f"{key}:".encode("utf-8", "surrogatepass"))
            _feed(state, value[key])
    elif isinstance(value, list | tuple):
        state.update(f"{len(value)}[".encode())
        for entry in value:
            _feed(state, entry)
    else:
        state.update(repr(value).encode("utf-8", "surrogatepass"))


def _peak() -> int:
    """Return the bytes that this process had at most."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10
