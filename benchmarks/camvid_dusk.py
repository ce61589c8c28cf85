"""From day to dusk on real images: no randomisation, colour jitter, noise, FAMix, both, and FAMix with one style a picture.

    DETECTRON2_DATASETS=... python benchmarks/camvid_dusk.py [--seeds 1 2 3] [--clip FILE] [--report FILE]

The package's miniature CLIP is first trained further on crops of CamVid's day images in all looks, which takes about
ten minutes; --clip takes one that is there. All methods train the same layers of it for as long. The seed of a run is that
of its mining, too. What is finished is kept, what was stopped continues.
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from run_arguments import make_run_parser


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = make_run_parser(__doc__, "output/camvid_dusk")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="CLIP to start from (default: one is trained first)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import torch
from machine import describe_machine
from measured_banks import measured_bank
from project import PROJECT
from reporting import print_report, processors_of
from tabulate import tabulate

from famix.mining.noise_matching import matching_noise_scale
from famix.reports import RESULTS_FILE, read_results
from famix.reports.significance import format_p, format_spread
from famix.style import StyleBank
from famix.utils.errors import FAMixError
from famix_minitown.experiment import Experiment, read_occurring
from famix_minitown.runner import run_experiments

CONFIG = PROJECT / "configs/CamVid/famix_dusk.yaml"
TARGETS = {"day": "camvid_val_day", "dusk": "camvid_val_dusk"}
NO_JITTER = ("INPUT.COLOR_JITTER", "[0.0, 0.0, 0.0]")
METHODS: dict[str, tuple[str, ...]] = {
    "none": ("MODEL.STYLE.STRATEGY", "none", *NO_JITTER),
    "colour jitter": ("MODEL.STYLE.STRATEGY", "none"),
    "noise": ("MODEL.STYLE.STRATEGY", "noise", *NO_JITTER),
    "FAMix": NO_JITTER,
    "FAMix and jitter": (),
    "FAMix 1x1": ("MODEL.STYLE.GRID", "[1, 1]", *NO_JITTER),
}
NOISE, MINED = "noise", "FAMix"
CLIP_STEPS = 800


class Benchmark:
    """The runs that a command line asks for.

    Args:
        arguments: see make_parser.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path = arguments.output
        self.seeds: list[int] = list(dict.fromkeys(arguments.seeds))
        self.jobs: int = arguments.jobs
        self.clip: Path = arguments.clip or self.output / "clip.safetensors"
        self.options = tuple(arguments.opts)

    def run(self) -> None:
        """Train the CLIP, then make all runs, noise last: it is as strong as the styles that were mined."""
        if not self.clip.exists():
            train_clip(self.clip)
        names = [name for name in METHODS if name != NOISE]
        run_experiments([self.experiment(name, seed) for seed in self.seeds for name in names], jobs=self.jobs)
        run_experiments([self.noise(seed) for seed in self.seeds], jobs=self.jobs)

    def experiment(self, name: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """A run of a method."""
        everything = ("MODEL.CLIP.WEIGHTS", str(self.clip), *METHODS[name], *self.options, *options)
        folder = self.output / name.replace(" ", "_") / f"seed{seed}"
        return Experiment(f"{name}/{seed}", CONFIG, folder, everything, seed)

    def noise(self, seed: int) -> Experiment:
        """The run with noise that moves statistics as far as the styles that were mined with the same seed."""
        mined = self.experiment(MINED, seed)
        own = measured_bank(
            self.experiment(MINED, self.seeds[0]), list(mined.load_config().DATASETS.TRAIN), self.output, "source"
        )
        scale = matching_noise_scale(StyleBank.load(mined.output / "style_bank.safetensors"), StyleBank.load(own))
        return self.experiment(NOISE, seed, ("MODEL.STYLE.NOISE_SCALE", f"{scale:.6f}"))

    def scores(self, name: str, where: str) -> list[float]:
        """mIoU by day or at dusk, seed by seed."""
        outputs = [self.experiment(name, seed).output for seed in self.seeds]
        return [read_results(output / RESULTS_FILE)[TARGETS[where]]["sem_seg"]["mIoU"] for output in outputs]

    def report(self, command: str) -> str:
        """The report, in Markdown."""
        baseline = self.scores("none", "dusk")
        rows = []
        for name in METHODS:
            dusk = self.scores(name, "dusk")
            gains = [value - reference for value, reference in zip(dusk, baseline, strict=True)]
            minutes = fmean(self.experiment(name, seed).seconds() for seed in self.seeds) / 60
            gain = [format_spread(gains, "+"), format_p(gains)] if name != "none" else ["", ""]
            rows.append([name, format_spread(self.scores(name, "day")), format_spread(dusk), *gain, f"{minutes:.1f}"])
        headers = ["method", "day", "dusk", "gain at dusk", "p", "minutes"]
        return "\n\n".join([
            "# CamVid, from day to dusk",
            f"Printed by `{command}`:",
            f"{describe_machine()}; {self.jobs} runs side by side, a thread each, "
            f"on {processors_of(self.experiment(name, seed) for name in METHODS for seed in self.seeds)}",
            f"Seeds {', '.join(map(str, self.seeds))}. mIoU in percent; "
            f"{read_occurring(self.experiment('none', self.seeds[0]).output)}. Mean ± standard deviation "
            "(n - 1) over the seeds; gains over `none` in points, paired by seed, with p of the two-sided paired t-test.",
            tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True),
        ]) + "\n"  # fmt: skip


def train_clip(path: Path) -> None:
    """Train the package's CLIP further on crops of the day images.

    Raises:
        FAMixError: the command failed; it has said why.
    """
    start = PROJECT / "famix_minitown/weights/clip.safetensors"
    settings = ["--dataset", "camvid_train_day", "--initial", str(start), "--steps", str(CLIP_STEPS)]
    plan = [*settings, "--learning-rate", "5e-4", "--warmup", "20", "--output", str(path), "--threads", "1"]
    if subprocess.run([sys.executable, str(PROJECT / "tools/train_mini_clip.py"), *plan]).returncode:
        raise FAMixError("the CLIP could not be trained, for the reason above")


def main() -> None:
    """Run and print."""
    arguments = make_parser().parse_args()
    benchmark = Benchmark(arguments)
    torch.set_num_threads(1)

    def work(command: str) -> str:
        benchmark.run()
        return benchmark.report(command)

    print_report("camvid_dusk.py", work, arguments.report)


if __name__ == "__main__":
    main()
