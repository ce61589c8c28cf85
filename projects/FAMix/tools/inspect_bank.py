#!/usr/bin/env python
"""Inspect style banks, and merge or filter them.

inspect_bank.py BANK              print a summary; --html writes a page with a map of the styles
inspect_bank.py merge BANK BANK   merge the styles of several banks
inspect_bank.py filter BANK       keep some styles of a bank
inspect_bank.py validate BANK     exit with status 1 if training cannot use the bank
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: inspect_bank.py output/style_bank.safetensors --html bank.html --clip RN50",
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


if __name__ == "__main__":
    parse()  # fast --help and usage errors

import numpy as np
import torch
from tqdm import tqdm

from famix.clip import load_clip_state_dict
from famix.data import read_image
from famix.io.atomic import whole_file
from famix.reports.bank import filter_bank, find_problems, merge_banks
from famix.reports.bank_page import BankView, format_bank, render_bank
from famix.reports.nearest_prompts import find_nearest_prompts, require_clip
from famix.style import StyleBank
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins

UNSOUND, USER_ERROR = 1, 2  # exit statuses


def show(arguments: argparse.Namespace) -> None:
    """Print the summary of a bank, and write its page."""
    bank = StyleBank.load(arguments.bank)
    if not len(bank):
        print(f"{arguments.bank}: no styles")
        return
    own = StyleBank.load(arguments.own) if arguments.own else None
    nearest = None
    if arguments.clip:
        clip = load_clip_state_dict(arguments.clip, arguments.architecture, arguments.tokenizer)
        require_clip(bank, clip, arguments.clip)
        pixels = (np.asarray(read_image(path)).transpose(2, 0, 1).copy() for path in arguments.content)
        images, progress = [torch.from_numpy(image).float() for image in pixels], partial(tqdm, desc="nearest prompts")
        nearest = find_nearest_prompts(bank, clip, images, most_styles=arguments.most_styles, progress=progress)
    view = BankView(arguments.bank.name, bank, own, nearest)
    print(format_bank(view), end="")
    if arguments.html:
        with whole_file(arguments.html) as part:
            part.write_text(render_bank(view), encoding="utf-8")
        print(f"\nwrote {arguments.html}")


def merge(arguments: argparse.Namespace) -> None:
    """Write a bank with the styles of several banks."""
    banks = {str(path): StyleBank.load(path) for path in arguments.banks}
    merged = merge_banks(banks)
    merged.save(arguments.output)
    print(f"wrote {len(merged)} styles from {len(banks)} banks to {arguments.output}")
    if dropped := {name for bank in banks.values() for name in bank.annotations} - set(merged.annotations):
        print(f"without {', '.join(sorted(dropped))}, which some banks lack")


def keep(arguments: argparse.Namespace) -> None:
    """Write a bank with some styles of another bank."""
    bank = StyleBank.load(arguments.bank)
    filtered = filter_bank(bank, str(arguments.bank), arguments.classes, arguments.prompts, arguments.max_loss)
    filtered.save(arguments.output)
    print(f"wrote {len(filtered)} of {len(bank)} styles to {arguments.output}")


def validate(arguments: argparse.Namespace) -> None:
    """Print the problems of each bank, and exit with status 1 if there are any."""
    clip = load_clip_state_dict(arguments.clip, arguments.architecture) if arguments.clip else None

    def problems_of(path: Path) -> Iterable[str]:
        try:
            bank = StyleBank.load(path)
            yield from find_problems(bank)
            if clip is not None:
                require_clip(bank, clip, arguments.clip)
        except FAMixError as error:
            yield str(error)

    results = {path: list(problems_of(path)) for path in arguments.banks}
    for path, problems in results.items():
        print(f"{path}: {'; '.join(problems) or 'sound'}")
    if any(results.values()):
        sys.exit(UNSOUND)


COMMANDS = {"show": show, "merge": merge, "filter": keep, "validate": validate}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints one line and exits with status 2."""
    arguments = parse(argv)
    try:
        load_plugins()
        COMMANDS[arguments.command](expand_arguments(arguments))
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
