"""Plugins: packages that add datasets, CLIP weights or registered classes to FAMix through an entry point.

A plugin declares the entry point in its package metadata:

    [options.entry_points]
    famix.plugins =
        minitown = famix_minitown.datasets:register

The function registers the plugin's additions, e.g. with `famix.data.register_split` and
`famix.clip.register_clip_weights`. It has no parameters and may be called more than once.
"""

import configparser
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from famix.utils.errors import ConfigError

GROUP = "famix.plugins"
"""Entry-point group for plugins."""

_CLONE_METADATA = Path(__file__).parents[4] / "setup.cfg"
_MAINTAINED_HERE = {"minitown": "famix_minitown"}  # first word of a name -> package of the plugin that adds it


def load_plugins() -> None:
    """Load the plugins of installed packages and, in a clone, those listed in its setup.cfg.

    Command-line programs call this first; the library never does.

    Raises:
        ConfigError: a plugin cannot be loaded.
    """
    for point in dict.fromkeys([*entry_points(group=GROUP), *_of_clone()]):
        try:
            register = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"Cannot import plugin '{point.name}' from {point.value} ({type(error).__name__}: {error}). Upgrade or "
                "uninstall the package that declares it."
            ) from error
        register()


def absent_plugin_remedy(name: str) -> str:
    """Return a hint on loading the plugin that adds an unknown name, with a leading space, or "" if none does."""
    package = _MAINTAINED_HERE.get(name.split("_")[0])
    if package is None:
        return ""
    return (
        f" This name is provided by the plugin {package}. Install it with 'pip install -e .' in a clone of FAMix; scripts "
        "must also call famix.utils.plugins.load_plugins() first."
    )


def _of_clone() -> list[EntryPoint]:
    """Return the entry points in a clone's setup.cfg. The installed metadata may lack them."""
    parser = configparser.ConfigParser()
    parser.read(_CLONE_METADATA, encoding="utf-8")
    lines = parser.get("options.entry_points", GROUP, fallback="").strip().splitlines()
    pairs = [line.partition("=") for line in lines]
    return [EntryPoint(name.strip(), value.strip(), GROUP) for name, _, value in pairs]
