"""What the trials need to know of a kind of file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustness.mutations import Mutation

__all__ = ["Format"]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        make: writes a sound file, and whatever belongs to it, to an empty folder.
        load: reads it as the package does; what it returns can be compared.
        mutations: changes that keep the file's structure, so that they get past its first checks.
        has_checksum: random damage must be noticed, unless it changes nothing of what is read.
        refuses: damage is an error; otherwise the file's sound parts are read, or it counts as missing.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], Any]
    mutations: tuple[Mutation, ...] = ()
    has_checksum: bool = False
    refuses: bool = True
