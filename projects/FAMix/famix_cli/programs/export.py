"""Export of a trained network to a graph or a smaller checkpoint, compared with the network: famix-export."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import famix
from famix.clip.adapters import merge_adapters
from famix.evaluation.protocols.inference import predicts_probabilities
from famix.inference.export import (
    OPSET,
    Network,
    compare,
    export_graph,
    load_onnx,
    load_torch_export,
    make_graph,
    make_image,
    require_agreement,
    require_onnx,
    write_onnx,
    write_torch_export,
)
from famix.inference.loading import load_model, save_adapters, strip_checkpoint
from famix.io import file_sha256
from famix.io.atomic import require_writable, whole_file
from famix.utils.errors import ConfigError
from famix.utils.messages import file_size
from famix_cli.export import ADAPTERS, ENDINGS, ONNX, STRIPPED, TORCH_EXPORT
from famix_cli.programs import run_program


def run(args: argparse.Namespace) -> None:
    """Write all formats. Raises FAMixError if the network cannot be loaded or exported, or if an export disagrees with it."""
    if ONNX in args.format:
        require_onnx()
    loaded = load_model(args.checkpoint, args.config_file, args.opts, "cpu")
    paths = choose_paths(loaded.checkpoint, args.format, args.output)
    architecture, count = loaded.cfg.MODEL.META_ARCHITECTURE, len(loaded.classes.names)
    print(f"{loaded.checkpoint}: {architecture}, {count} classes, {file_size(loaded.checkpoint)}")
    if ADAPTERS in paths:
        path = paths.pop(ADAPTERS)
        save_adapters(loaded, path)
        print(f"{path}: {file_size(path)}; includes config and classes, requires the weights of the backbone\n")
    merge_adapters(loaded.model)
    model: Any = loaded.model
    if getattr(model, "regions", None) is not None:
        model.regions = None
        print("The exports lack the regions that CLIP names (MODEL.MASK_FORMER.CLIP_REGIONS).")
    loaded.cfg.defrost()
    loaded.cfg.MODEL.ADAPTERS.RANK = 0  # the other exports have plain weights
    if {ONNX, TORCH_EXPORT} & paths.keys():
        graph = make_graph(loaded.model, args.sizes[0], loaded.cfg.INPUT.FORMAT)
        sizes = [(pad_side(height, graph.divisor), pad_side(width, graph.divisor)) for height, width in args.sizes]
        if sizes != list(args.sizes):
            print(f"--sizes are rounded up to multiples of {graph.divisor}: {', '.join(f'{h}x{w}' for h, w in sizes)}")
        args.sizes = sizes
        if graph.size:
            print(f"height and width are fixed at {graph.size[0]} x {graph.size[1]}, the first of --sizes")
            args.sizes = [graph.size]
        print("Tracing the network. For large networks and query heads, this takes about a minute.", flush=True)
        program = export_graph(graph, float_input=args.float_input)
    reference = network(loaded.model)
    args.are_logits = not predicts_probabilities(loaded.model)
    for name, path in paths.items():
        if name == STRIPPED:
            strip_checkpoint(loaded, path, half=args.half)
            if args.half and loaded.trained is None:  # otherwise the file has other classes than `reference`
                report(reference, network(load_model(path, device="cpu").model), path, args, is_export=False)
            print(f"{path}: {file_size(path)}{', half precision' if args.half else ''}; includes config and classes\n")
            continue
        with whole_file(path) as part:
            if name == ONNX:
                facts = {"checkpoint_sha256": file_sha256(loaded.checkpoint), "famix_version": famix.__version__}
                write_onnx(program, part, graph, loaded.classes, **facts)
                exported: Network = load_onnx(part, torch.get_num_threads())
            else:
                write_torch_export(program, part)
                exported = load_torch_export(part)
            report(reference, exported, path, args, is_export=True)
        kind = "float32" if args.float_input else "uint8"
        opset = f", opset {OPSET}" if name == ONNX else ""
        sides = ", ".join(map(str, graph.size or ("height", "width")))
        outputs = ", ".join(graph.outputs)
        print(f"{path}: {file_size(path)}{opset}; image (batch, 3, {sides}) {kind} RGB -> {outputs}\n")


def pad_side(side: int, divisor: int) -> int:
    """Round a side up to a multiple of the divisor that an export requires."""
    return -(-side // divisor) * divisor


def choose_paths(checkpoint: Path, formats: Sequence[str], output: Path | None) -> dict[str, Path]:
    """Choose the output file for each format. Raises ConfigError if `output` is unsuitable or not writable."""
    if output is not None and output.suffix and not output.is_dir():
        if len(formats) > 1:
            raise ConfigError(f"--output must be a folder for {len(formats)} formats, got '{output}'. Pass a folder.")
        paths = {formats[0]: output}
    else:
        folder = checkpoint.parent if output is None else output
        paths = {name: folder / f"{checkpoint.stem}{ENDINGS[name]}" for name in formats}
    for path in paths.values():
        if path.resolve() == checkpoint.resolve():
            raise ConfigError(f"--output and the checkpoint are the same file: '{path}'. Choose another file.")
        require_writable(path.parent)
    return paths


def network(model: nn.Module) -> Network:
    """Wrap a Detectron2 model as a function of a batch of images."""

    def predict(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        results = model([{"image": image, "height": height, "width": width} for image in images])
        return torch.stack([result["sem_seg"] for result in results])

    return predict


def report(reference: Network, other: Network, path: Path, args: argparse.Namespace, *, is_export: bool) -> None:
    """Print how closely a network matches its reference. Exports are also timed and raise WeightsError on a mismatch."""
    headers = ["height x width", f"largest {'softmax' if args.are_logits else 'score'} difference", "equal labels"]
    if is_export and args.runs:
        headers += [f"{name}, {kind} ms" for kind in ("median", "lowest") for name in ("PyTorch", path.suffix)]
    rows = []
    for size in args.sizes:
        image = make_image(size)
        if is_export and args.float_input:
            image = image.float()
        difference, equal = compare(reference, other, image, are_logits=args.are_logits)
        row = [f"{size[0]} x {size[1]}", f"{difference:.1e}", f"{equal:.4%}"]
        if is_export:
            require_agreement(difference, equal, size, path.name)
            times = measure_latency([reference, other], image, args.runs)
            row += [f"{of(taken):.1f}" for of in (median, min) for taken in times if taken]
        rows.append(row)
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    if is_export and args.runs:
        print(f"{args.runs} runs per image size, {torch.get_num_threads()} thread(s)")


@torch.no_grad()
def measure_latency(networks: Sequence[Network], image: Tensor, runs: int) -> list[list[float]]:
    """Return the time of each run in milliseconds. Networks alternate, so that other load affects all equally."""
    times: list[list[float]] = [[] for _ in networks]
    for run in range(runs + 1 if runs else 0):
        for network, taken in zip(networks, times, strict=True):
            start = time.perf_counter()
            network(image)
            if run:
                taken.append(1000 * (time.perf_counter() - start))
    return times


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return run_program(run, arguments)
