#!/usr/bin/env python
"""Select diverse style words from a vocabulary by farthest-point sampling over CLIP's text embeddings.

The first word is the one farthest from the class names without a style, and each next one is the farthest from those
before. No image is read. The output is a value for STYLE_MINING.STYLES and the coverage: the cosine distances of the
vocabulary's phrases to the nearest selected one, or to no style if that is nearer, and those for random selections.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from famix_cli.arguments import whole_number

TEMPLATE = "a photo of a {}."  # one sentence per phrase and class, because vocabularies are long
RANDOM_SETS = 100


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: select_styles.py --config-file configs/minitown/famix.yaml --vocabulary words.txt --count 20",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config that defines the CLIP and classes")
    parser.add_argument(
        "--vocabulary",
        required=True,
        type=Path,
        metavar="FILE",
        help="text file with a phrase per line; # for comments",
    )
    count = partial(whole_number, lowest=1)
    parser.add_argument("--count", default=20, type=count, metavar="N", help="phrases to select (default: 20)")
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="WORD",
        help="leave out phrases with these words, e.g. names of targets",
    )
    parser.add_argument("--seed", default=0, type=whole_number, help="seed of the random selections (default: 0)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the config, after --")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # fast --help and usage errors

import numpy as np
import torch
from torch import Tensor

from famix.clip import PromptEncoder, load_configured_clip
from famix.data import register_datasets
from famix.data.classes import classes_of
from famix.engine import load_config
from famix.io import read_text
from famix.mining.words import coverage, embed_phrases, select_diverse
from famix.reports.tables import text_table
from famix.utils.errors import ConfigError, CorruptFileError, FAMixError
from famix.utils.messages import first_few
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins

MOST_BYTES = 1 << 22


def read_phrases(path: Path, excluded: Sequence[str]) -> list[str]:
    """Read the distinct phrases of a vocabulary, without those that contain an excluded word.

    Raises:
        ConfigError: the file cannot be read or contains no phrase.
    """
    try:
        lines = read_text(path, MOST_BYTES).splitlines()
    except (OSError, UnicodeDecodeError, CorruptFileError) as error:
        raise ConfigError(f"--vocabulary must be a text file with a phrase per line, got '{path}': {error}.") from error
    phrases = dict.fromkeys(line.split("#")[0].strip() for line in lines)
    banned = {word.lower() for word in excluded}
    kept = [phrase for phrase in phrases if phrase and banned.isdisjoint(re.findall(r"[\w-]+", phrase.lower()))]
    if not kept:
        raise ConfigError(f"--vocabulary must contain phrases, got none in '{path}'. Check the file and --exclude.")
    return kept


def random_coverage(embeddings: Tensor, count: int, start: Tensor, seed: int) -> tuple[float, float]:
    """Return the mean over random selections of both values of `coverage`."""
    rng = np.random.default_rng(seed)
    sets = [rng.choice(len(embeddings), count, replace=False).tolist() for _ in range(RANDOM_SETS)]
    mean, largest = np.mean([coverage(embeddings, chosen, start) for chosen in sets], axis=0)
    return float(mean), float(largest)


def select(arguments: argparse.Namespace) -> str:
    """Return the report: the selected phrases, their coverage and the config value."""
    cfg = load_config(arguments.config_file, arguments.opts)
    if not cfg.MODEL.CLIP.WEIGHTS:
        raise ConfigError("MODEL.CLIP.WEIGHTS must name a CLIP, got ''. Its text tower embeds the phrases.")
    register_datasets(cfg.DATASETS.FILES)
    class_names, phrases = classes_of(cfg).names, read_phrases(arguments.vocabulary, arguments.exclude)
    if arguments.count > len(phrases):
        raise ConfigError(
            f"--count must be at most {len(phrases)}, the number of phrases in '{arguments.vocabulary}', got {arguments.count}."
        )
    encoder = PromptEncoder(load_configured_clip(cfg), device=torch.device(cfg.MODEL.DEVICE))
    unknown = encoder.unknown_words(phrases)
    if unknown:
        raise ConfigError(
            f"--vocabulary must contain words that this CLIP was trained on, got {first_few(unknown)}. Exclude them "
            "with --exclude, or use another CLIP or vocabulary."
        )
    embeddings, plain = embed_phrases(lambda texts: encoder(texts, [TEMPLATE]), phrases, class_names)
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
    return "\n\n".join(
        [
            text_table(["", "phrase", "distance to those before"], rows),
            text_table([f"distances of {len(phrases)} phrases", "mean", "largest"], distance_rows),
            f"STYLE_MINING.STYLES {shlex.quote(json.dumps(chosen))}",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints one line and exits with status 2."""
    parser = make_parser()
    try:
        load_plugins()
        arguments = expand_arguments(parser.parse_args(argv))
        report = select(arguments)
    except FAMixError as error:
        parser.error(str(error))
    print(report)


if __name__ == "__main__":
    main()
