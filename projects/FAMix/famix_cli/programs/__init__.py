"""Programs behind the console commands. Each has a function `execute` that takes the parsed command line."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from famix.data import register_datasets
from famix.engine import load_config
from famix.io.atomic import disk_message
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix_cli import USER_ERROR

if TYPE_CHECKING:  # famix, which says how to install Detectron2, is imported before it
    from detectron2.config import CfgNode


def run_program(run: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Load the plugins, expand the paths on the command line, and run a program.

    Returns:
        The exit status: 0, or `USER_ERROR` after a one-line error on stderr.
    """
    try:
        load_plugins()
        run(expand_arguments(arguments))
    except (FAMixError, OSError) as error:
        message = disk_message(error, "choose another output") if isinstance(error, OSError) else str(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return USER_ERROR
    return 0


def read_config(arguments: argparse.Namespace) -> "CfgNode":
    """Load `--config-file` with the settings that override it, and register its datasets."""
    cfg = load_config(arguments.config_file, arguments.opts)
    register_datasets(cfg.DATASETS.FILES)
    return cfg
