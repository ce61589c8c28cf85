#!/usr/bin/env python
"""Render scenes of minitown, FAMix's own street dataset, in the Cityscapes layout."""

# ruff: noqa: E402, the parser precedes imports that take seconds

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from famix_cli import whole_number
from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.rendering.scene import SIZE

SMALLEST, LARGEST = 32, 4096  # limits for the height and width of an image in pixels
SEED_LIMIT = 10**12  # file names have room for twelve digits


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    number = partial(whole_number, highest=SEED_LIMIT - 1)
    side = partial(whole_number, lowest=SMALLEST, highest=LARGEST)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: minitown.py --out datasets/cityscapes --count 50 --condition clear night --split val",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder, created if needed")
    parser.add_argument(
        "--count", required=True, type=partial(number, lowest=1), metavar="N", help="number of scenes, at least 1"
    )
    parser.add_argument(
        "--condition", nargs="+", default=["clear"], choices=(*CONDITIONS, *DEVELOPMENT_CONDITIONS),
        help="conditions to render; each contains all scenes and becomes a separate city (default: clear)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", default=0, type=number, metavar="FIRST", help="seed of the first scene; the following scenes use "
        "consecutive seeds (default: 0; the minitown_*_val datasets use 50000 to 50049)"
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs=2, default=SIZE, type=side, metavar=("H", "W"),
        help=f"height and width in pixels (default: {SIZE[0]} {SIZE[1]})"
    )  # fmt: skip
    parser.add_argument("--split", default="train", type=folder_name, help="folder name of the split (default: train)")
    parser.add_argument(
        "--overwrite", action="store_true", help="allow a folder that contains files, and replace files of the same name"
    )  # fmt: skip
    return parser


def folder_name(text: str) -> str:
    """Parse a folder name."""
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"must consist of letters, digits and '_', got {text!r}")
    return text


if __name__ == "__main__":
    make_parser().parse_args()  # --help and usage errors need no imports

from famix.utils.errors import OutputError
from famix_cli.programs import run_program
from famix_minitown.writer import write_tree

INTERRUPTED = 130  # exit status


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. A user error exits with status 2 and a one-line message."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    conditions = list(dict.fromkeys(arguments.condition))
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    if seeds.stop > SEED_LIMIT:
        parser.error(f"--seed plus --count must be at most {SEED_LIMIT}, got {arguments.seed} and {arguments.count}")

    def render(arguments: argparse.Namespace) -> None:
        out = arguments.out
        if out.exists() and not out.is_dir():
            raise OutputError(f"--out must be a folder, got the file '{out}'. Choose a different path.")
        if not arguments.overwrite and out.is_dir() and any(out.iterdir()):
            raise OutputError(
                f"--out is '{out}', which already contains files. Choose a different folder, or add --overwrite."
            )
        write_tree(out, arguments.split, conditions, seeds, tuple(arguments.size))

    try:
        if status := run_program(render, arguments):
            sys.exit(status)
    except KeyboardInterrupt:
        print(f"stopped; '{arguments.out}' is incomplete. Use --overwrite to render all scenes.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(f"wrote {arguments.count} scenes per condition ({', '.join(conditions)}) to {arguments.out}")


if __name__ == "__main__":
    main()
