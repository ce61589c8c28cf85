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

from common import POSITIVE, PROJECT, benchmark_parser, load_script

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
from famix.utils.plugins import load_plugins
from famix_minitown.conditions import CONDITIONS, apply_condition
from famix_minitown.scene import render_scene
from famix_minitown.study import describe_machine, markdown

FIRST_SEED = 400_000  # of scenes without other uses
RATE = "10"


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
                demo.run(demo.make_parser().parse_args(arguments))

        run_network()  # warms up
        rounds = [(rates(len(frames), run_network), rates(len(frames), run_demo)) for _ in range(args.rounds)]
    print(describe_machine(args.device))
    print(f"{len(frames)} frames of {size[1]} x {size[0]} pixels, {args.rounds} rounds, {args.config_file.name}\n")
    rows = []
    for place, clock in enumerate(("clock", "processor")):
        values = {
            "frames per second, network alone": [network[place] for network, _ in rounds],
            "frames per second, demo": [demo[place] for _, demo in rounds],
            "demo / network": [demo[place] / network[place] for network, demo in rounds],
        }
        for name, taken in values.items():
            rows.append([f"{name}, by the {clock}", *(f"{f(taken):.2f}" for f in (median, min, max))])
    print(markdown(["", "median", "min", "max"], rows))


if __name__ == "__main__":
    main()
