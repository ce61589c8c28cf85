#!/usr/bin/env python
"""Render scenes of minitown, FAMix's own street dataset, in the layout of Cityscapes."""

# ruff: noqa: E402, the parser precedes imports that take seconds

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from famix_arguments import whole_number
from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.scene import SIZE

SMALLEST, LARGEST = 32, 4096  # sides of an image in pixels
SEED_LIMIT = 10**12  # file names have room for twelve digits


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    number = partial(whole_number, highest=SEED_LIMIT - 1)
    side = partial(whole_number, lowest=SMALLEST, highest=LARGEST)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: minitown.py --out datasets/cityscapes --count 50 --condition clear night --split val",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder, created if needed")
    parser.add_argument(
        "--count", required=True, type=partial(number, lowest=1), metavar="N", help="scenes, at least 1"
    )
    parser.add_argument(
        "--condition", nargs="+", default=["clear"], choices=(*CONDITIONS, *DEVELOPMENT_CONDITIONS),
        help="conditions, each with all scenes as a city of its own (default: clear)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", default=0, type=number, metavar="FIRST", help="seed of the first scene; the following scenes have "
        "consecutive seeds (default: 0; the minitown_*_val datasets use 50000 to 50049)"
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs=2, default=SIZE, type=side, metavar=("H", "W"),
        help=f"height and width in pixels (default: {SIZE[0]} {SIZE[1]})"
    )  # fmt: skip
    parser.add_argument("--split", default="train", type=folder_name, help="folder of the split (default: train)")
    parser.add_argument(
        "--overwrite", action="store_true", help="write into a folder with files, and replace those of the same name"
    )  # fmt: skip
    return parser


def folder_name(text: str) -> str:
    """Parse the name of one folder."""
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"must consist of letters, digits and '_', got {text!r}")
    return text


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from famix.utils.paths import expand_arguments
from famix_minitown.writer import write_tree

INTERRUPTED = 130  # exit status


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake exits with status 2 and one line."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    conditions = list(dict.fromkeys(arguments.condition))
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    if seeds.stop > SEED_LIMIT:
        parser.error(f"--seed plus --count must be at most {SEED_LIMIT}, got {arguments.seed} and {arguments.count}")
    try:
        out = expand_arguments(arguments).out
        if out.exists() and not out.is_dir():
            parser.error(f"--out must be a folder, got the file {out}")
        if not arguments.overwrite and out.is_dir() and any(out.iterdir()):
            parser.error(
                f"--out must be an empty folder, got {out} with files. Choose another folder, or add --overwrite"
            )
        write_tree(out, arguments.split, conditions, seeds, tuple(arguments.size))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"stopped; {arguments.out} contains only some scenes: --overwrite renders all of them", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(f"wrote {arguments.count} scenes in {', '.join(conditions)} to {arguments.out}")


if __name__ == "__main__":
    main()
