"""Plugins: packages that add datasets, CLIP weights or registered classes to FAMix through an entry point.

A plugin declares, in its package metadata,

    [options.entry_points]
    famix.plugins =
        minitown = famix_minitown.datasets:register

and the function registers what the package adds, e.g. with `famix.data.register_split` and
`famix.clip.register_clip_weights`. It takes no arguments and may be called more than once.
"""

import configparser
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from famix.utils.errors import ConfigError

GROUP = "famix.plugins"
"""Entry-point group of plugins."""

_CLONE_METADATA = Path(__file__).parents[4] / "setup.cfg"
_MAINTAINED_HERE = {"minitown": "famix_minitown"}  # first word of the names that a plugin adds -> its package


def load_plugins() -> None:
    """Load the plugins of installed packages, and in a clone those of its setup.cfg.

    Command-line programs call it first; the library never does.

    Raises:
        ConfigError: a plugin cannot be loaded.
    """
    for point in dict.fromkeys([*entry_points(group=GROUP), *_of_clone()]):
        try:
            register = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"Plugin '{point.name}' must be importable as {point.value}, got {type(error).__name__}: {error}. "
                "Upgrade or uninstall the package that declares it."
            ) from error
        register()


def absent_plugin_remedy(name: str) -> str:
    """Return how to load the plugin that adds an unknown dataset or CLIP, with a leading space; "" without one."""
    package = _MAINTAINED_HERE.get(name.split("_")[0])
    if package is None:
        return ""
    return (
        f" The plugin {package} adds this name: install it with 'pip install -e .' in a clone of FAMix, and in a script "
        "call famix.utils.plugins.load_plugins() first."
    )


def _of_clone() -> list[EntryPoint]:
    """Return the entry points in the setup.cfg of a clone, which may be missing from the installed metadata."""
    parser = configparser.ConfigParser()
    parser.read(_CLONE_METADATA, encoding="utf-8")
    lines = parser.get("options.entry_points", GROUP, fallback="").strip().splitlines()
    pairs = [line.partition("=") for line in lines]
    return [EntryPoint(name.strip(), value.strip(), GROUP) for name, _, value in pairs]
