"""Inspect style banks, and merge or filter them.

%(prog)s BANK              print a summary; --html writes a page with a map of the styles
%(prog)s merge BANK BANK   merge the styles of several banks
%(prog)s filter BANK       keep some styles of a bank
%(prog)s validate BANK     exit with status 1 if training cannot use the bank
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from famix_cli import execute


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: %(prog)s output/style_bank.safetensors --html bank.html --clip RN50",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print a summary (the default)")
    show.add_argument("bank", type=Path, metavar="BANK", help=".safetensors file")
    show.add_argument("--html", type=Path, metavar="FILE", help="also write a page")
    nearest = "the bank's CLIP, in the form of MODEL.CLIP.WEIGHTS; adds the nearest prompts for each style"
    show.add_argument("--clip", metavar="WEIGHTS", help=nearest)
    add_architecture(show)
    content = "content images that --clip applies styles to (default: noise)"
    show.add_argument("--content", nargs="+", default=[], type=Path, metavar="IMAGE", help=content)
    most = "maximum number of styles for --clip (default: 300)"
    show.add_argument("--most-styles", default=300, type=int, metavar="N", help=most)
    own = "measured bank of the source (see measure_bank.py); adds distances from the source"
    show.add_argument("--own", type=Path, metavar="BANK", help=own)
    merge = commands.add_parser("merge", help="merge the styles of several banks")
    merge.add_argument("banks", nargs="+", type=Path, metavar="BANK")
    keep = commands.add_parser("filter", help="keep some styles of a bank")
    keep.add_argument("bank", type=Path, metavar="BANK")
    repeated: dict[str, Any] = {"action": "append", "default": []}
    keep.add_argument(
        "--class", dest="classes", **repeated, metavar="NAME", help="keep styles of this class (repeatable)"
    )
    prompt = "keep styles with this text in their prompt (repeatable)"
    keep.add_argument("--prompt", dest="prompts", **repeated, metavar="TEXT", help=prompt)
    loss = "keep styles with at most this loss after mining"
    keep.add_argument("--max-loss", type=float, metavar="LOSS", help=loss)
    for editing in (merge, keep):
        editing.add_argument("--output", required=True, type=Path, metavar="FILE", help="output bank")
    validate = commands.add_parser("validate", help="check whether training can use banks")
    validate.add_argument("banks", nargs="+", type=Path, metavar="BANK")
    validate.add_argument("--clip", metavar="WEIGHTS", help="CLIP that the banks must have been made with")
    add_architecture(validate)
    return parser


def add_architecture(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe --clip."""
    architecture = (
        "architecture of --clip, in the form of MODEL.CLIP.ARCHITECTURE; needed for files of open_clip's models"
    )
    parser.add_argument("--architecture", default="", metavar="NAME", help=architecture)
    tokenizer = "folder with the tokenizer of --clip, as MODEL.CLIP.TOKENIZER"
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help=tokenizer)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line. The default command is show."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] not in ("show", "merge", "filter", "validate", "-h", "--help"):
        words = ["show", *words]
    return make_parser().parse_args(words)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.bank", parse(argv))


if __name__ == "__main__":
    sys.exit(main())
