"""Read configs from YAML files and KEY VALUE pairs: keys and types are checked, paths expanded, nothing is executed."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from famix.config.defaults import add_famix_config
from famix.data.definition_record import find_definitions
from famix.io.text_files import read_yaml
from famix.utils.errors import ConfigError, CorruptFileError
from famix.utils.messages import did_you_mean, shown
from famix.utils.paths import local_path

__all__ = ["PATH_KEYS", "flat_settings", "load_config", "read_settings"]

PATH_KEYS = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS", "MODEL.STYLE.BANK", "DATASETS.FILES")
"""Keys with paths or lists of paths; `~` and environment variables are expanded, URLs refused."""

_logger = logging.getLogger(__name__)
_BASE = "_BASE_"
_MAX_FILES = 50  # files that a config is based on, repetitions counted
_TYPE_NAMES = {
    bool: "True or False", int: "an integer", float: "a float", str: "a string", list: "a list", tuple: "a tuple"
}  # fmt: skip
_NAME_OR_NAMES = ("MODEL.STYLE.STRATEGY",)  # a list becomes "a,b", since Detectron2's configs keep the default's type
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Settings = dict[str, Any]


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config file and settings given as KEY VALUE pairs.

    Args:
        config_file: YAML file, which may name one or several others in `_BASE_`, relative to its folder; "" takes the
            defaults. Missing files of DATASETS.FILES are looked up in the folder "datasets" beside it, where a run keeps
            copies.
        opts: KEY VALUE KEY VALUE ..., which override the file.

    Returns:
        The config, with the paths of `PATH_KEYS` expanded.

    Raises:
        ConfigError: a file is missing, malformed, based on itself or unfolds to far more than it holds, or a key or value
            is invalid.
    """
    cfg = get_cfg()
    add_famix_config(cfg)
    defaults = flat_settings(cfg)
    if config_file:
        for file, settings in _read_files(local_path(config_file, "--config-file"), config_file, [0]):
            _adopt_strategy_keys(flat_settings(settings), cfg, defaults)
            _check_settings(settings, cfg, defaults, file)
            cfg.merge_from_other_cfg(CfgNode(settings))
    words = [str(word) for word in opts]
    _adopt_strategy_keys(dict(zip(words[::2], words[1::2], strict=False)), cfg, defaults)
    _check_pairs(words, defaults)
    words[1::2] = [_join_names(key, value) for key, value in zip(words[::2], words[1::2], strict=True)]
    for key, value in zip(words[::2], words[1::2], strict=True):
        _check_value(key, value, defaults[key], "the command line")
    cfg.merge_from_list(words)
    if defaults["VERSION"] != cfg.VERSION:
        raise ConfigError(f"VERSION must be {defaults['VERSION']}, got {cfg.VERSION}. Write VERSION: 2.")
    for key in PATH_KEYS:
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        value = node[name]
        node[name] = local_path(value, key) if isinstance(value, str) else [_local_entry(entry, key) for entry in value]
    cfg.DATASETS.FILES = find_definitions(cfg.DATASETS.FILES, config_file)
    return cfg


def _adopt_strategy_keys(settings: Settings, cfg: CfgNode, defaults: Settings) -> None:
    """Accept keys of style strategies that are not registered: a network trained with one predicts without it."""
    known = set(cfg.MODEL.STYLE)
    for key, value in settings.items():
        match = re.fullmatch(r"MODEL\.STYLE\.([A-Z0-9_]+)\.(\w+)", key)
        if match and match[1] not in known:
            _logger.warning("%s belongs to a style strategy that is not registered: its value has no effect", key)
            node = cfg.MODEL.STYLE.setdefault(match[1], CfgNode())
            node[match[2]] = defaults[key] = CfgNode._decode_cfg_value(value)


def flat_settings(cfg: Mapping[Any, Any], prefix: str = "") -> Settings:
    """Return all settings of a config as "SECTION.KEY" -> value.

    Args:
        cfg: config, node of a config, or nested sections as YAML has them.
        prefix: prefix of all keys.
    """
    flat: Settings = {}
    for key, value in cfg.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def read_settings(path: str) -> Settings:
    """Read the config.yaml of a run as "SECTION.KEY" -> value, tuples as lists.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        content = read_yaml(path)
    except (OSError, CorruptFileError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read ({error}). Name the config of a run") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings in the form KEY: value, got a {type(content).__name__}")
    return flat_settings(content)


def _read_files(file: str, start: str, count: list[int]) -> Iterator[tuple[str, Settings]]:
    """Read a config file after the files that it is based on, in the order of merging."""
    count[0] += 1
    if count[0] > _MAX_FILES:
        raise ConfigError(f"{_BASE} must lead to at most {_MAX_FILES} files, got more from {start}. Remove a cycle")
    try:
        settings = read_yaml(file)
    except FileNotFoundError as error:
        raise ConfigError(f"config file {file} does not exist") from error
    except (OSError, CorruptFileError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"config file {file} cannot be read: {reason}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file} must hold settings in the form KEY: value, got a {type(settings).__name__}")
    bases = settings.pop(_BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{_BASE} must be a path or a list of paths, got {base!r} in {file}. Write a file name.")
        path = os.path.join(os.path.dirname(file), local_path(base, f"{_BASE} of {file}"))
        yield from _read_files(path, start, count)
    yield file, settings


def _check_settings(
    settings: Settings, node: CfgNode, defaults: Mapping[str, Any], file: str, prefix: str = ""
) -> None:
    """Raise unless all keys of a file exist and all values have the types of the defaults."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        known = node.get(name) if isinstance(name, str) else None
        if isinstance(known, CfgNode):
            if not isinstance(value, dict):
                example = next(other for other in defaults if other.startswith(f"{key}."))
                raise ConfigError(
                    f"{key} must be a section of keys such as {example}, got {shown(value)} in {file}. Write the full key."
                )
            _check_settings(value, known, defaults, file, f"{key}.")
        elif key in defaults:
            settings[name] = _join_names(key, value)
            _check_value(key, settings[name], defaults[key], file)
        else:
            raise ConfigError(_unknown_key(next(iter(flat_settings({key: value})), key), defaults))


