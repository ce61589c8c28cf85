"""Speed of rendering the miniature town on one core, for scenes and for the conditions applied to them.

python benchmarks/minitown_rendering.py [--scenes 60] [--size 192 384]
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median

from parts.common import POSITIVE, benchmark_parser

from famix_minitown.rendering.conditions import CONDITIONS, apply_condition
from famix_minitown.rendering.scene import SIZE, render_scene


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--scenes", type=POSITIVE, default=60, help="(default: 60)")
    parser.add_argument("--size", type=POSITIVE, nargs=2, default=SIZE, metavar=("H", "W"), help="in pixels")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import cv2

from famix_minitown.runs.study import describe_machine, markdown

FIRST_SCENE = 500_000


def milliseconds(calls: Iterable[Callable[[], object]]) -> float:
    """Return the median time of the calls in milliseconds."""
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def main() -> None:
    """Run the benchmark and print the table."""
    arguments = make_parser().parse_args()
    cv2.setNumThreads(1)
    size = (arguments.size[0], arguments.size[1])
    render_scene(FIRST_SCENE, size)  # creates the noise that all scenes share
    seeds = range(FIRST_SCENE, FIRST_SCENE + arguments.scenes)
    times = {"scene": milliseconds(partial(render_scene, seed, size) for seed in seeds)}
    scenes = [render_scene(seed, size) for seed in seeds]
    for condition in CONDITIONS:
        spent = milliseconds(partial(apply_condition, scene, condition) for scene in scenes)
        times[f"scene + {condition}"] = times["scene"] + spent
    print(describe_machine())
    print(f"{size[0]} x {size[1]} pixels, median of {arguments.scenes} scenes, one core\n")
    rows = [[name, f"{value:.1f}", f"{1000 / value:.1f}"] for name, value in times.items()]
    print(markdown(["image", "ms", "images/s"], rows))


if __name__ == "__main__":
    main()
