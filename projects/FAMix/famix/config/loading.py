"""Config loading from YAML files and KEY VALUE pairs. Keys and types are checked, and no code is executed."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from detectron2.config import CfgNode, get_cfg

from famix.config.defaults import add_famix_config
from famix.data.definition import find_definitions
from famix.data.vocabulary import join_classes, read_classes
from famix.io.text_files import read_yaml
from famix.utils.errors import ConfigError, CorruptFileError
from famix.utils.messages import did_you_mean, shown
from famix.utils.paths import local_path, similar_path

PATH_KEYS = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS", "MODEL.CLIP.TOKENIZER", "MODEL.TIMM.WEIGHTS"),
    *("MODEL.STYLE.BANK", "DATASETS.FILES"),
)
"""Keys for paths or lists of paths; `~` and environment variables are expanded, and URLs are rejected."""

_BASE = "_BASE_"
_MAX_FILES = 50  # base files per config, including repetitions
_TYPE_NAMES = {
    bool: "True or False", int: "an integer", float: "a float", str: "a string", list: "a list", tuple: "a tuple"
}  # fmt: skip
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Settings = dict[str, Any]
_completions: list[Callable[[CfgNode], None]] = []


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Load a config file and apply KEY VALUE overrides.

    Args:
        config_file: YAML file, famix://NAME for an installed one (see `config_file`), or "" for the defaults. `_BASE_` may
            list base files relative to its folder, or famix://NAME. Missing DATASETS.FILES are looked up in the folder "datasets"
            next to it, where a run keeps copies.
        opts: settings that override the file, as KEY VALUE KEY VALUE ...

    Raises:
        ConfigError: a file is missing, malformed or based on itself, or a key or value is invalid.
    """
    cfg = get_cfg()
    add_famix_config(cfg)
    defaults = flat_settings(cfg)
    if config_file:
        config_file = local_path(config_file, "--config-file")
        for file, settings in _read_with_bases(config_file, config_file, [0]):
            _merge(cfg, flat_settings(settings), defaults, file)
    _merge(cfg, _read_pairs([str(word) for word in opts], defaults), defaults, "the command line")
    if defaults["VERSION"] != cfg.VERSION:
        raise ConfigError(f"VERSION must be {defaults['VERSION']}, got {cfg.VERSION}. Set VERSION to 2.")
    for key in PATH_KEYS:
        node, name = find_node(cfg, key)
        entries = node[name] if isinstance(node[name], list) else [node[name]]
        for entry in entries:
            if not isinstance(entry, str):
                raise ConfigError(
                    f"{key} must be a list of paths, got the entry {shown(entry)}. Use \"['file.yaml']\"."
                )
        paths = [local_path(entry, key) for entry in entries]
        node[name] = paths if isinstance(node[name], list) else paths[0]
    cfg.DATASETS.FILES = find_definitions(cfg.DATASETS.FILES, config_file)
    cfg.TEST.CLASSES = read_classes(cfg.TEST.CLASSES)  # the run keeps the names, whatever becomes of the file
    for complete in _completions:
        complete(cfg)
    return cfg


def register_completion(complete: Callable[[CfgNode], None]) -> Callable[[CfgNode], None]:
    """Register a function that `load_config` calls on every config, to fill in settings that follow from others.

    Use it as a decorator. It lets a component complete its settings without an import of that component here.
    """
    _completions.append(complete)
    return complete


