"""Config files looked at before Detectron2 reads them: their size, what their aliases unfold to, and their bases."""

import os
from typing import Any

import yaml

from famix.errors import ConfigError
from famix.intake import MAX_YAML_BYTES, DoubtfulFileError, check_yaml, read_text, read_yaml

__all__ = ["check_config_files", "read_saved_settings"]

_MOST_FILES = 50  # that a config may be put together from, each time counted


def check_config_files(config_file: str) -> None:
    """Look at a config file and at all that it is based on.

    Args:
        config_file: YAML, with `_BASE_` naming other files.

    Raises:
        ConfigError: a file is too large, nested too deeply or unfolds to far more than it holds; or the files name each
            other.
        OSError: a file cannot be read.
        yaml.YAMLError: a file is no YAML.
    """
    pending, count = [config_file], 0
    while pending:
        file = pending.pop()
        count += 1
        if count > _MOST_FILES:
            raise ConfigError(f"{config_file} is based on itself, or on more than {_MOST_FILES} files: look at _BASE_")
        try:
            text = read_text(file, MAX_YAML_BYTES)
            check_yaml(text)
            content = yaml.safe_load(text)
        except (DoubtfulFileError, UnicodeDecodeError) as error:
            raise ConfigError(f"config file {file} cannot be read: {error}") from error
        bases = content.get("_BASE_", []) if isinstance(content, dict) else []
        for base in bases if isinstance(bases, list) else [bases]:
            if isinstance(base, str) and "://" not in base:
                pending.append(os.path.join(os.path.dirname(file), os.path.expanduser(base)))


def read_saved_settings(path: str) -> dict[str, Any]:
    """The settings in a config.yaml that a run has left: "KEY.OF.IT" -> value, tuples as lists.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        content = read_yaml(path)
    except (OSError, DoubtfulFileError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}), expected the config that a run leaves") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings in the form KEY: value, got a {type(content).__name__}")
    return _flatten(content)


def _flatten(settings: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
