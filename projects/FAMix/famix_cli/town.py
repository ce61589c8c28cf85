"""Run FAMix in a miniature town: render images, mine styles, train on clear days, and evaluate in all weather."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from famix_cli import execute, whole_number

PROMPTS = {
    "strict": ("famix", "famix_default"),
    "weather": ("famix_weather", "famix_weather_jitter"),
    "web": ("famix_web", "famix_web_jitter"),
}
"""Choice -> configs without and with color jitter."""


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    description = "The same command resumes interrupted runs. Finished runs are kept."
    parser = argparse.ArgumentParser(description=__doc__, epilog=description)
    output, positive = Path("output/demo"), partial(whole_number, lowest=1)
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help=f"output folder (default: {output})")
    parser.add_argument("--seed", type=whole_number, default=1, help="seed of mining and training (default: 1)")
    parser.add_argument("--quick", type=positive, metavar="N", help="train for only N iterations, to test the setup")
    parser.add_argument("--clip", metavar="WEIGHTS", help="CLIP to start from (default: the CLIP in the configs)")
    parser.add_argument(
        "--prompts",
        choices=PROMPTS,
        default="strict",
        help="style words: looks of images on the web that do not resemble the tested weather (strict, the default), all "
        "looks but weather (web), or the tested weather (weather)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the configs, after --")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = make_parser().parse_args(words)
    arguments.command = shlex.join(["famix-town", *words])
    return execute("famix_minitown.runs.demo", arguments)


if __name__ == "__main__":
    sys.exit(main())
