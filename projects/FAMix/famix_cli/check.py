"""Check datasets: files, sizes, encodings and classes. The exit status is 0 if all datasets are usable."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from famix_cli import execute, whole_number

SHOWN = 12  # images in a contact sheet
MOST_WORKERS = 16


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit status: 0 if all datasets are usable, 1 if problems were found, 2 for unknown names or wrong usage. "
        "Example: %(prog)s gta5_train cityscapes_val --sheet look.png",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="dataset names, such as cityscapes_val")
    parser.add_argument(
        "--definition", action="append", default=[], metavar="YAML", help="definition file for your datasets; may be repeated"
    )  # fmt: skip
    parser.add_argument(
        "--sample", default=1000, type=whole_number, metavar="N",
        help="number of evenly spaced pairs to decode per dataset; 0 decodes all (default: 1000). The headers and ends "
        "of all files are always read",
    )  # fmt: skip
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG",
        help=f"draw a contact sheet of {SHOWN} labeled images; several datasets get one file each, named PNG-NAME.png",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", default=1 << 26, type=whole_number, metavar="N",
        help=f"maximum number of pixels per image, as in INPUT.MAX_PIXELS (default: {1 << 26})",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports to this JSON file")
    parser.add_argument(
        "--workers", default=min(os.cpu_count() or 1, MOST_WORKERS), type=whole_number, metavar="N",
        help="number of worker processes (default: one per CPU core, at most 16); 0 uses the main process",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.check", make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
