"""Convert a checkpoint of FAMix's reference implementation for MODEL.WEIGHTS, or its style bank for MODEL.STYLE.BANK.
The file type is detected from its content, and nothing in the file is executed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from famix_cli import execute

CHECKPOINT_SUFFIX, BANK_SUFFIX = ".pth", ".safetensors"


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: %(prog)s released.pth --output model.pth --config-file famix://GTA5/famix_RN50.yaml",
    )
    output = (
        f"output file: {CHECKPOINT_SUFFIX} for a checkpoint, {BANK_SUFFIX} for a bank; an existing file is replaced"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint (.pth) or style bank (saved_params.pkl)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=output)
    parser.add_argument("--config-file", metavar="FILE", help="write the output only if the file fits this config")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the config")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.import_released", make_parser().parse_intermixed_args(argv))


if __name__ == "__main__":
    sys.exit(main())
