"""Configs: all keys with their defaults and meanings, and loading from config files and command lines."""

from famix.config import path_handler  # noqa: F401, registers famix://
from famix.config.defaults import add_famix_config
from famix.config.loading import (
    PATH_KEYS,
    find_node,
    flat_settings,
    load_config,
    read_settings,
    register_completion,
    require_setting,
)
from famix.utils.paths import config_file

__all__ = [
    "PATH_KEYS",
    "add_famix_config",
    "config_file",
    "find_node",
    "flat_settings",
    "load_config",
    "read_settings",
    "register_completion",
    "require_setting",
]
