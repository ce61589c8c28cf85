"""Style banks, the images that they are measured on, and the words that they are mined with: famix-bank."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from famix.clip import PromptEncoder, load_clip_state_dict, load_configured_clip
from famix.data import read_image
from famix.data.classes import classes_of
from famix.engine import Trainer
from famix.inference.loading import default_device, load_model
from famix.io.atomic import require_writable, require_writable_file, whole_file
from famix.mining import load_style_bank, measure_bank, style_bank_path
from famix.mining.words import RANDOM_SETS, coverage, embed_phrases, random_coverage, read_phrases, select_diverse
from famix.reports import style_preview
from famix.reports.bank import filter_bank, find_problems, merge_banks
from famix.reports.bank_page import BankView, format_bank, render_bank
from famix.reports.nearest_prompts import find_nearest_prompts, require_clip
from famix.reports.tables import text_table
from famix.style import StyleBank
from famix.utils.errors import BankError, ConfigError, FAMixError
from famix.utils.messages import counted, first_few
from famix.visualization.figure import Pixels
from famix_cli.programs import read_config, run_program

UNSOUND = 1  # exit status
TEMPLATE = "a photo of a {}."  # one sentence per phrase and class, because vocabularies are long


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
        images = [as_tensor(np.asarray(read_image(path))).float() for path in arguments.content]
        progress = partial(tqdm, desc="nearest prompts")
        nearest = find_nearest_prompts(bank, clip, images, most_styles=arguments.most_styles, progress=progress)
    view = BankView(arguments.bank.name, bank, own, nearest)
    print(format_bank(view), end="")
    if arguments.html:
        with whole_file(arguments.html) as part:
            part.write_text(render_bank(view), encoding="utf-8")
        print(f"\nwrote {arguments.html}")


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Convert an image (H, W, 3) to a tensor (3, H, W)."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def merge(arguments: argparse.Namespace) -> None:
    """Write a bank with the styles of several banks."""
    banks = {str(path): StyleBank.load(path) for path in arguments.banks}
    merged = merge_banks(banks)
    merged.save(arguments.output)
    print(f"wrote {counted(len(merged), 'style')} from {counted(len(banks), 'bank')} to {arguments.output}")
    if dropped := {name for bank in banks.values() for name in bank.annotations} - set(merged.annotations):
        print(f"without {', '.join(sorted(dropped))}, which some banks lack")


def keep(arguments: argparse.Namespace) -> None:
    """Write a bank with some styles of another bank."""
    bank = StyleBank.load(arguments.bank)
    filtered = filter_bank(bank, str(arguments.bank), arguments.classes, arguments.prompts, arguments.max_loss)
    filtered.save(arguments.output)
    print(f"wrote {len(filtered)} of {counted(len(bank), 'style')} to {arguments.output}")


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


def measure(arguments: argparse.Namespace) -> None:
    """Write a bank with the statistics of patches of labeled images."""
    cfg = read_config(arguments)
    require_writable_file(arguments.output)
    bank = measure_bank(cfg, arguments.datasets)
    bank.save(arguments.output)
    print(f"wrote {bank.size} to {arguments.output}")


def preview(arguments: argparse.Namespace) -> None:
    """Print the tables of a bank's effect on an image, and draw the figures."""
    cfg = read_config(arguments)
    if not cfg.MODEL.CLIP.WEIGHTS and arguments.weights is None:
        raise ConfigError(
            "MODEL.CLIP.WEIGHTS is empty; there is no CLIP to build a network with. Set it, or pass a checkpoint with --weights."
        )
    classes, path = classes_of(cfg), str(arguments.bank or style_bank_path(cfg))
    bank = load_style_bank(cfg, path, classes.names)
    if not len(bank):
        raise BankError(f"Style bank '{path}' contains no styles. Mine the bank again.")
    pixels = np.asarray(read_image(arguments.image, max_pixels=cfg.INPUT.MAX_PIXELS))
    if arguments.weights is not None:
        model = load_model(arguments.weights, arguments.config_file, arguments.opts).model
    else:  # an untrained network with the config's CLIP
        cfg.MODEL.DEVICE = str(default_device())
        model = Trainer.build_model(cfg)
    shown = style_preview.preview_styles(
        model,
        bank,
        as_tensor(pixels),
        stage=cfg.MODEL.STYLE.STAGE,
        grid=tuple(cfg.MODEL.STYLE.GRID),
        own_weight=arguments.own_weight,
        trained=arguments.weights is not None,
        seed=arguments.seed,
    )
    folder = arguments.output or Path(cfg.OUTPUT_DIR, "preview")
    require_writable(folder)  # before the effects, which take long
    effects = list(tqdm(shown, "style words", mininterval=1.0))
    print(style_preview.format_effects(effects))
    if arguments.weights is not None:
        print(f"\n{style_preview.format_changes(effects, classes.names)}")
    files = style_preview.draw_effects(pixels, effects, classes, folder)
    print("", *(f"wrote {file}" for file in files), sep="\n")


