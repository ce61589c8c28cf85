"""Paths in config values, environment variables and command lines, which all expand in the same way."""

import argparse
import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from famix.utils.errors import ConfigError, FAMixError

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)
_MAX_ROUNDS = 10  # of variables that refer to variables


def needs_expansion(path: str) -> bool:
    """Return whether a path begins with `~` or names an environment variable."""
    return path.startswith("~") or _VARIABLE.search(path) is not None


def expand_path(path: str, key: str, error: type[FAMixError] = ConfigError) -> str:
    """Expand `~`, `~user` and environment variables in a path.

    A path with a variable that is not set is unchanged if such a file exists.

    Args:
        path: the path; relative and empty paths stay so.
        key: config key, argument or environment variable with the path, for errors.
        error: type of the error.

    Raises:
        FAMixError: a variable or a user is unknown.
    """
    expanded = path
    for _ in range(_MAX_ROUNDS):
        names = [name.strip("{}") for name in _VARIABLE.findall(expanded)]
        unset = [name for name in names if name not in os.environ]
        if unset and os.path.lexists(path):
            return path
        if unset:
            raise error(
                f"{key} must name environment variables that are set, got {path!r}. Set {unset[0]}, or write the path "
                "without it."
            )
        if not names:
            break
        expanded = os.path.expandvars(expanded)
    expanded = os.path.expanduser(expanded)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise error(f"{key} must name a user on this machine after '~', got {path!r}. Write the path without '~'.")
    return expanded


def local_path(path: str, key: str, error: type[FAMixError] = ConfigError) -> str:
    """Expand a path with `expand_path`; raises `error` for a URL as well."""
    require_local(path, key, error)
    return expand_path(path, key, error)


def require_local(path: str, key: str, error: type[FAMixError] = ConfigError) -> None:
    """Raise `error` for a URL, which Detectron2 would download."""
    if "://" in path:
        raise error(f"{key} must be a local path, got {path!r}. Copy the file to this machine and write its path.")


def expand_arguments(arguments: argparse.Namespace) -> argparse.Namespace:
    """Expand `~` and environment variables in all arguments of type `Path`, in place, and return the arguments.

    A shell expands most words, but neither in quotes nor in --option=~/file.

    Raises:
        ConfigError: a variable or a user is unknown.
    """
    for name, value in vars(arguments).items():
        key = f"--{name.replace('_', '-')}"
        if isinstance(value, Path):
            setattr(arguments, name, Path(expand_path(str(value), key)))
        elif isinstance(value, list):
            setattr(arguments, name, [Path(expand_path(str(v), key)) if isinstance(v, Path) else v for v in value])
    return arguments


def one_form(name: str) -> str:
    """Return a name in the Unicode form NFC; on disks of macOS, an accent may be a separate character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def as_on_disk(path: str) -> str:
    """Return a path in the Unicode form of the file on the disk, or the path itself without exactly one such file."""
    if path.isascii() or os.path.lexists(path):
        return path
    parent, name = os.path.split(path)
    if not name:
        return path
    parent = as_on_disk(parent)
    try:
        names = _names_by_form(parent, os.stat(parent).st_mtime_ns)
    except (OSError, ValueError):
        return path
    return os.path.join(parent, names.get(one_form(name)) or name)


@lru_cache(maxsize=8)
def _names_by_form(folder: str, modified: int) -> dict[str, str | None]:
    """Map names in one form to names, or to None if several share a form."""
    names: dict[str, str | None] = {}
    for name in os.listdir(folder):
        names[one_form(name)] = None if one_form(name) in names else name
    return names