def flat_settings(cfg: Mapping[Any, Any], prefix: str = "") -> Settings:
    """Return a mapping from "SECTION.KEY" to value for all settings in a config.

    Args:
        cfg: config, node of a config, or nested sections of a YAML file.
        prefix: prefix for all keys.
    """
    flat: Settings = {}
    for key, value in cfg.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def find_node(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """Return the config node that contains the key "SECTION.KEY", and the name of the key in that node."""
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    return cfg, name


def require_setting(cfg: CfgNode, key: str, valid: bool, constraint: str, remedy: str) -> None:
    """Raise ConfigError unless a setting is valid.

    Args:
        cfg: config with the value for the message.
        key: "SECTION.KEY".
        valid: whether the value is valid.
        constraint: phrase that completes "KEY must be ...".
        remedy: sentence without the final period.
    """
    if not valid:
        node, name = find_node(cfg, key)
        raise ConfigError(f"{key} must be {constraint}, got {shown(node[name])}. {remedy}.")


def read_settings(path: str) -> Settings:
    """Read the config.yaml of a run as a mapping from "SECTION.KEY" to value. Tuples become lists.

    Raises:
        ConfigError: the file cannot be read or is not a config.
    """
    return flat_settings(_read_mapping(path))


def _read_mapping(file: str) -> Settings:
    try:
        settings = read_yaml(file)
    except FileNotFoundError as error:
        raise ConfigError(f"Config file not found: '{file}'. Check the path.{similar_path(file)}") from error
    except (OSError, CorruptFileError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"Cannot read config file '{file}': {reason}.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"'{file}': expected settings in the form KEY: value, found a {type(settings).__name__}.")
    return settings


def _read_with_bases(file: str, start: str, count: list[int]) -> Iterator[tuple[str, Settings]]:
    """Yield the settings of all base files and then of the config file itself, in merge order."""
    count[0] += 1
    if count[0] > _MAX_FILES:
        raise ConfigError(f"{_BASE} in '{start}' leads to more than {_MAX_FILES} files. Remove any cycle.")
    settings = _read_mapping(file)
    bases = settings.pop(_BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{_BASE} must be a path or a list of paths, got {base!r} in '{file}'. Use a file name.")
        path = os.path.join(os.path.dirname(file), local_path(base, f"{_BASE} in {file}"))
        yield from _read_with_bases(path, start, count)
    yield file, settings


def _read_pairs(words: Sequence[str], defaults: Settings) -> Settings:
    """Parse KEY VALUE KEY VALUE ... into settings, and report other forms, such as KEY=VALUE, with a correction."""
    late = [word for word in words if word.startswith("--")]
    key = late[0].strip("-").split("=")[0] if late else ""
    if key in defaults:
        raise ConfigError(
            f"{key} must be written without dashes, got {late[0]!r}. Use {key} {_example(defaults[key])}."
        )
    if late:
        raise ConfigError(
            f"Found options after the KEY VALUE pairs: {' '.join(late)}. Move them in front of the pairs."
        )
    pairs: Settings = {}
    before = ""
    for key, value in zip_longest(words[::2], words[1::2]):
        joined = re.fullmatch(r"([\w.]+)[=:](.*)", key, re.DOTALL)
        if joined and joined[1] in defaults:
            example = joined[2] or value or _example(defaults[joined[1]])
            raise ConfigError(
                f"{joined[1]} must be followed by a space and its value, got {key!r}. Use {joined[1]} {example}."
            )
        if key not in defaults and isinstance(defaults.get(before), list | tuple) and "." not in key:
            raise ConfigError(
                f"{before} must be followed by one value, got the extra word {key!r}. Combine names in one tuple: "
                f"{before} \"('first', 'second')\"."
            )
        if key in defaults and (value is None or value in defaults or value.startswith("=")):
            got = "the end of the command line" if value is None else repr(value)
            raise ConfigError(f"{key} must be followed by its value, got {got}. Use {key} {_example(defaults[key])}.")
        pairs[key], before = value, key
    return pairs


def _merge(cfg: CfgNode, settings: Settings, defaults: Settings, source: str) -> None:
    """Merge settings into a config after checking that the keys exist and the types match the defaults."""
    strategies = set(cfg.MODEL.STYLE)
    for key, value in settings.items():
        strategy = re.fullmatch(r"MODEL\.STYLE\.([A-Z0-9_]+)\.(\w+)", key)
        if strategy and strategy[1] not in strategies:  # prediction needs no strategy
            logging.getLogger(__name__).warning("Ignoring %s, which belongs to an unregistered style strategy.", key)
            node = cfg.MODEL.STYLE.setdefault(strategy[1], CfgNode())
            node[strategy[2]] = defaults[key] = CfgNode._decode_cfg_value(value)
        example = next((known for known in defaults if known.startswith(f"{key}.")), None)
        if example:
            raise ConfigError(
                f"{key} is a section, but {source} sets it to {shown(value)}. Use a full key such as {example}."
            )
        if key not in defaults:
            hint = did_you_mean(key, defaults) or did_you_mean(key.upper(), defaults)
            raise ConfigError(f"Unknown config key {key}.{hint or ' See docs/CONFIG.md.'}")
        if key in _TEXT_OR_LIST:
            value = _TEXT_OR_LIST[key](value)
        _check_type(key, value, defaults[key], source)
        cfg.merge_from_list([key, value])


def _join_names(value: Any) -> Any:
    """Join a list of names from YAML or the command line into one comma-separated string. Other values are kept."""
    names = re.findall(r"[^\[\]()'\",\s]+", value) if isinstance(value, str) else value
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return ",".join(names) if is_list else value


# Keys for a string or a list, which becomes a string because configs keep the type of a default.
_TEXT_OR_LIST: dict[str, Callable[[Any], Any]] = {"MODEL.STYLE.STRATEGY": _join_names, "TEST.CLASSES": join_classes}


def _check_type(key: str, raw: Any, default: Any, source: str) -> None:
    kind = _TYPE_NAMES.get(type(default), "a number or None")
    try:
        value = CfgNode._decode_cfg_value(raw)
    except Exception as error:  # text that resembles a Python literal but is malformed or too large
        raise ConfigError(
            f"{key} must be {kind}, got {shown(raw)} in {source}, which cannot be parsed ({type(error).__name__}). Use "
            f"{_example(default)}."
        ) from error
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        foreign = [entry for entry in value if not _is_number(entry)]
        if foreign and default and all(_is_number(entry) for entry in default):
            raise ConfigError(
                f"{key} must be {kind} of numbers, got the entry {shown(foreign[0])} in {source}. Use {key} "
                f"{_example(default)}."
            )
    elif type(value) is not type(default) and not (default is None and type(value) in (int, float)):
        got = "null" if value is None else shown(value)
        raise ConfigError(f"{key} must be {kind}, got {got} in {source}. Use {_corrected(value, default)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _corrected(value: Any, default: Any) -> str:
    """Return the value converted to the right type if the intention is clear, or else an example."""
    kind, number = type(default), _is_number(value)
    if _is_number(default) and number and abs(value) < 1e15 and value == kind(value):  # False for NaN
        return repr(kind(value))
    if isinstance(default, bool):
        return str(_BOOLEANS.get(str(value).lower(), default))
    if isinstance(default, str) and isinstance(value, list | tuple) and len(value) == 1:
        return str(value[0])
    if isinstance(default, str) and number:
        return f"\"'{value}'\" with both kinds of quotes"
    if isinstance(default, list | tuple) and isinstance(value, str) and value.strip():
        names = [name.strip(" '\"") for name in value.strip("()[] ").split(",")]
        return f'"{kind(name for name in names if name)!r}"'
    return _example(default)


def _example(default: Any) -> str:
    """Return an example of the right type, quoted for both the shell and YAML."""
    if isinstance(default, list | tuple):
        return f'"{default or type(default)(["name"])!r}"'
    return repr(default) if not isinstance(default, str) else default or "''"