def _check_pairs(words: Sequence[str], defaults: Mapping[str, Any]) -> None:
    """Raise unless words are KEY VALUE KEY VALUE ... with keys that exist."""
    late = [word for word in words if word.startswith("--")]
    key = late[0].strip("-").split("=")[0] if late else ""
    if key in defaults:
        raise ConfigError(
            f"{key} must be written without dashes, got {late[0]!r}. Write {key} {_example(defaults[key])}"
        )
    if late:
        raise ConfigError(
            f"options must precede the KEY VALUE pairs, got {' '.join(late)} after them. Move the options"
        )
    for place in range(0, len(words), 2):
        key, value = words[place], words[place + 1] if place + 1 < len(words) else ""
        before = words[place - 2] if place else ""
        joined = re.fullmatch(r"([\w.]+)([=:])(.*)", key, re.DOTALL)
        if joined and joined[1] in defaults:
            raise ConfigError(
                f"{joined[1]} must be followed by a space and its value, got {key!r}. Write {joined[1]} "
                f"{joined[3] or value or _example(defaults[joined[1]])}"
            )
        if key not in defaults and isinstance(defaults.get(before), list | tuple) and "." not in key:
            raise ConfigError(
                f"{before} must be followed by one value, got the further word {key!r}. Write several names as one tuple: "
                f"{before} \"('first', 'second')\""
            )
        if key not in defaults:
            raise ConfigError(_unknown_key(key, defaults))
        if place + 1 == len(words) or value in defaults or value.startswith("="):
            got = f"got {value!r}" if value else "got nothing"
            raise ConfigError(
                f"{key} must be followed by a space and its value, {got}. Write {key} {_example(defaults[key])}"
            )


def _unknown_key(key: str, defaults: Mapping[str, Any]) -> str:
    hint = did_you_mean(key, defaults) or did_you_mean(key.upper(), defaults)
    return f"unknown config key {key}.{hint or ' See docs/CONFIG.md.'}"


def _join_names(key: str, value: Any) -> Any:
    """Return a list of names, from YAML or the command line, as one comma-separated string."""
    if key not in _NAME_OR_NAMES:
        return value
    names = re.findall(r"[^\[\]()'\",\s]+", value) if isinstance(value, str) else value
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return ",".join(names) if is_list else value


def _check_value(key: str, raw: Any, default: Any, source: str) -> None:
    """Raise unless a value from YAML or a command line has the type of the default."""
    kind = _TYPE_NAMES.get(type(default), "a number or None")
    try:
        value = CfgNode._decode_cfg_value(raw)
    except Exception as error:  # text that resembles a Python literal but is malformed or too large
        raise ConfigError(
            f"{key} must be {kind}, got {shown(raw)} in {source}, which cannot be read ({type(error).__name__}). Write "
            f"{_example(default)}"
        ) from error
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        foreign = [entry for entry in value if not _is_number(entry)]
        if foreign and default and all(_is_number(entry) for entry in default):
            raise ConfigError(
                f"{key} must be {kind} of numbers, got {shown(foreign[0])} in it in {source}. Write {key} "
                f"{_example(default)}"
            )
        return
    if type(value) is type(default) or (default is None and (value is None or type(value) in (int, float))):
        return
    got = "null" if value is None else shown(value)
    raise ConfigError(f"{key} must be {kind}, got {got} in {source}. Write {_corrected(value, default)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _corrected(value: Any, default: Any) -> str:
    """Return the value in the right type if the intention is clear, else an example."""
    number = _is_number(value)
    if isinstance(default, float) and number and abs(value) < 1e15:
        return repr(float(value))
    if type(default) is int and number and value == value and abs(value) < 1e15 and value == int(value):
        return repr(int(value))
    if isinstance(default, bool) and str(value).lower() in _BOOLEANS:
        return str(_BOOLEANS[str(value).lower()])
    if isinstance(default, str) and isinstance(value, list | tuple) and len(value) == 1:
        return str(value[0])
    if isinstance(default, str) and number:
        return f"\"'{value}'\" with both kinds of quotes"
    if isinstance(default, list | tuple) and isinstance(value, str) and value.strip():
        names = [name.strip(" '\"") for name in value.strip("()[] ").split(",")]
        return f'"{type(default)(name for name in names if name)!r}"'
    if isinstance(default, list | tuple) and number and (not default or isinstance(default[0], type(value))):
        return f'"{type(default)([value] * max(1, len(default)))!r}"'
    return _example(default)


def _example(default: Any) -> str:
    """Return a value of the right type, quoted for both a shell and YAML."""
    if isinstance(default, list | tuple):
        return f'"{default or type(default)(["name"])!r}"'
    return repr(default) if not isinstance(default, str) else default or "''"


def _local_entry(entry: Any, key: str) -> str:
    if not isinstance(entry, str):
        raise ConfigError(f"{key} must be a list of paths, got {shown(entry)} in it. Write \"['file.yaml']\"")
    return local_path(entry, key)
