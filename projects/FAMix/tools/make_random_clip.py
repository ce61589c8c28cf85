"""Write a CLIP with random weights to try FAMix without a download. Set MODEL.CLIP.WEIGHTS to the file."""

# ruff: noqa: E402 - arguments are parsed before the slow imports

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: make_random_clip.py --output tiny.pt --width 16 --layers 1 1 1 1 --resolution 64",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="output file; an existing file is replaced"
    )
    parser.add_argument(
        "--format",
        default="state_dict",
        choices=("state_dict", "torchscript", "safetensors"),
        help="file format (default: state_dict)",
    )
    parser.add_argument("--seed", default=0, type=int, help="random seed (default: 0)")
    sizes = parser.add_argument_group(
        "sizes", "Either a published architecture, or a width and optional further sizes."
    )
    which = sizes.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--architecture", choices=("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"), help="published architecture"
    )
    which.add_argument("--width", type=int, help="number of channels after the stem; must be even (RN50: 64)")
    sizes.add_argument(
        "--layers", nargs=4, type=int, metavar="N", help="number of bottlenecks per stage (default: 2 2 2 2)"
    )
    sizes.add_argument("--resolution", type=int, help="side length of CLIP's input images in pixels (default: 64)")
    sizes.add_argument("--embed-dim", type=int, help="embedding dimension (default: 64)")
    sizes.add_argument("--text-width", type=int, help="width of the text tower (default: about 8 * width)")
    sizes.add_argument(
        "--text-layers", type=int, help="depth of the text tower (default: 12, or 2 if the width is below 64)"
    )
    sizes.add_argument(
        "--random-norms", action="store_true", help="randomize batch norms; by default, residual branches start at 0"
    )
    sizes.add_argument(
        "--calibrated-norms",
        action="store_true",
        help="use batch norm statistics of smooth noise, for training from scratch",
    )
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and rejects invalid options immediately

from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture
from famix.clip.export import random_clip, save_clip
from famix_cli.programs import run_program

logger = logging.getLogger("make_random_clip")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command-line program. Exits with status 2 and a one-line error if an argument is invalid."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.architecture and (arguments.layers or arguments.resolution or arguments.embed_dim):
        parser.error(
            "--architecture is mutually exclusive with --layers, --resolution and --embed-dim. Remove them, or use --width."
        )
    architecture = ARCHITECTURES.get(arguments.architecture) or CLIPArchitecture(
        tuple(arguments.layers or (2, 2, 2, 2)), arguments.width, arguments.embed_dim or 64, arguments.resolution or 64
    )

    def write(arguments: argparse.Namespace) -> None:
        model = random_clip(
            architecture,
            seed=arguments.seed,
            text_width=arguments.text_width,
            text_layers=arguments.text_layers,
            random_norms=arguments.random_norms,
            calibrated_norms=arguments.calibrated_norms,
        )
        save_clip(model, arguments.output, arguments.format)
        logger.info("Wrote %s: %s, %.1f MB", arguments.output, architecture, arguments.output.stat().st_size / 1e6)

    if status := run_program(write, arguments):
        sys.exit(status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
