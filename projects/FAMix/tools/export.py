#!/usr/bin/env python
"""Export a trained network to ONNX, torch.export or a checkpoint for inference alone; exports are compared with the network
and timed."""

# ruff: noqa: E402, the parser answers before imports that take seconds

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

# Detectron2 calls functions that newer versions of torch deprecate.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)


ONNX, TORCH_EXPORT, STRIPPED = "onnx", "torch_export", "stripped"
ENDINGS = {ONNX: ".onnx", TORCH_EXPORT: ".pt2", STRIPPED: "_stripped.pth"}
SIZES = ((384, 768), (271, 417))


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: export.py output/famix --format onnx stripped --output shipped"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint or run directory")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=ENDINGS,
        required=True,
        help="onnx, torch_export: graph of a semantic network from RGB images in the range 0-255 to logits, of any size; "
        "stripped: checkpoint of any network for Predictor, demo.py and MODEL.WEIGHTS",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder, or file for a single format (default: folder of the checkpoint)",
    )
    parser.add_argument("--config-file", metavar="FILE", help="(default: the config.yaml beside the checkpoint)")
    parser.add_argument(
        "--float-input",
        action="store_true",
        help="graphs take float32 images instead of uint8, also in the range 0-255",
    )
    parser.add_argument("--half", action="store_true", help="stripped: store weights in half precision")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=parse_size,
        default=SIZES,
        metavar="HxW",
        help=f"image sizes of the comparison and timing (default: {' '.join(f'{h}x{w}' for h, w in SIZES)})",
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs per size; 0 skips the timing (default: 5)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to override"
    )
    return parser


def parse_size(text: str) -> tuple[int, int]:
    """Parse a word such as 512x1024 to (height, width)."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH such as 512x1024, got {text!r}")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    make_parser().parse_args()  # answer --help and mistakes at once

from statistics import median

import torch
from tabulate import tabulate
from torch import Tensor, nn

from famix.inference.export import (
    OPSET,
    Agreement,
    Network,
    OnnxModel,
    SemanticGraph,
    compare,
    export_graph,
    make_image,
    measure_latency,
    require_agreement,
    require_onnx,
    write_onnx,
    write_torch_export,
)
from famix.inference.loading import LoadedModel, load_model, strip_checkpoint
from famix.io.atomic import disk_message, require_writable, whole_file
from famix.reports.report import file_sha256
from famix.utils.errors import ConfigError, FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins


def run(args: argparse.Namespace) -> None:
    """Write all formats.

    Raises:
        FAMixError: the network cannot be loaded or exported, or an export disagrees with it.
    """
    if ONNX in args.format:
        require_onnx()
    loaded = load_model(args.checkpoint, args.config_file, args.opts, "cpu")
    paths = choose_paths(loaded.checkpoint, args.format, args.output)
    print(
        f"{loaded.checkpoint}: {loaded.cfg.MODEL.META_ARCHITECTURE}, {len(loaded.classes.names)} classes, {size_of(loaded.checkpoint)}"
    )
    if {ONNX, TORCH_EXPORT} & paths.keys():
        graph = SemanticGraph(loaded.model, loaded.cfg.INPUT.FORMAT)
        program = export_graph(graph, float_input=args.float_input)
    for name, path in paths.items():
        if name == STRIPPED:
            strip(loaded, path, args)
            continue
        with whole_file(path) as part:
            if name == ONNX:
                facts = {"checkpoint_sha256": file_sha256(loaded.checkpoint), "famix_version": version("famix")}
                write_onnx(program, part, loaded.classes, **facts)
                exported: Network = OnnxModel(part, torch.get_num_threads())
            else:
                write_torch_export(program, part)
                exported = torch.export.load(part).module()
            check(network(loaded.model), exported, path, args)
        kind = "float32" if args.float_input else "uint8"
        opset = f", opset {OPSET}" if name == ONNX else ""
        print(f"{path}: {size_of(path)}{opset}; image (batch, 3, height, width) {kind} RGB -> logits\n")


def strip(loaded: LoadedModel, path: Path, args: argparse.Namespace) -> None:
    """Write a stripped checkpoint, and print the effect of half precision."""
    strip_checkpoint(loaded, path, half=args.half)
    if args.half:
        images = [make_image(size) for size in args.sizes]
        print(format_agreement(compare(network(loaded.model), network(load_model(path, device="cpu").model), images)))
    print(f"{path}: {size_of(path)}{', half precision' if args.half else ''}; config and classes inside\n")


def choose_paths(checkpoint: Path, formats: Sequence[str], output: Path | None) -> dict[str, Path]:
    """Choose the file of each format.

    Raises:
        ConfigError: `output` is a file for several formats, the checkpoint, or cannot be written.
    """
    if output is not None and output.suffix and not output.is_dir():
        if len(formats) > 1:
            raise ConfigError(f"--output must be a folder for {len(formats)} formats, got {output}. Name a folder.")
        paths = {formats[0]: output}
    else:
        folder = checkpoint.parent if output is None else output
        paths = {name: folder / f"{checkpoint.stem}{ENDINGS[name]}" for name in formats}
    for path in paths.values():
        if path.resolve() == checkpoint.resolve():
            raise ConfigError(f"--output must differ from the checkpoint, got {path} for both. Choose another file.")
        require_writable(path.parent)
    return paths


def check(reference: Network, exported: Network, path: Path, args: argparse.Namespace) -> None:
    """Compare an export with its network, and time both.

    Raises:
        WeightsError: they disagree.
    """
    images = [make_image(size) for size in args.sizes]
    images = [image.float() for image in images] if args.float_input else images
    agreements = compare(reference, exported, images)
    print(format_agreement(agreements))
    require_agreement(agreements, path.name)
    if args.runs:
        rows = []
        for image in images:
            times = measure_latency([reference, exported], image, args.runs)
            rows.append([shape_of(image.shape[-2:]), *map(median, times), *map(min, times)])
        kind = path.suffix
        headers = ["height x width", "PyTorch, median", f"{kind}, median", "PyTorch, lowest", f"{kind}, lowest"]
        print(f"\nmilliseconds per image, {args.runs} runs, {torch.get_num_threads()} thread(s)")
        print(tabulate(rows, headers=headers, floatfmt=".1f", tablefmt="github"))


def network(model: nn.Module) -> Network:
    """Wrap a model of Detectron2 as a function of a batch of images."""

    def predict(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        results = model([{"image": image, "height": height, "width": width} for image in images])
        return torch.stack([result["sem_seg"] for result in results])

    return predict


def format_agreement(agreements: Sequence[Agreement]) -> str:
    """Format a comparison as a table."""
    rows = [[shape_of(found.size), f"{found.difference:.1e}", f"{found.equal:.4%}"] for found in agreements]
    headers = ["height x width", "largest difference of softmax", "equal labels"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def shape_of(size: Sequence[int]) -> str:
    """Format height and width."""
    return f"{size[0]} x {size[1]}"


def size_of(path: Path) -> str:
    """Format the size of a file."""
    return f"{path.stat().st_size / 2**20:.1f} MiB"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 2 with one line on stderr if the network cannot be exported.
    """
    args = make_parser().parse_args(argv)
    try:
        load_plugins()
        run(expand_arguments(args))
    except FAMixError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {disk_message(error, 'choose another --output')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())
