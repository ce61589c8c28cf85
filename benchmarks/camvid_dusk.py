"""Training on CamVid's daytime images and evaluation at dusk, with color jitter, noise, FAMix and combinations.

    DETECTRON2_DATASETS=... python benchmarks/camvid_dusk.py [--seeds 1 2 3] [--clip FILE] [--report FILE]

The town's CLIP is first fine-tuned on crops of CamVid's daytime images in all looks, which takes about ten minutes; use
--clip to skip this step. All methods train the same layers for the same number of iterations. Each run uses its seed
for both mining and training. Finished runs are kept, and interrupted runs are resumed.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import subprocess
import sys
from pathlib import Path

from parts.common import PROJECT, Method, Needs, study_parser


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = study_parser(__doc__, "output/camvid_dusk")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="CLIP to start from (default: train one first)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

from studies.study import Study

from famix.reports.tables import format_p, format_spread
from famix.utils.errors import FAMixError
from famix_minitown.datasets import CLIP_FILE
from famix_minitown.runs.experiment import read_occurring
from famix_minitown.runs.study import markdown

CONFIG = "CamVid/famix_dusk.yaml"
TARGETS = {"day": "camvid_val_day", "dusk": "camvid_val_dusk"}
NO_JITTER = ("INPUT.COLOR_JITTER", "[0.0, 0.0, 0.0]")
METHODS = {
    "none": Method(CONFIG, ("MODEL.STYLE.STRATEGY", "none", *NO_JITTER)),
    "colour jitter": Method(CONFIG, ("MODEL.STYLE.STRATEGY", "none")),
    "noise": Method(CONFIG, ("MODEL.STYLE.STRATEGY", "noise", *NO_JITTER), needs=Needs.NOISE_SCALE),
    "FAMix": Method(CONFIG, NO_JITTER),
    "FAMix and jitter": Method(CONFIG),
    "FAMix 1x1": Method(CONFIG, ("MODEL.STYLE.GRID", "[1, 1]", *NO_JITTER)),
}
CLIP_TRAINING = ("--steps", "800", "--learning-rate", "5e-4", "--warmup", "20", "--threads", "1")


class Benchmark(Study):
    """Study that runs METHODS with several seeds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.clip: Path = arguments.clip or arguments.output / "clip.safetensors"
        options = ("MODEL.CLIP.WEIGHTS", str(self.clip))
        super().__init__(arguments, dict(METHODS), ("FAMix", METHODS["FAMix"]), options)

    def run(self) -> None:
        """Train the CLIP on crops of the daytime images if needed, then run all experiments.

        Raises:
            FAMixError: training the CLIP failed. The messages of the training program precede this error.
        """
        if not self.clip.exists():
            plan = ["--dataset", "camvid_train_day", "--initial", CLIP_FILE, *CLIP_TRAINING, "--output", self.clip]
            tool = PROJECT / "tools/train_mini_clip.py"
            if subprocess.run([sys.executable, str(tool), *map(str, plan)], check=False).returncode:
                raise FAMixError("Training the CLIP failed. See the messages above.")
        super().run()

    def scores(self, name: str, target: str) -> list[float]:
        """Return the mIoU on a target for each seed."""
        return [self.results(name, seed)[TARGETS[target]]["sem_seg"]["mIoU"] for seed in self.seeds]

    def report(self, command: str) -> str:
        """See Study."""
        baseline = self.scores("none", "dusk")
        rows = []
        for name in self.methods:
            dusk = self.scores(name, "dusk")
            gains = [value - reference for value, reference in zip(dusk, baseline, strict=True)]
            gain = [format_spread(gains, "+"), format_p(gains)] if name != "none" else ["", ""]
            day = format_spread(self.scores(name, "day"))
            rows.append([name, day, format_spread(dusk), *gain, self.minutes(name)])
        parts = [
            "# CamVid, from day to dusk",
            f"Printed by `{command}`:",
            self.describe_runs(),
            f"Seeds {', '.join(map(str, self.seeds))}. mIoU in percent; "
            f"{read_occurring(self.experiment('none', self.seeds[0]).output)}. Mean ± standard deviation (n - 1) over "
            "the seeds. Gains vs. `none` are in points, paired by seed, with p-values of the two-sided paired t-test.",
            markdown(["method", "day", "dusk", "gain at dusk", "p", "minutes"], rows),
        ]
        return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    Benchmark(make_parser().parse_args()).main()
