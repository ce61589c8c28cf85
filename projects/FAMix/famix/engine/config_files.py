"""Config files and the files that they are based on, read as plain settings: no code, no network, no endless aliases."""

import os
from collections.abc import Iterator
from typing import Any

from famix.config import flat_settings
from famix.io import read_yaml
from famix.utils.errors import ConfigError, CorruptFileError
from famix.utils.paths import local_path

__all__ = ["Settings", "read_config_files", "read_saved_settings"]

_BASE = "_BASE_"
_MOST_FILES = 50  # that a config may be put together from, each time counted

Settings = dict[str, Any]


def read_config_files(config_file: str) -> list[tuple[str, Settings]]:
    """Read a config file and all that it is based on.

    Args:
        config_file: YAML, with `_BASE_` naming one or several other files, relative to its own folder.

    Returns:
        Files and their settings without `_BASE_`, in the order in which they are to be merged: a file stands behind
        those that it is based on.

    Raises:
        ConfigError: a file is missing, no YAML, no mapping, too large, nested too deeply or unfolds to far more than it
            holds; the files name each other; or a name is no local path.
    """
    return list(_read(local_path(config_file, "--config-file"), config_file, [0]))


def _read(file: str, start: str, count: list[int]) -> Iterator[tuple[str, Settings]]:
    count[0] += 1
    if count[0] > _MOST_FILES:
        raise ConfigError(f"{start} is based on itself, or on more than {_MOST_FILES} files: look at {_BASE}")
    settings = _load(file)
    bases = settings.pop(_BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{_BASE} must be a path or a list of paths, got {base!r} in {file}. Write a file name.")
        yield from _read(_locate(base, file), start, count)
    yield file, settings


def _locate(base: str, file: str) -> str:
    """Path of a base, which is relative to the folder of the file that names it."""
    return os.path.join(os.path.dirname(file), local_path(base, f"{_BASE} of {file}"))


def _load(file: str) -> Settings:
    try:
        settings = read_yaml(file)
    except FileNotFoundError as error:
        raise ConfigError(f"config file {file} does not exist") from error
    except OSError as error:
        raise ConfigError(f"config file {file} cannot be read ({error.strerror})") from error
    except (CorruptFileError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file} does not hold settings in the form KEY: value")
    return settings


def read_saved_settings(path: str) -> dict[str, Any]:
    """The settings in a config.yaml that a run has left: "KEY.OF.IT" -> value, tuples as lists.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        content = read_yaml(path)
    except (OSError, CorruptFileError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}), expected the config that a run leaves") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings in the form KEY: value, got a {type(content).__name__}")
    return flat_settings(content)
