"""What reading, drawing and writing a video cost the demo: its frames per second over those of the bare network.

The frames, 60 of 480 x 360 pixels, lie as PNGs in a folder, as CamVid's do; they are rendered scenes of the miniature town.
Every round first sends the decoded frames through the network alone, one by one, then has demo.py make a video of
overlays of the folder, from listing it to closing the video, with the network loaded before. The table gives the median and the extremes of the rounds, by
the clock and by the processor time of the program, which other programs on the machine do not disturb; that of a GPU is
not in it. The network is the miniature town's with a random decoder, or that of another config; its weights make no
difference.

    python benchmarks/demo_video.py [--frames 60] [--size 360 480] [--rounds 5] [--config-file FILE] [--device cuda]
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

from project import PROJECT, load_script

CONFIG = PROJECT / "configs/minitown/baseline.yaml"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60, help="(default: 60)")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"), help="in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--config-file", type=Path, default=CONFIG, help="(default: the miniature town's baseline)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import torch
from PIL import Image
from tabulate import tabulate

from famix.data import register_datasets
from famix.engine import Trainer, load_config, save_weights
from famix.inference import Predictor
from famix.inference.images import RGBImage
from famix_minitown.conditions import CONDITIONS, apply_condition
from famix_minitown.scene import render_scene
from famix_minitown.study import describe_machine

FIRST_SEED = 400_000  # of scenes that nothing else uses
RATE = 10.0


def write_frames(folder: Path, frames: int, size: tuple[int, int]) -> list[RGBImage]:
    """Render scenes, each in another condition than the one before, and save them; returns them."""
    folder.mkdir()
    conditions, images = list(CONDITIONS), []
    for number in range(frames):
        scene = render_scene(FIRST_SEED + number, size)
        images.append(apply_condition(scene, conditions[number % len(conditions)]))
        Image.fromarray(images[-1]).save(folder / f"0001TP_{number:06d}.png")
    return images


def make_predictor(config: Path, folder: Path, device: str) -> Predictor:
    """A network with a random decoder."""
    cfg = load_config(str(config), ["MODEL.DEVICE", device])
    register_datasets(cfg.DATASETS.FILES)
    torch.manual_seed(0)
    save_weights(Trainer.build_model(cfg), folder / "model.pth", iterations=0)
    return Predictor.from_checkpoint(folder / "model.pth", config, device=device)


def run_network(predictor: Predictor, frames: Sequence[RGBImage]) -> None:
    """Send frames that lie ready through the network alone."""
    with torch.inference_mode():
        for frame in frames:
            image = torch.from_numpy(frame.transpose(2, 0, 1).copy())
            scores = predictor.inference.model([{"image": image}])[0]["sem_seg"]
    scores[0, 0, 0].item()  # waits for the device


def run_demo(demo: ModuleType, arguments: Sequence[str]) -> None:
    """Have the demo do the same, and more, with files."""
    with redirect_stdout(StringIO()):
        demo.run(demo.make_parser().parse_args(arguments))


def rates(frames: int, function: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """Frames per second by the clock, and per second of the processor."""
    start = time.perf_counter(), time.process_time()
    function(*arguments)
    return frames / (time.perf_counter() - start[0]), frames / (time.process_time() - start[1])


def main() -> None:
    """Measure and print."""
    args = make_parser().parse_args()

    demo, size = load_script("demo.py"), (args.size[0], args.size[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = make_predictor(args.config_file, folder, args.device)
        vars(demo)["load_predictor"] = lambda _: predictor
        frames = write_frames(folder / "frames", args.frames, size)
        arguments = ["--video-input", str(folder / "frames"), "--output", str(folder / "seen.mp4"), "--rate", str(RATE)]
        run_network(predictor, frames[:3])  # warms up
        rows = []
        for _ in range(args.rounds):
            alone = rates(len(frames), run_network, predictor, frames)
            whole = rates(len(frames), run_demo, demo, arguments)
            rows.append([*alone, *whole, *(one / other for one, other in zip(whole, alone, strict=True))])
    print(describe_machine(args.device))
    print(f"{len(frames)} frames of {size[1]} x {size[0]} pixels, {args.rounds} rounds, {args.config_file.name}\n")
    names = [
        f"{what}, by the {clock}"
        for what in ("frames per second, network alone", "frames per second, demo", "demo / network")
        for clock in ("clock", "processor")
    ]
    table = [
        (name, median(values), min(values), max(values))
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    ]
    print(tabulate(table, headers=["", "median", "min", "max"], floatfmt=".2f", tablefmt="github"))


if __name__ == "__main__":
    main()