def select(arguments: argparse.Namespace) -> None:
    """Print the selected phrases, their coverage and the config value."""
    cfg, phrases = read_config(arguments), read_phrases(arguments.vocabulary, arguments.exclude)
    if not cfg.MODEL.CLIP.WEIGHTS:
        raise ConfigError("MODEL.CLIP.WEIGHTS must name a CLIP, got ''. Its text tower embeds the phrases.")
    encoder = PromptEncoder(load_configured_clip(cfg), device=torch.device(cfg.MODEL.DEVICE))
    knows = {phrase: not encoder.unknown_words([phrase]) for phrase in phrases}
    skipped, phrases = ([phrase for phrase, known in knows.items() if known is wanted] for wanted in (False, True))
    if not phrases:
        raise ConfigError(
            f"--vocabulary must contain words that this CLIP knows, got none in '{arguments.vocabulary}'. Use another "
            "vocabulary or CLIP."
        )
    if arguments.count > len(phrases):
        raise ConfigError(
            f"--count must be at most {len(phrases)}, the number of phrases in '{arguments.vocabulary}' with words that this "
            f"CLIP knows (of {len(knows)}), got {arguments.count}. Use a larger vocabulary or another CLIP."
        )
    if skipped:
        share = f"{len(skipped)} of {counted(len(knows), 'phrase')}"
        print(f"skipping {share} with words that this CLIP was not trained on: {first_few(skipped)}\n")
    embeddings, plain = embed_phrases(lambda texts: encoder(texts, [TEMPLATE]), phrases, classes_of(cfg).names)
    selected, distances = select_diverse(embeddings, arguments.count, plain)
    chosen = [phrases[place] for place in selected]
    rows = [
        [str(n), name, f"{distance:.3f}"] for n, (name, distance) in enumerate(zip(chosen, distances, strict=True), 1)
    ]
    found = {
        "selected": coverage(embeddings, selected, plain),
        f"random (mean of {RANDOM_SETS})": random_coverage(embeddings, arguments.count, plain, arguments.seed),
    }
    distance_rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in found.items()]
    print(text_table(["", "phrase", "cosine distance to those before"], rows), end="\n\n")
    print(
        f"Cosine distance of the {counted(len(phrases), 'phrase')} to the nearest selected one, or to no style if nearer"
    )
    print("(lower is better; the selection aims at a low largest distance):")
    print(text_table(["", "mean", "largest"], distance_rows), end="\n\n")
    print(f"STYLE_MINING.STYLES {shlex.quote(json.dumps(chosen))}")


COMMANDS = {
    "show": show,
    "merge": merge,
    "filter": keep,
    "validate": validate,
    "measure": measure,
    "preview": preview,
    "select": select,
}


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    return run_program(COMMANDS[arguments.command], arguments)
