"""Cost of reading, drawing and writing a video: throughput of demo.py relative to the network alone.

The frames are rendered scenes of the miniature town, by default a folder with 60 PNGs of 480 x 360 pixels, the size of
CamVid's. Each round first runs the network alone on the decoded frames. It then runs demo.py on the folder to write a
video of overlays, with the network already loaded. The table shows the median, minimum and maximum over the rounds, in
wall-clock time and in processor time. Processor time is not affected by other programs and excludes the GPU. The
decoder has random weights, which do not affect the speed.

    python benchmarks/demo_video.py [--frames 60] [--size 360 480] [--rounds 5] [--config-file FILE] [--device cuda]
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

from parts.common import POSITIVE, PROJECT, benchmark_parser

CONFIG = PROJECT / "configs/minitown/baseline.yaml"


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__, device=True)
    parser.add_argument("--frames", type=POSITIVE, default=60, help="number of frames (default: 60)")
    parser.add_argument("--size", type=POSITIVE, nargs=2, default=(360, 480), metavar=("H", "W"), help="frame size")
    parser.add_argument("--rounds", type=POSITIVE, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--config-file", type=Path, default=CONFIG, help="config (default: the town's baseline)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from PIL import Image

from famix.engine import Trainer, load_config, save_weights
from famix.inference import Predictor
from famix.utils.plugins import load_plugins
from famix_cli.demo import make_parser as demo_parser
from famix_cli.programs import demo
from famix_minitown.rendering.conditions import CONDITIONS, apply_condition
from famix_minitown.rendering.scene import render_scene
from famix_minitown.runs.study import describe_machine, markdown

FIRST_SEED = 400_000  # first seed of scenes that no dataset uses
RATE = "10"


def rates(frames: int, work: Callable[[], object]) -> tuple[float, float]:
    """Return frames per second of wall-clock time and of processor time."""
    start = time.perf_counter(), time.process_time()
    work()
    return frames / (time.perf_counter() - start[0]), frames / (time.process_time() - start[1])


def main() -> None:
    """Run the benchmark and print its results."""
    args = make_parser().parse_args()
    load_plugins()
    size = args.size[0], args.size[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = Trainer.build_model(load_config(str(args.config_file), ["MODEL.DEVICE", args.device]))
        save_weights(model, folder / "model.pth", iterations=0)
        predictor = Predictor.from_checkpoint(folder / "model.pth", args.config_file, device=args.device)
        vars(demo)["load_predictor"] = lambda _: predictor
        (folder / "frames").mkdir()
        frames = []
        for number in range(args.frames):
            scene = render_scene(FIRST_SEED + number, size)
            frames.append(apply_condition(scene, CONDITIONS[number % len(CONDITIONS)]))
            Image.fromarray(frames[-1]).save(folder / f"frames/0001TP_{number:06d}.png")
        arguments = ["--video-input", str(folder / "frames"), "--output", str(folder / "seen.mp4"), "--rate", RATE]

        @torch.inference_mode()
        def run_network() -> None:
            for frame in frames:
                image = torch.from_numpy(frame.transpose(2, 0, 1).copy())
                scores = predictor.inference.model([{"image": image}])[0]["sem_seg"]
            scores[0, 0, 0].item()  # waits for the device

        def run_demo() -> None:
            with redirect_stdout(StringIO()):
                demo.run(demo_parser().parse_args(arguments))

        run_network()  # warms up
        rounds = [(rates(len(frames), run_network), rates(len(frames), run_demo)) for _ in range(args.rounds)]
    print(describe_machine(args.device))
    print(f"{len(frames)} frames of {size[1]} x {size[0]} pixels, {args.rounds} rounds, {args.config_file.name}\n")
    rows = []
    for place, clock in enumerate(("wall-clock", "processor")):
        values = {
            "frames per second, network alone": [network[place] for network, _ in rounds],
            "frames per second, demo": [demo[place] for _, demo in rounds],
            "demo / network": [demo[place] / network[place] for network, demo in rounds],
        }
        for name, taken in values.items():
            rows.append([f"{name}, {clock} time", *(f"{f(taken):.2f}" for f in (median, min, max))])
    print(markdown(["", "median", "min", "max"], rows))


if __name__ == "__main__":
    main()
