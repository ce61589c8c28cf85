"""Cost of reading, drawing and writing a video: frames per second of the demo over those of the bare network.

The frames, 60 PNGs of 480 x 360 pixels in a folder as CamVid's, are rendered scenes of the miniature town. Every round
first sends the decoded frames through the network alone, then has demo.py make a video of overlays of the folder, from
listing it to closing the video, with the network loaded before. The table has the median and the extremes of the
rounds, by the clock and by the processor time of the program, which other programs do not disturb; that of a GPU is not
in it. The network has a random decoder; weights make no difference.

    python benchmarks/demo_video.py [--frames 60] [--size 360 480] [--rounds 5] [--config-file FILE] [--device cuda]
"""

# ruff: noqa: E402, the parser comes before imports that take seconds

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

from arguments import POSITIVE, benchmark_parser
from project import PROJECT, load_script

CONFIG = PROJECT / "configs/minitown/baseline.yaml"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = benchmark_parser(__doc__, device=True)
    parser.add_argument("--frames", type=POSITIVE, default=60, help="(default: 60)")
    parser.add_argument("--size", type=POSITIVE, nargs=2, default=(360, 480), metavar=("H", "W"), help="in pixels")
    parser.add_argument("--rounds", type=POSITIVE, default=5, help="(default: 5)")
    parser.add_argument("--config-file", type=Path, default=CONFIG, help="(default: the miniature town's baseline)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import torch
from PIL import Image

from famix.engine import Trainer, load_config, save_weights
from famix.inference import Predictor
from famix.inference.images import RGBImage
from famix.utils.plugins import load_plugins
from famix_minitown.conditions import CONDITIONS, apply_condition
from famix_minitown.scene import render_scene
from famix_minitown.study import describe_machine, markdown

FIRST_SEED = 400_000  # of scenes without other uses
RATE = "10"


def write_frames(folder: Path, frames: int, size: tuple[int, int]) -> list[RGBImage]:
    """Render scenes in changing conditions and save them; returns them."""
    folder.mkdir()
    conditions, images = list(CONDITIONS), []
    for number in range(frames):
        scene = render_scene(FIRST_SEED + number, size)
        images.append(apply_condition(scene, conditions[number % len(conditions)]))
        Image.fromarray(images[-1]).save(folder / f"0001TP_{number:06d}.png")
    return images


def rates(frames: int, work: Callable[[], object]) -> tuple[float, float]:
    """Return frames per second by the clock, and per second of the processor."""
    start = time.perf_counter(), time.process_time()
    work()
    return frames / (time.perf_counter() - start[0]), frames / (time.process_time() - start[1])


def main() -> None:
    """Measure and print."""
    args = make_parser().parse_args()
    load_plugins()
    demo, size = load_script("demo.py"), (args.size[0], args.size[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = Trainer.build_model(load_config(str(args.config_file), ["MODEL.DEVICE", args.device]))
        save_weights(model, folder / "model.pth", iterations=0)
        predictor = Predictor.from_checkpoint(folder / "model.pth", args.config_file, device=args.device)
        vars(demo)["load_predictor"] = lambda _: predictor
        frames = write_frames(folder / "frames", args.frames, size)
        arguments = ["--video-input", str(folder / "frames"), "--output", str(folder / "seen.mp4"), "--rate", RATE]

        @torch.inference_mode()
        def run_network() -> None:
            for frame in frames:
                image = torch.from_numpy(frame.transpose(2, 0, 1).copy())
                scores = predictor.inference.model([{"image": image}])[0]["sem_seg"]
            scores[0, 0, 0].item()  # waits for the device

        def run_demo() -> None:
            with redirect_stdout(StringIO()):
                demo.run(demo.make_parser().parse_args(arguments))

        run_network()  # warms up
        rounds = [(*rates(len(frames), run_network), *rates(len(frames), run_demo)) for _ in range(args.rounds)]
    print(describe_machine(args.device))
    print(f"{len(frames)} frames of {size[1]} x {size[0]} pixels, {args.rounds} rounds, {args.config_file.name}\n")
    rows = []
    for name, first, second in (
        ("network alone", (0, 1), None),
        ("demo", (2, 3), None),
        ("demo / network", (2, 3), (0, 1)),
    ):
        for place, clock in enumerate(("clock", "processor")):
            values = [one[first[place]] / (one[second[place]] if second else 1) for one in rounds]
            unit = "" if second else "frames per second, "
            rows.append([f"{unit}{name}, by the {clock}", *(f"{f(values):.2f}" for f in (median, min, max))])
    print(markdown(["", "median", "min", "max"], rows))


if __name__ == "__main__":
    main()
