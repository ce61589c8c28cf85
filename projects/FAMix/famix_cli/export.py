"""Export a trained network to ONNX, torch.export, or an inference-only or adapter-only checkpoint. Graphs are compared
with the network and timed."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from famix_cli import execute

ONNX, TORCH_EXPORT, STRIPPED, ADAPTERS = "onnx", "torch_export", "stripped", "adapters"
ENDINGS = {ONNX: ".onnx", TORCH_EXPORT: ".pt2", STRIPPED: "_stripped.pth", ADAPTERS: "_adapters.pth"}
SIZES = ((384, 768), (271, 417))


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: %(prog)s output/famix --format onnx stripped --output shipped"
    )
    formats = (
        "onnx, torch_export: graph that maps RGB images, with values 0-255, to the logits of a semantic network, or to the "
        "class logits, mask logits and scores of a query head; "
        "stripped: checkpoint of any network, for use with Predictor, demo.py and MODEL.WEIGHTS; adapters: the same "
        "without the backbone's frozen weights, which are then read from MODEL.CLIP.WEIGHTS or MODEL.TIMM.WEIGHTS"
    )
    sizes = f"image sizes for comparison and timing (default: {' '.join(f'{h}x{w}' for h, w in SIZES)})"
    output = "output folder, or file for a single format (default: folder of the checkpoint)"
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint or run directory")
    add("--format", nargs="+", choices=ENDINGS, required=True, help=formats)
    add("--output", type=Path, metavar="PATH", help=output)
    add("--config-file", metavar="FILE", help="config file (default: config.yaml next to the checkpoint)")
    add(
        "--float-input",
        action="store_true",
        help="make graphs expect float32 images, with values 0-255, instead of uint8",
    )
    add("--half", action="store_true", help="store the weights of a stripped checkpoint in half precision")
    add("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="HxW", help=sizes)
    add("--runs", type=int, default=5, help="number of timed runs per size; 0 skips timing (default: 5)")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to override")
    return parser


def parse_size(text: str) -> tuple[int, int]:
    """Parse a size such as 512x1024 into (height, width)."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, e.g. 512x1024, got {text!r}")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.export", make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
