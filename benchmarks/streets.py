"""Training on real street images of one city, and evaluation in another city and at dusk, with paired tests.

    python benchmarks/streets.py --source camvid|idd_lite --camvid DIR --idd-lite DIR --stage choose
    python benchmarks/streets.py --source camvid|idd_lite --camvid DIR --idd-lite DIR [--report FILE]
    python benchmarks/streets.py --source camvid --recorded

Both datasets are mapped to seven common classes (datasets/streets_*.yaml). The town's CLIP is first fine-tuned on crops
of all training images of the source, or trained from scratch on them with --from-scratch.

The stage "choose" trains candidates on four fifths of these images, and scores them on the rest, rendered with effects
that no style word names. It reads no target. The stage "score" trains the chosen method, which is CHOSEN in
studies/street_methods.py, and the controls: "effects" trains on images that are rendered with the effects in the CLIP's
training crops. Runs with a record are skipped. Use --rerun to repeat them, or --recorded to only print the records.
Finished runs are kept, and interrupted runs are resumed.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
from collections.abc import Sequence
from pathlib import Path

from parts.common import study_parser
from studies import street_methods
from studies.street_methods import (
    CHOOSE,
    FEATURES,
    FEW_SEEDS,
    SCORE,
    SOURCES,
    STAGES,
    methods_of,
    targets_of,
    tested_by,
    with_all_seeds,
)

UPDATES = {"initial": 800, "scratch": 3000}  # of the CLIP


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = study_parser(__doc__, "output/streets", "streets_SOURCE", seeds=(1, 2, 3, 4, 5))
    add = parser.add_argument
    add("--source", required=True, choices=SOURCES, help="dataset to train on")
    add("--stage", default=SCORE, choices=STAGES, help=f"(default: {SCORE})")
    add("--methods", nargs="+", metavar="NAME", help="methods to run (default: all)")
    add("--camvid", type=Path, metavar="DIR", help="CamVid, for runs without a record")
    add("--idd-lite", type=Path, metavar="DIR", help="IDD-lite, for runs without a record")
    add("--from-scratch", action="store_true", help="train the CLIP without the town's weights")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and reject unknown methods, and targets before the method is fixed."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.stage == SCORE and not street_methods.CHOSEN:
        parser.error(
            f"no method is fixed, so targets must not be scored. Run --stage {CHOOSE}, and set CHOSEN in "
            "benchmarks/studies/street_methods.py to its choice."
        )
    known = methods_of(arguments.source, arguments.stage)
    unknown = [name for name in arguments.methods or () if name not in known]
    if unknown:
        parser.error(f"--methods must be some of {', '.join(known)}, got {', '.join(unknown)}.")
    return arguments


if __name__ == "__main__":
    parse_arguments()  # answers --help and usage errors before the slow imports

import math
import os
import subprocess
import sys

from parts.common import PROJECT
from studies.recorded import RecordedStudy
from studies.street_data import FILES, link_dataset, render_effects, render_unseen, unnamed_looks
from studies.street_report import write_choice, write_report
from studies.study import Run

from famix.data import get_dataset_dicts, register_datasets
from famix.data.definition import DATASETS_VARIABLE
from famix.io.checkpointer import LAST_FILE
from famix.utils.errors import FAMixError
from famix_minitown.datasets import CLIP_FILE
from famix_minitown.runs.experiment import Experiment

CLIP_PLANS = {
    "initial": {"--initial": str(CLIP_FILE), "--learning-rate": "5e-4", "--warmup": "20", "--threads": "1"},
    "scratch": {"--threads": "1"},
}


class Benchmark(RecordedStudy):
    """Study of one source in one stage."""

    derived = ("clip_hash",)  # another machine trains a slightly different CLIP; `run` prevents a mixture

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.source, self.is_choosing = arguments.source, arguments.stage == CHOOSE
        self.given: dict[str, Path | None] = {"camvid": arguments.camvid, "idd_lite": arguments.idd_lite}
        self.data: Path = (arguments.output / "data").absolute()
        start, ending = ("scratch", "_scratch") if arguments.from_scratch else ("initial", "")
        updates = min(UPDATES[start], arguments.quick or UPDATES[start])
        self.clip_plan = CLIP_PLANS[start] | {"--steps": str(updates)}
        output: Path = arguments.output / f"{self.source}{ending}"
        self.clip = output / f"clip_{updates}.safetensors"
        own, known = SOURCES[self.source], methods_of(self.source, arguments.stage)
        common = (
            *(
                "DATASETS.FILES",
                str(FILES),
                "DATASETS.TRAIN",
                str([own.dataset("fit" if self.is_choosing else "train")]),
            ),
            *("DATASETS.TEST", str(list(tested_by(self.source, arguments.stage)))),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7", *own.options),
        )
        changed = {**vars(arguments), "output": output / arguments.stage}
        if self.is_choosing:
            changed["seeds"] = arguments.seeds[:1]
        super().__init__(
            argparse.Namespace(**changed),
            methods={name: known[name] for name in arguments.methods or known},
            name=f"streets_{self.source}{ending}{'_choose' * self.is_choosing}",
            mined=None if self.is_choosing else (FEATURES, known[FEATURES]),
            options=common,
        )

    def experiment(self, method: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """See Study. Before the CLIP is trained, the settings are those with the town's CLIP."""
        clip = str(self.clip) if self.clip.exists() else "minitown"
        return super().experiment(method, seed, ("MODEL.CLIP.WEIGHTS", clip, *options))

    def pairs(self) -> list[Run]:
        """See Study. Most rows have fewer seeds."""
        more = with_all_seeds()
        return [run for run in super().pairs() if run[0] in more or run[1] in self.seeds[:FEW_SEEDS]]

    def run(self) -> None:
        """Make the CLIP and the images that missing runs need, and run them.

        Raises:
            FAMixError: a folder is not that of its dataset, the CLIP cannot be trained, or records are from another CLIP.
        """
        kept = [] if self.rerun else [record for run in self.pairs() if (record := self.recorded(*run))]
        if not self.recorded_only and len(kept) < len(self.pairs()):
            self.prepare()
            current = str(self.experiment(*self.pairs()[0]).settings()["clip_hash"])
            others = {str(record.settings["clip_hash"]) for record in kept} - {current}
            if others:
                raise FAMixError(
                    f"the records in '{self.folder}' are from a CLIP with sha256 {', '.join(sorted(others))}, but "
                    f"'{self.clip}' has {current}. Use --rerun to replace them, or --records to keep both."
                )
        super().run()

    def prepare(self) -> None:
        """Link to the datasets that the stage reads, train the CLIP on the source, and render images."""
        for source in [self.source] if self.is_choosing else SOURCES:
            link_dataset(source, self.given[source], self.data)
        os.environ[DATASETS_VARIABLE] = str(self.data)
        register_datasets(FILES)
        train = SOURCES[self.source].dataset("train")
        if not self.clip.exists():
            files = [word for file in FILES for word in ("--definition", file)]
            plan = [word for pair in self.clip_plan.items() for word in pair]
            command = [str(PROJECT / "tools/train_mini_clip.py"), "--dataset", train, *files, *plan]
            places = ["--workers", str(self.jobs), "--output", str(self.clip)]
            if subprocess.run([sys.executable, *command, *places], check=False).returncode:
                raise FAMixError("Training the CLIP failed. See the messages above.")
        settings = [self.experiment(name, self.seeds[0]).load_config() for name in self.methods]
        if self.is_choosing:
            words = [word for cfg in settings for word in cfg.STYLE_MINING.STYLES]
            render_unseen(self.source, unnamed_looks(words), self.data)
        rendered = [cfg.SOLVER for cfg in settings if SOURCES[self.source].dataset("effects") in cfg.DATASETS.TRAIN]
        if rendered:  # as many as the run draws, which are half of all
            copies = math.ceil(rendered[0].MAX_ITER * rendered[0].IMS_PER_BATCH / 2 / len(get_dataset_dicts([train])))
            render_effects(self.source, copies, self.data)

    def report(self, command: str) -> str:
        """See Study."""
        if self.is_choosing:
            return write_choice(self.records, command)
        made = [self.experiment(name, seed).output / LAST_FILE for name, runs in self.records.items() for seed in runs]
        files = [path for path in (self.clip, *made) if path.exists()]
        return write_report(self.records, command, targets_of(self.source), files)


if __name__ == "__main__":
    Benchmark(parse_arguments()).main()
