"""Programs behind the console commands. Each has a function `execute` that takes the parsed command line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from famix.data import get_label_readers, register_datasets
from famix.engine import load_config
from famix.io.atomic import disk_message
from famix.utils.errors import DatasetError, FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix_cli import USER_ERROR

if TYPE_CHECKING:  # famix, which says how to install Detectron2, is imported before it
    from detectron2.config import CfgNode


def run_program(run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace) -> int:
    """Load the plugins, expand the paths on the command line, and run a program.

    Returns:
        The exit status: that of the program (None stands for 0), or `USER_ERROR` after a one-line error on stderr.
    """
    try:
        load_plugins()
        return run(expand_arguments(arguments)) or 0
    except (FAMixError, OSError) as error:
        message = disk_message(error, "choose another output") if isinstance(error, OSError) else str(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return USER_ERROR


def register_definitions(files: Sequence[str], names: Sequence[str]) -> None:
    """Register the definition files of --definition, and require datasets. Errors name the option, not a config key."""
    try:
        register_datasets(files)
        get_label_readers(names)
    except DatasetError as error:
        raise DatasetError(str(error).replace("DATASETS.FILES", "--definition")) from error


def read_config(arguments: argparse.Namespace) -> "CfgNode":
    """Load `--config-file` with the settings that override it, and register its datasets."""
    cfg = load_config(arguments.config_file, arguments.opts)
    register_datasets(cfg.DATASETS.FILES)
    return cfg
