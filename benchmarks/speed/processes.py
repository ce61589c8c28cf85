"""Mining and training with one and two processes, one thread each: start-up, time per batch, and scaling."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from parts.common import PROJECT

from famix_minitown.runs.study import markdown
from speed.setting import Setting

CONFIG = PROJECT / "configs/minitown/famix_weather.yaml"
LENGTHS = (4, 28)  # batches of the short and the long run
IMAGES = 8  # training images per batch, and in weak scaling per process

Options = Callable[[int], list[str]]  # number of batches -> options of the program


def process_rows(setting: Setting) -> Iterator[str]:
    """Run the command-line program with one and two processes, in short and long runs, and return their table.

    The difference of both lengths is the time of the additional batches, so start-up does not count.
    """
    runs = {
        "training, 8 images per batch": train_options(IMAGES),
        "training, 16 images per batch": train_options(2 * IMAGES),
        "mining": mine_options,
    }
    found = {
        (name, processes): line_through(partial(run_batches, setting.folder, options, processes))
        for name, options in runs.items()
        for processes in (1, 2)
    }
    yield f"The town with one and two processes, one thread each:\n\n{scaling_table(found)}"


def train_options(images: int) -> Options:
    """Return the function from a number of batches to the options of a training run."""
    common = ["MODEL.STYLE.STRATEGY", "noise", "DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", str(images)]
    return lambda batches: [*common, "SOLVER.MAX_ITER", str(batches)]


def mine_options(batches: int) -> list[str]:
    """Return the options of a mining run. Both processes mine half of the batches."""
    return ["--mine-styles-only", "STYLE_MINING.MAX_BATCHES", str(2 * batches)]


def run_batches(folder: Path, options: Options, processes: int, batches: int) -> float:
    """Run the program for a number of batches and return its time in seconds."""
    return run_program(folder, options(batches), processes)


def run_program(folder: Path, options: list[str], processes: int) -> float:
    """Run train_net.py and return its time in seconds."""
    output = folder / "processes"
    shutil.rmtree(output, ignore_errors=True)
    flags = [option for option in options if option.startswith("--")]
    keys = [option for option in options if not option.startswith("--")]
    command = [sys.executable, PROJECT / "train_net.py", "--config-file", CONFIG, "--num-gpus", str(processes), *flags]
    start = time.perf_counter()
    subprocess.run(
        [*map(str, command), *keys, "OUTPUT_DIR", str(output), "DATALOADER.NUM_WORKERS", "0"],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def line_through(seconds: Callable[[int], float], rounds: int = 3) -> tuple[float, float]:
    """Return start-up time and time per batch, given the time of runs of `LENGTHS` batches. The least of several counts."""
    short, long = (min(seconds(length) for _ in range(rounds)) for length in LENGTHS)
    per_batch = (long - short) / (LENGTHS[1] - LENGTHS[0])
    return short - LENGTHS[0] * per_batch, per_batch


def scaling_table(found: dict[tuple[str, int], tuple[float, float]]) -> str:
    """Return the table for (work, processes) -> (start-up, time per batch)."""
    rows = []
    for (name, processes), (start, per_batch) in found.items():
        speedup = found[name, 1][1] / per_batch
        rows.append([name, processes, f"{start:.1f} s", f"{per_batch:.3f} s", f"{speedup:.2f}"])
    strong = markdown(["work", "processes", "start-up and end", "per batch", "faster by"], rows)
    one, two = found["training, 8 images per batch", 1][1], found["training, 16 images per batch", 2][1]
    weak = f"Weak scaling of training, 8 images per process: two processes take {two / one:.2f} times as long per batch as one."
    return f"{strong}\n\n{weak}"
