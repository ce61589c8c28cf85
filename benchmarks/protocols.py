"""What evaluation protocols cost: images through the network, pixels and time of each, relative to `native`.

The network is the miniature town's, with a random decoder, on an image of noise. Every round measures `native` and
then every protocol; the table gives the median and the extremes of the rounds' ratios.

    python benchmarks/protocols.py [--protocols half flip ...] [--size 1024 2048] [--rounds 3] [--device cuda]
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from detectron2.modeling import build_model
from machine import describe_machine
from tabulate import tabulate
from torch import nn

from famix.engine import load_config
from famix.evaluation.inference import ProtocolInference
from famix.evaluation.protocols import parse_protocol

CONFIG = Path(__file__).parent.parent / "projects/FAMix/configs/minitown/baseline.yaml"
NATIVE = "native"
PROTOCOLS = (
    "half",
    "ensemble",
    "flip",
    "multiscale",
    "multiscale+flip",
    "slide512",
    "slide1024",
    "slide1024+flip",
    "fit1024x512+slide512",
    "short1024",
    "robustnet1536",
)


def count(model: nn.Module, name: str, image: torch.Tensor) -> tuple[int, int]:
    """Images, and their pixels, that the network gets for one image under a protocol."""
    shown: list[int] = []

    def note(module: nn.Module, arguments: tuple[list[dict[str, torch.Tensor]]]) -> None:
        shown.extend(inputs["image"][0].numel() for inputs in arguments[0])

    handle = model.register_forward_pre_hook(note)
    run(model, name, image)
    handle.remove()
    return len(shown), sum(shown)


def run(model: nn.Module, name: str, image: torch.Tensor, window_batch: int = 1) -> float:
    """Seconds that one image takes under a protocol."""
    inference = ProtocolInference(model, parse_protocol(name), window_batch)
    start = time.perf_counter()
    with torch.no_grad():
        scores = inference([{"image": image}])[0]["sem_seg"]
    scores[0, 0, 0].item()  # waits for the device
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS, help="(default: those of the table)")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"), help="in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--window-batch", type=int, default=1, help="windows at once (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = build_model(load_config(str(CONFIG), ["MODEL.DEVICE", args.device])).eval()
    image = torch.randint(0, 256, (3, *args.size), dtype=torch.uint8)
    names = list(dict.fromkeys([NATIVE, *args.protocols]))
    counts = {name: count(model, name, image) for name in names}  # also warms up
    rounds = [{name: run(model, name, image, args.window_batch) for name in names} for _ in range(args.rounds)]

    rows = []
    for name in names:
        ratios = [seconds[name] / seconds[NATIVE] for seconds in rounds]
        images, pixels = counts[name]
        rows.append([name, images, pixels / counts[NATIVE][1], median(ratios), min(ratios), max(ratios)])
    print(describe_machine(args.device))
    print(
        f"{args.size[0]} x {args.size[1]} pixels, {args.rounds} rounds, {args.window_batch} window(s) at once, native "
        f"{median(seconds[NATIVE] for seconds in rounds):.2f} s\n"
    )
    headers = ["protocol", "images", "pixels", "time", "min", "max"]
    print(tabulate(rows, headers=headers, floatfmt=("", "", ".2f", ".2f", ".2f", ".2f"), tablefmt="github"))


if __name__ == "__main__":
    main()
