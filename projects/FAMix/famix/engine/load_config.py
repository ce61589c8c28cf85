"""From a config file and KEY VALUE pairs to a config: keys and types of values are checked, paths are expanded."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from famix.config import add_famix_config, flat_settings
from famix.data.definition_record import find_definitions
from famix.engine.config_files import Settings, read_config_files
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean, shown
from famix.utils.paths import local_path

__all__ = ["PATH_KEYS", "load_config"]

PATH_KEYS = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS", "MODEL.STYLE.BANK", "DATASETS.FILES")
"""Keys whose values are paths, or lists of paths: `~` and environment variables are replaced, addresses refused."""

_TYPE_NAMES = {
    bool: "True or False", int: "an integer", float: "a float", str: "a string", list: "a list", tuple: "a tuple"
}  # fmt: skip
_COMMAND_LINE = "the command line"
_NAME_OR_NAMES = (
    "MODEL.STYLE.STRATEGY",
)  # a list becomes "a,b", since Detectron2's configs keep the type of a default


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config file, and settings given as KEY VALUE pairs.

    Args:
        config_file: YAML; "" takes the defaults. Definitions of DATASETS.FILES that are gone are looked for in the
            folder "datasets" beside it, where a run keeps copies.
        opts: KEY VALUE KEY VALUE ..., which override the file.

    Returns:
        The config, in which paths are expanded, see `PATH_KEYS`.

    Raises:
        ConfigError: the file is missing or malformed, or a key or value does not fit.
    """
    cfg = get_cfg()
    add_famix_config(cfg)
    defaults = flat_settings(cfg)
    for file, settings in read_config_files(config_file) if config_file else ():
        _check_settings(settings, cfg, defaults, file)
        cfg.merge_from_other_cfg(CfgNode(settings))
    words = [str(word) for word in opts]
    _check_pairs(words, defaults)
    words[1::2] = [_join_names(key, value) for key, value in zip(words[::2], words[1::2], strict=True)]
    for key, value in zip(words[::2], words[1::2], strict=True):
        _check_value(key, value, defaults[key], _COMMAND_LINE)
    cfg.merge_from_list(words)
    if defaults["VERSION"] != cfg.VERSION:
        raise ConfigError(f"VERSION must be {defaults['VERSION']}, got {cfg.VERSION}. Write VERSION: 2.")
    _expand_paths(cfg)
    cfg.DATASETS.FILES = find_definitions(cfg.DATASETS.FILES, config_file)
    return cfg


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
                    f"{key} must be a section of keys such as {example}, got {shown(value)} in {file}. Write the key of "
                    "the section that is meant."
                )
            _check_settings(value, known, defaults, file, f"{key}.")
        elif key in defaults:
            settings[name] = _join_names(key, value)
            _check_value(key, settings[name], defaults[key], file)
        else:
            missing = next(iter(flat_settings({key: value})), key)
            raise ConfigError(_unknown_key(missing, defaults))


def _check_pairs(words: Sequence[str], defaults: Mapping[str, Any]) -> None:
    """Raise unless words are KEY VALUE KEY VALUE ... with keys that exist."""
    late = [word for word in words if word.startswith("--")]
    key = late[0].strip("-").split("=")[0] if late else ""
    if key in defaults:
        raise ConfigError(f"{key} must stand without dashes, got {late[0]!r}. Write {key} {_example(defaults[key])}")
    if late:
        raise ConfigError(f"{' '.join(late)} must stand before the KEY VALUE pairs, which end the command line")
    for place in range(0, len(words), 2):
        key, value = words[place], words[place + 1] if place + 1 < len(words) else ""
        joined = re.fullmatch(r"([\w.]+)([=:])(.*)", key, re.DOTALL)
        if joined and joined[1] in defaults:
            raise ConfigError(
                f"{joined[1]} must be followed by a blank and its value, got {key!r}. Write {joined[1]} "
                f"{joined[3] or value or _example(defaults[joined[1]])}"
            )
        if key not in defaults:
            raise ConfigError(_unknown_word(key, words[place - 2] if place else "", defaults))
        if place + 1 == len(words) or value in defaults or value.startswith("="):
            got = f"got {value!r}" if value else "got nothing"
            raise ConfigError(
                f"{key} must be followed by a blank and its value, {got}. Write {key} {_example(defaults[key])}"
            )


