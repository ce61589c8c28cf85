"""Cost of evaluation protocols: number of images passed to the network, and pixels and time relative to `native`.

The network has the miniature town's CLIP and a random decoder and predicts a noise image. Every round measures each
protocol right after `native`, so other load on the machine affects both equally. The table shows the median, minimum
and maximum of these ratios. On a CPU, processor time is measured.

    python benchmarks/protocols.py [--protocols half flip ...] [--size 1024 2048] [--rounds 3] [--device cuda]
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import time
from statistics import median

from parts.common import POSITIVE, PROJECT, benchmark_parser

PROTOCOLS = (
    "half", "ensemble", "famix0.5", "famix1+0.5", "flip", "multiscale", "multiscale+flip", "slide512", "slide1024",
    "slide1024+flip", "fit1024x512+slide512", "short1024", "robustnet1536", "robustnet1536released",
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__, device=True)
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS, help="protocols (default: those in the results)")
    parser.add_argument("--size", type=POSITIVE, nargs=2, default=(1024, 2048), metavar=("H", "W"), help="in pixels")
    parser.add_argument("--rounds", type=POSITIVE, default=3, help="(default: 3)")
    parser.add_argument("--window-batch", type=POSITIVE, default=1, help="windows per forward pass (default: 1)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from detectron2.modeling import build_model
from torch import nn

from famix.engine import load_config
from famix.evaluation.protocols.inference import ProtocolInference
from famix.evaluation.protocols.protocol import parse_protocol
from famix.utils.errors import ConfigError
from famix_minitown.datasets import register
from famix_minitown.runs.study import describe_machine, markdown

CONFIG = PROJECT / "configs/minitown/baseline.yaml"
NATIVE = "native"


def run(model: nn.Module, name: str, image: torch.Tensor, window_batch: int = 1) -> float:
    """Return the time in seconds to predict one image under a protocol."""
    inference = ProtocolInference(model, parse_protocol(name), window_batch)
    clock = time.perf_counter if image.is_cuda else time.process_time
    start = clock()
    with torch.no_grad():
        scores = inference([{"image": image}])[0]["sem_seg"]
    scores[0, 0, 0].item()  # waits for the device
    return clock() - start


def main() -> None:
    """Run the benchmark and print its results."""
    parser = make_parser()
    args = parser.parse_args()
    names = list(dict.fromkeys([NATIVE, *args.protocols]))
    try:
        for name in names:
            parse_protocol(name)
    except ConfigError as error:
        parser.error(str(error))
    register()
    torch.manual_seed(0)
    model = build_model(load_config(str(CONFIG), ["MODEL.DEVICE", args.device])).eval()
    image = torch.randint(0, 256, (3, *args.size), dtype=torch.uint8).to(args.device)
    shown: dict[str, list[int]] = {name: [] for name in names}  # number of pixels in each image passed to the network
    for name, pixels in shown.items():  # also warms up
        hook = model.register_forward_pre_hook(
            lambda _, inputs, pixels=pixels: pixels.extend(each["image"][0].numel() for each in inputs[0])
        )
        run(model, name, image)
        hook.remove()
    natives: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            natives.append(run(model, NATIVE, image))
            ratios[name].append(run(model, name, image, args.window_batch) / natives[-1])
    rows = []
    for name, values in ratios.items():
        relative = sum(shown[name]) / sum(shown[NATIVE]), median(values), min(values), max(values)
        rows.append([name, len(shown[name]), *(f"{value:.2f}" for value in relative)])
    print(describe_machine(args.device))
    size = f"{args.size[0]} x {args.size[1]} pixels, {args.rounds} rounds, {args.window_batch} window(s) per pass"
    print(f"{size}, native: {median(natives):.2f} s\n")
    print(markdown(["protocol", "images", "pixels", "time", "min", "max"], rows))


if __name__ == "__main__":
    main()
