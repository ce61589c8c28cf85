"""Paths in config values, environment variables and command lines, all expanded in the same way."""

import argparse
import os
import re
import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from famix.utils.errors import ConfigError, FAMixError
from famix.utils.messages import did_you_mean

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)
_MAX_ROUNDS = 10  # limit for variables that refer to other variables
_CONFIGS = Path(__file__).parents[1] / "configs"  # in a clone, a link to projects/FAMix/configs
_SCHEME = re.compile(r"famix:/+")  # Path("famix://...") has a single slash


def config_file(name: str, key: str = "the config", error: type[FAMixError] = ConfigError) -> str:
    """Return the path of a config, or other file, that is installed with the package.

    Args:
        name: name below projects/FAMix/configs, e.g. "GTA5/famix_RN50.yaml" or "famix://GTA5/famix_RN50.yaml".
        key: config key or argument that contains the name, for error messages.
        error: exception type to raise.

    Raises:
        FAMixError: there is no such file.
    """
    inside = os.path.normpath(_SCHEME.sub("", name))
    path = _CONFIGS / inside
    if not path.is_file() or inside.startswith(("/", os.pardir)):
        names = (file.relative_to(_CONFIGS).as_posix() for file in _CONFIGS.glob("**/*.*"))
        hint = did_you_mean(inside, names) or f" List '{_CONFIGS}'."
        raise error(f"{key} must be a file installed with FAMix, got {name!r}.{hint}")
    return str(path)


def needs_expansion(path: str) -> bool:
    """Return whether a path starts with `~` or famix://, or contains an environment variable."""
    return path.startswith("~") or _SCHEME.match(path) is not None or _VARIABLE.search(path) is not None


def expand_path(path: str, key: str, error: type[FAMixError] = ConfigError) -> str:
    """Expand `~`, `~user`, environment variables and famix:// (see `config_file`) in a path.

    A path with an unset variable is returned unchanged if a file with that literal name exists.

    Args:
        path: path to expand; a relative path stays relative, and an empty one stays empty.
        key: config key, argument or environment variable that contains the path, for error messages.
        error: exception type to raise.

    Raises:
        FAMixError: a variable is not set, or a user or an installed file is unknown.
    """
    if _SCHEME.match(path):
        return config_file(path, key, error)
    expanded = path
    for _ in range(_MAX_ROUNDS):
        names = [name.strip("{}") for name in _VARIABLE.findall(expanded)]
        unset = [name for name in names if name not in os.environ]
        if unset and os.path.lexists(path):
            return path
        if unset:
            raise error(
                f"{key} is {path!r}, but the environment variable {unset[0]} is not set. Set {unset[0]}, or use a path "
                "without it."
            )
        if not names:
            break
        expanded = os.path.expandvars(expanded)
    expanded = os.path.expanduser(expanded)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise error(f"{key} is {path!r}, but this user does not exist. Use a path without '~'.")
    return expanded


def local_path(path: str, key: str, error: type[FAMixError] = ConfigError) -> str:
    """Expand a path with `expand_path`, and also raise `error` for a URL."""
    require_local(path, key, error)
    return expand_path(path, key, error)


def require_local(path: str, key: str, error: type[FAMixError] = ConfigError) -> None:
    """Raise `error` if a path is a URL, which Detectron2 would download."""
    if "://" in path and not _SCHEME.match(path):
        raise error(f"{key} must be a local path, got {path!r}. Copy the file to this machine and use its local path.")


def expand_arguments(arguments: argparse.Namespace) -> argparse.Namespace:
    """Expand `~`, environment variables and famix:// in all arguments of type `Path`, in place, and return the arguments.

    A shell expands most words itself, but not in quotes or in --option=~/file.

    Raises:
        ConfigError: a variable is not set, or a user is unknown.
    """
    for name, value in vars(arguments).items():
        key = f"--{name.replace('_', '-')}"
        if isinstance(value, Path):
            setattr(arguments, name, Path(expand_path(str(value), key)))
        elif isinstance(value, list):
            setattr(arguments, name, [Path(expand_path(str(v), key)) if isinstance(v, Path) else v for v in value])
    return arguments


def similar_path(path: str | os.PathLike[str]) -> str:
    """Return " Did you mean 'name'?" with files or folders similar to the first missing part of a path, or ""."""
    missing = Path(path)
    while not missing.parent.exists():
        missing = missing.parent
    with suppress(OSError):
        return did_you_mean(missing.name, os.listdir(missing.parent))
    return ""


def one_form(name: str) -> str:
    """Return a name in Unicode form NFC. On macOS, file names may store an accent as a separate character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def as_on_disk(path: str) -> str:
    """Return a path in the Unicode form of the only matching file on disk, or unchanged if there is no such file."""
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
    """Return a mapping from NFC name to the name on disk, or to None if several names share that form."""
    names: dict[str, str | None] = {}
    for name in os.listdir(folder):
        names[one_form(name)] = None if one_form(name) in names else name
    return names