def _unknown_word(word: str, key_before: str, defaults: Mapping[str, Any]) -> str:
    """What to say of a word in the place of a key."""
    if isinstance(defaults.get(key_before), list | tuple) and "." not in word:
        return (
            f"{key_before} must be followed by one value, got the further word {word!r}. Write several names as one "
            f"tuple: {key_before} \"('first', 'second')\""
        )
    return _unknown_key(word, defaults)


def _unknown_key(key: str, defaults: Mapping[str, Any]) -> str:
    hint = (
        did_you_mean(key, defaults)
        or did_you_mean(key.upper(), defaults)
        or " See the key table in projects/FAMix/README.md."
    )
    return f"unknown config key {key}.{hint}"


def _join_names(key: str, value: Any) -> Any:
    """Return a list of names, as YAML or the command line has it, as one comma-separated string."""
    if key not in _NAME_OR_NAMES:
        return value
    names = re.findall(r"[^\[\]()'\",\s]+", value) if isinstance(value, str) else value
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return ",".join(names) if is_list else value


def _check_value(key: str, raw: Any, default: Any, source: str) -> None:
    """Raise unless a value, as YAML or a command line has it, is of the type of the default."""
    try:
        value = CfgNode._decode_cfg_value(raw)
    except Exception as error:  # of texts that look like a Python literal, and are none that can be had
        raise ConfigError(
            f"{key} must be {_type_name(default)}, got {shown(raw)} in {source}, which cannot be read "
            f"({type(error).__name__}). Write {_example(default)}"
        ) from error
    lists = isinstance(default, list | tuple) and isinstance(value, list | tuple)
    number_or_none = default is None and (value is None or type(value) in (int, float))
    if lists or type(value) is type(default) or number_or_none:
        foreign = _foreign_entry(value, default) if lists else None
        if foreign is not None:
            raise ConfigError(
                f"{key} must be {_type_name(default)} of numbers, got {shown(foreign[0])} in it in {source}. Write "
                f"{key} {_example(default)}"
            )
        return
    got = "null" if value is None else shown(value)
    raise ConfigError(f"{key} must be {_type_name(default)}, got {got} in {source}. Write {_corrected(value, default)}")


def _foreign_entry(value: Sequence[Any], default: Sequence[Any]) -> tuple[Any] | None:
    """The first entry that is no number where the default has numbers alone, in a tuple since it may be None."""
    if not default or not all(_is_number(entry) for entry in default):
        return None
    return next(((entry,) for entry in value if not _is_number(entry)), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _type_name(default: Any) -> str:
    return _TYPE_NAMES.get(type(default), "a number or None")


def _corrected(value: Any, default: Any) -> str:
    """The value in the right type where it is clear what is meant, else an example."""
    number = _is_number(value)
    if isinstance(default, float) and number and abs(value) < 1e15:
        return repr(float(value))
    if type(default) is int and number and value == value and abs(value) < 1e15 and value == int(value):
        return repr(int(value))
    if isinstance(default, bool) and str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        return str(str(value).lower() in ("true", "yes", "on", "1"))
    if isinstance(default, str) and isinstance(value, list | tuple) and len(value) == 1:
        return str(value[0])
    if isinstance(default, str) and number:
        return f"\"'{value}'\" with both kinds of quotes"
    if isinstance(default, list | tuple) and isinstance(value, str) and value.strip():
        names = [name.strip(" '\"") for name in value.strip("()[] ").split(",")]
        return _quoted(type(default)(name for name in names if name))
    if isinstance(default, list | tuple) and number and (not default or isinstance(default[0], type(value))):
        return _quoted(type(default)([value] * max(1, len(default))))
    return _example(default)


def _example(default: Any) -> str:
    if isinstance(default, list | tuple):
        return _quoted(default or type(default)(["name"]))
    return repr(default) if not isinstance(default, str) else default or "''"


def _quoted(value: Sequence[Any]) -> str:
    """A list or tuple in a form that a shell and YAML both pass on as it is."""
    return f'"{value!r}"'


def _expand_paths(cfg: CfgNode) -> None:
    for key in PATH_KEYS:
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        value = node[name]
        node[name] = local_path(value, key) if isinstance(value, str) else [_expand_entry(one, key) for one in value]


def _expand_entry(entry: Any, key: str) -> str:
    if not isinstance(entry, str):
        raise ConfigError(f"{key} must be a list of paths, got {shown(entry)} in it. Write \"['file.yaml']\"")
    return local_path(entry, key)
