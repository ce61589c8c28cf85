"""Paths as users write them in config values, environment variables and on command lines: one rule for all of them."""

import argparse
import os
import re
from pathlib import Path

from famix.errors import ConfigError, FAMixError

__all__ = ["expand_arguments", "expand_path", "local_path", "needs_expansion", "require_local"]

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)
_MOST_ROUNDS = 10  # of variables whose values name variables


def needs_expansion(path: str) -> bool:
    """Whether a path begins with `~` or names an environment variable."""
    return path.startswith("~") or _VARIABLE.search(path) is not None


def expand_path(path: str, key: str, error: type[FAMixError] = ConfigError) -> str:
    """Replace `~`, `~user` and environment variables in a path.

    A path that names a variable which is not set stays as it is where such a file exists.

    Args:
        path: as written; "" stays "".
        key: config key, argument or environment variable that holds it, for errors.
        error: type of the error.

    Returns:
        The path; a relative one stays relative.

    Raises:
        FAMixError: a variable is not set, or there is no such user.
    """
    expanded = path
    for _ in range(_MOST_ROUNDS):
        names = [name.strip("{}") for name in _VARIABLE.findall(expanded)]
        if not names:
            break
        unset = [name for name in names if name not in os.environ]
        if unset and os.path.lexists(path):
            return path
        if unset:
            raise error(
                f"{key} must name environment variables that are set, got {path!r}. Set {unset[0]}, or write the path "
                "without it."
            )
        expanded = os.path.expandvars(expanded)
    expanded = os.path.expanduser(expanded)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise error(f"{key} must name a user of this machine after '~', got {path!r}. Write the path without '~'.")
    return expanded


def local_path(path: str, key: str, error: type[FAMixError] = ConfigError) -> str:
    """Like `expand_path`, of what must not be an address: nothing that a file names is fetched.

    Raises:
        FAMixError: it is a URL; or see `expand_path`.
    """
    require_local(path, key, error)
    return expand_path(path, key, error)


def require_local(path: str, key: str, error: type[FAMixError] = ConfigError) -> None:
    """Raise `error` for a URL, which Detectron2 would fetch."""
    if "://" in path:
        raise error(f"{key} must be a local path, got {path!r}. Copy the file to this machine and write its path.")


def expand_arguments(arguments: argparse.Namespace) -> argparse.Namespace:
    """Replace `~` and environment variables in all arguments of type `Path`, in place, and return the arguments.

    A shell does so by itself for most words, but neither in quotes nor in --option=~/file.

    Raises:
        ConfigError: see `expand_path`.
    """
    for name, value in vars(arguments).items():
        key = f"--{name.replace('_', '-')}"
        if isinstance(value, Path):
            setattr(arguments, name, Path(expand_path(str(value), key)))
        elif isinstance(value, list):
            setattr(arguments, name, [Path(expand_path(str(v), key)) if isinstance(v, Path) else v for v in value])
    return arguments
