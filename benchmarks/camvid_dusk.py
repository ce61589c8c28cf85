"""From day to dusk on real images: no randomisation, color jitter, noise, FAMix, both, and FAMix with one style an image.

    DETECTRON2_DATASETS=... python benchmarks/camvid_dusk.py [--seeds 1 2 3] [--clip FILE] [--report FILE]

The town's CLIP is first trained further on crops of CamVid's day images in all looks, which takes about ten minutes;
--clip uses an existing one. All methods train the same layers for as long. The seed of a run is also that of its mining.
Finished runs are kept, stopped ones continue.
"""

# ruff: noqa: E402, the parser comes before imports that take seconds

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from arguments import study_parser


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = study_parser(__doc__, "output/camvid_dusk")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="CLIP to start from (default: one is trained first)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from project import PROJECT

from famix.reports.tables import format_p, format_spread
from famix.utils.errors import FAMixError
from famix_minitown.datasets import CLIP_FILE
from famix_minitown.experiment import Experiment, read_occurring
from famix_minitown.study import Study, markdown

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
CLIP_TRAINING = ("--steps", "800", "--learning-rate", "5e-4", "--warmup", "20", "--threads", "1")


class Benchmark(Study):
    """METHODS x seeds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self.clip: Path = arguments.clip or self.output / "clip.safetensors"

    def experiment(self, method: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """See Study."""
        return self.make(method, seed, CONFIG, ("MODEL.CLIP.WEIGHTS", str(self.clip), *METHODS[method], *options))

    def run(self) -> None:
        """Train the CLIP, then make all runs, noise last: its strength is that of the mined styles."""
        if not self.clip.exists():
            train_clip(self.clip)
        names = [name for name in METHODS if name != NOISE]
        self.run_experiments(self.experiment(name, seed) for seed in self.seeds for name in names)
        first = self.experiment(MINED, self.seeds[0])
        source = self.measured_bank(first, list(first.load_config().DATASETS.TRAIN), "source")
        self.run_experiments(
            self.experiment(NOISE, seed, self.noise_scale(self.mined_bank(MINED, seed), source)) for seed in self.seeds
        )

    def scores(self, name: str, target: str) -> list[float]:
        """Return the mIoU on a target, seed by seed."""
        return [self.results(name, seed)[TARGETS[target]]["sem_seg"]["mIoU"] for seed in self.seeds]

    def report(self, command: str) -> str:
        """See Study."""
        baseline = self.scores("none", "dusk")
        rows = []
        for name in METHODS:
            dusk = self.scores(name, "dusk")
            gains = [value - reference for value, reference in zip(dusk, baseline, strict=True)]
            minutes = fmean(self.experiment(name, seed).seconds() for seed in self.seeds) / 60
            gain = [format_spread(gains, "+"), format_p(gains)] if name != "none" else ["", ""]
            rows.append([name, format_spread(self.scores(name, "day")), format_spread(dusk), *gain, f"{minutes:.1f}"])
        runs = (self.experiment(name, seed) for name in METHODS for seed in self.seeds)
        return "\n\n".join([
            "# CamVid, from day to dusk",
            f"Printed by `{command}`:",
            self.describe_runs(runs),
            f"Seeds {', '.join(map(str, self.seeds))}. mIoU in percent; "
            f"{read_occurring(self.experiment('none', self.seeds[0]).output)}. Mean ± standard deviation "
            "(n - 1) over the seeds; gains over `none` in points, paired by seed, with p of the two-sided paired t-test.",
            markdown(["method", "day", "dusk", "gain at dusk", "p", "minutes"], rows),
        ]) + "\n"  # fmt: skip


def train_clip(path: Path) -> None:
    """Train the town's CLIP further on crops of the day images.

    Raises:
        FAMixError: the training failed; its messages precede this one.
    """
    plan = ["--dataset", "camvid_train_day", "--initial", str(CLIP_FILE), *CLIP_TRAINING, "--output", str(path)]
    if subprocess.run([sys.executable, str(PROJECT / "tools/train_mini_clip.py"), *plan], check=False).returncode:
        raise FAMixError("Training the CLIP failed, see the messages above.")


if __name__ == "__main__":
    arguments = make_parser().parse_args()
    print(Benchmark(arguments).main("camvid_dusk.py", arguments.report))
