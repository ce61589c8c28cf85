"""Measure a style bank on labeled images instead of mining one from prompts, as an upper bound for prompts."""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: measure_bank.py --config-file configs/minitown/oracle.yaml --output bank.safetensors "
        "--datasets minitown_night_train minitown_fog_train",
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="config that defines the CLIP, crops, stage and grid"
    )
    parser.add_argument("--datasets", required=True, nargs="+", metavar="NAME", help="registered datasets with labels")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="bank to write; an existing file is overwritten"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the config, after --")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # fast --help and usage errors

from famix.data import register_datasets
from famix.engine import load_config
from famix.mining import measure_bank
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints one line and exits with status 2."""
    parser = make_parser()
    try:
        load_plugins()
        arguments = expand_arguments(parser.parse_args(argv))
        cfg = load_config(arguments.config_file, arguments.opts)
        register_datasets(cfg.DATASETS.FILES)
        bank = measure_bank(cfg, arguments.datasets)
        bank.save(arguments.output)
    except FAMixError as error:
        parser.error(str(error))
    logging.getLogger("measure_bank").info(
        "Wrote %d styles of %d classes to %s", len(bank), len(bank.counts()), arguments.output
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
