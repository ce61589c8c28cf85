"""Summary, page, merging, filtering and validation of style banks: famix-bank."""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

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
from famix_cli.programs import run_program

UNSOUND = 1  # exit status


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


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    return run_program(COMMANDS[arguments.command], arguments)
