#!/usr/bin/env python
"""Look into style banks, and make banks of banks.

inspect_bank.py BANK              print what is in it; --html writes a page with a map of its styles
inspect_bank.py merge BANK BANK   all styles of several banks in one
inspect_bank.py filter BANK       some styles of a bank
inspect_bank.py validate BANK     exit with status 1 if training could not use it as it is
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

SHOW = "show"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: inspect_bank.py output/style_bank.safetensors --html bank.html --clip RN50",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_show(commands.add_parser(SHOW, help="print what is in a bank (the default)"))
    merging = commands.add_parser("merge", help="put the styles of several banks together")
    merging.add_argument("banks", nargs="+", type=Path, metavar="BANK")
    _add_filter(commands.add_parser("filter", help="keep some styles of a bank"))
    for editing in (merging, commands.choices["filter"]):
        editing.add_argument("--output", required=True, type=Path, metavar="FILE", help="bank to write")
    validating = commands.add_parser("validate", help="say whether training can use banks as they are")
    validating.add_argument("banks", nargs="+", type=Path, metavar="BANK")
    validating.add_argument("--clip", metavar="WEIGHTS", help="that they must have been made with")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; without a command, banks are shown."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] not in (SHOW, "merge", "filter", "validate", "-h", "--help"):
        words = [SHOW, *words]
    return make_parser().parse_args(words)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, metavar="BANK", help=".safetensors file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument(
        "--clip",
        metavar="WEIGHTS",
        help="CLIP of the bank, as MODEL.CLIP.WEIGHTS: also find each style's nearest prompts",
    )
    parser.add_argument(
        "--content", nargs="+", default=[], type=Path, metavar="IMAGE", help="put styles on these images, not on noise"
    )
    parser.add_argument(
        "--most-styles", default=300, type=int, metavar="N", help="whose nearest prompts are looked for (default: 300)"
    )
    parser.add_argument(
        "--own", type=Path, metavar="BANK", help="measured bank of the source (measure_bank.py): distances from that"
    )


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, metavar="BANK")
    parser.add_argument("--class", dest="classes", action="append", default=[], metavar="NAME", help="keep this one")
    parser.add_argument(
        "--prompt", dest="prompts", action="append", default=[], metavar="TEXT", help="keep prompts that contain this"
    )
    parser.add_argument("--max-loss", type=float, metavar="LOSS", help="keep styles whose loss ended no higher")


if __name__ == "__main__":
    parse()  # --help and mistakes are answered at once

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from famix.clip import load_clip_state_dict
from famix.data import read_image
from famix.io.atomic import whole_file
from famix.reports.bank_editing import Selection, filter_bank, find_problems, merge_banks
from famix.reports.bank_statistics import source_distance
from famix.reports.bank_view import BankView, format_bank, render_bank
from famix.reports.nearest_prompts import find_nearest_prompts, require_clip
from famix.style import StyleBank
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins

UNSOUND, USER_ERROR = 1, 2  # exit status


def show(arguments: argparse.Namespace) -> None:
    """Print what is in a bank, and write its page."""
    bank = StyleBank.load(arguments.bank)
    if not len(bank):
        print(f"{arguments.bank}: no styles")
        return
    own = StyleBank.load(arguments.own) if arguments.own else None
    view = BankView(arguments.bank.name, bank, own, source_distance(bank, own) if own is not None else None)
    if arguments.clip:
        clip = load_clip_state_dict(arguments.clip)
        require_clip(bank, clip, arguments.clip)
        images = [read_pixels(path) for path in arguments.content]
        nearest = find_nearest_prompts(
            bank, clip, images, most_styles=arguments.most_styles, progress=partial(tqdm, desc="nearest prompts")
        )
        view = BankView(view.name, bank, own, view.distances, nearest)
    print(format_bank(view), end="")
    if arguments.html:
        with whole_file(arguments.html) as part:
            part.write_text(render_bank(view), encoding="utf-8")
        print(f"\nwrote {arguments.html}")


def merge(arguments: argparse.Namespace) -> None:
    """Write a bank with the styles of several."""
    banks = {str(path): StyleBank.load(path) for path in arguments.banks}
    merged = merge_banks(banks)
    left_out = {name for bank in banks.values() for name in bank.annotations} - set(merged.annotations)
    merged.save(arguments.output)
    print(f"wrote {len(merged)} styles of {len(banks)} banks to {arguments.output}")
    if left_out:
        print(f"without {', '.join(sorted(left_out))}, which not all of them have")


def keep(arguments: argparse.Namespace) -> None:
    """Write a bank with some of the styles of another."""
    bank = StyleBank.load(arguments.bank)
    selection = Selection(tuple(arguments.classes), tuple(arguments.prompts), arguments.max_loss)
    filtered = filter_bank(bank, str(arguments.bank), selection)
    filtered.save(arguments.output)
    print(f"wrote {len(filtered)} of {len(bank)} styles to {arguments.output}")


def validate(arguments: argparse.Namespace) -> None:
    """Say of every bank whether it is sound; exits with status 1 if one is not."""
    clip = load_clip_state_dict(arguments.clip) if arguments.clip else None
    results = {path: list(_problems(path, clip, arguments.clip)) for path in arguments.banks}
    for path, problems in results.items():
        print(f"{path}: {'; '.join(problems) or 'sound'}")
    if any(results.values()):
        sys.exit(UNSOUND)


def _problems(path: Path, clip: dict[str, Tensor] | None, source: str) -> Iterable[str]:
    try:
        bank = StyleBank.load(path)
        yield from find_problems(bank)
        if clip is not None:
            require_clip(bank, clip, source)
    except FAMixError as error:
        yield str(error)


def read_pixels(path: Path) -> Tensor:
    """(3, H, W) float32 in pixel values."""
    return torch.from_numpy(np.asarray(read_image(path)).transpose(2, 0, 1).copy()).float()


COMMANDS = {SHOW: show, "merge": merge, "filter": keep, "validate": validate}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with status 2 and one line on a mistake of the user."""
    arguments = parse(argv)
    try:
        load_plugins()
        COMMANDS[arguments.command](expand_arguments(arguments))
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
