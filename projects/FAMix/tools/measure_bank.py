"""Measure a style bank on labelled images instead of mining one from prompts: the ceiling of what prompts can reach."""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: measure_bank.py --config-file configs/minitown/oracle.yaml --output bank.safetensors "
        "--datasets minitown_night_train minitown_fog_train",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="names CLIP, crops, stage and grid")
    parser.add_argument("--datasets", required=True, nargs="+", metavar="NAME", help="registered names")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="bank to write, replaced if there")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the file, behind --")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from famix.data import register_datasets
from famix.engine import load_config
from famix.mining.measured import measure_bank
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins

logger = logging.getLogger("measure_bank")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with status 2 and one line on a mistake of the user."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        load_plugins()
        expand_arguments(arguments)
        cfg = load_config(arguments.config_file, arguments.opts)
        register_datasets(cfg.DATASETS.FILES)
        bank = measure_bank(cfg, arguments.datasets)
        bank.save(arguments.output)
    except FAMixError as error:
        parser.error(str(error))
    logger.info("Wrote %d styles of %d classes to %s", len(bank), len(bank.counts()), arguments.output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
