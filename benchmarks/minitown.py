"""The miniature town with every control: methods x seeds, and a report with spread, paired tests and the oracle's gap.

    python benchmarks/minitown.py [--configs baseline famix ...] [--seeds 1 2 3 4 5] [--ablations] [--report FILE]

Runs that have a record in benchmarks/results/runs/minitown are not made again; --rerun does that, and --recorded makes
none at all. The seed of a run is
that of its mining, too: the spread over seeds contains that of mining. The noise of method "noise" moves statistics as
far as the styles that "famix" mined with the same seed. The bank of "oracle" is measured first, on labelled images of the
tested conditions. Finished runs are kept, stopped ones continue.
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from minitown_methods import ABLATIONS, METHODS, MINED, Method, Needs
from run_arguments import make_run_parser

from famix_arguments import whole_number


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = make_run_parser(__doc__, "output/minitown", seeds=(1, 2, 3, 4, 5))
    parser.add_argument("--configs", nargs="+", default=list(METHODS), choices=METHODS, help="methods (default: all)")
    parser.add_argument("--ablations", action="store_true", help=f"also run {', '.join(ABLATIONS)}")
    parser.add_argument("--clip", metavar="WEIGHTS", help="CLIP to start from (default: that of the configs)")
    parser.add_argument(
        "--quick",
        type=partial(whole_number, lowest=1),
        metavar="N",
        help="train N iterations only, to see that everything works",
    )
    parser.add_argument(
        "--records",
        type=Path,
        metavar="DIR",
        help="folder of the records of finished runs (default: benchmarks/results/runs/minitown, and records in that of "
        "the runs with --quick, --clip or settings of your own)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recorded", action="store_true", help="run nothing: print the runs that have a record")
    which.add_argument("--rerun", action="store_true", help="make runs again that have a record, and replace it")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import torch
from measured_banks import measured_bank
from minitown_report import (
    CHOOSING_SEEDS,
    MAX_COST,
    class_table,
    gain_table,
    language_table,
    score_table,
    scores_of,
    strength_table,
)
from reporting import print_report
from run_records import RUNS, RunRecord, record_of

from famix.mining.noise_matching import matching_noise_scale
from famix.reports.report import describe_occurring
from famix.style import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import FAMixError
from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.experiment import CONFIGS, Experiment, condition_of
from famix_minitown.runner import run_experiments

SCORED = [
    *(f"minitown_{name}_val" for name in CONDITIONS),
    *(f"minitown_{name}_dev" for name in DEVELOPMENT_CONDITIONS),
]

Run = tuple[str, int]  # method, seed


class Benchmark:
    """The runs that a command line asks for.

    Args:
        arguments: see make_parser.

    Attributes:
        records: method -> seed -> finished run.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path = arguments.output
        self.seeds: list[int] = list(dict.fromkeys(arguments.seeds))
        ablations = ABLATIONS if arguments.ablations else {}
        self.runs: dict[str, Method] = {name: METHODS[name] for name in arguments.configs} | ablations
        self.jobs: int = arguments.jobs
        self.options = tuple(arguments.opts)
        if arguments.quick is not None:
            self.options += ("SOLVER.MAX_ITER", str(arguments.quick))
        if arguments.clip:
            self.options += ("MODEL.CLIP.WEIGHTS", arguments.clip)
        self.folder: Path = arguments.records or (self.output / "records" if self.options else RUNS)
        self.rerun: bool = arguments.rerun
        self.recorded_only: bool = arguments.recorded
        self.records: dict[str, dict[int, RunRecord]] = {}

    def run(self) -> None:
        """Read the records, and make all other runs, those first that others take their banks from.

        Raises:
            FAMixError: only recorded runs are asked for, and there is none.
        """
        found = {run: self._recorded(run) for run in self._pairs()}
        pending = [run for run, record in found.items() if record is None and not self.recorded_only]
        second = [run for run in pending if self.runs[run[0]].needs_mined_bank]
        mined = [(MINED, seed) for _, seed in second]
        found |= self._make(list(dict.fromkeys([*mined, *(run for run in pending if run not in second)])))
        found |= self._make(second)
        for name in self.runs:
            records = {seed: record for seed in self.seeds if (record := found[name, seed]) is not None}
            if records:
                self.records[name] = records
        if not self.records:
            raise FAMixError(
                f"--recorded needs a record that fits in {self.folder}, got none; leave it out to make the runs"
            )

    def _pairs(self) -> list[Run]:
        """All runs, seed by seed."""
        return [(name, seed) for seed in self.seeds for name in self.runs]

    def _recorded(self, run: Run) -> RunRecord | None:
        """The record of a run, if there is one that fits."""
        name, seed = run
        record = None if self.rerun else RunRecord.load(self.folder, name, seed)
        return record if record and record.fits(self.experiment(name, seed), self.runs[name].derived) else None

    def _make(self, runs: Sequence[Run]) -> dict[Run, RunRecord]:
        """Make runs; the record of each is written as soon as it is finished."""
        experiments = {self.prepared(*run): run for run in runs}
        records: dict[Run, RunRecord] = {}

        def keep(experiment: Experiment) -> None:
            run = experiments[experiment]
            records[run] = record_of(experiment, run[0], experiment.settings())
            records[run].save(self.folder)

        run_experiments(list(experiments), jobs=self.jobs, on_finish=keep)
        return records

    def experiment(self, name: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """A run of a method."""
        method = self.runs.get(name) or METHODS[name]
        everything = ("DATASETS.TEST", str(SCORED), *self.options, *method.options, *options)
        folder = self.output / name / f"seed{seed}"
        return Experiment(f"{name}/{seed}", CONFIGS / f"{method.config}.yaml", folder, everything, seed)

    def prepared(self, name: str, seed: int) -> Experiment:
        """A run of a method with the bank or the noise that it needs, which are made first."""
        match self.runs[name].needs if name in self.runs else Needs.NOTHING:
            case Needs.MEASURED_BANK:
                options = ("MODEL.STYLE.BANK", str(self.measured_bank("oracle")))
            case Needs.AGNOSTIC_BANK:
                path = self.output / "banks" / f"{name}_seed{seed}.safetensors"
                class_agnostic_bank(self._mined_bank(seed)).save(path)
                options = ("MODEL.STYLE.BANK", str(path))
            case Needs.NOISE_SCALE:
                scale = matching_noise_scale(self._mined_bank(seed), StyleBank.load(self.measured_bank("source")))
                options = (Needs.NOISE_SCALE.value, f"{scale:.6f}")
            case _:
                return self.experiment(name, seed)
        return self.experiment(name, seed, options)

    def _mined_bank(self, seed: int) -> StyleBank:
        return StyleBank.load(self.experiment(MINED, seed).output / "style_bank.safetensors")

    def measured_bank(self, of: str) -> Path:
        """The bank of measured statistics of the tested conditions ("oracle") or of the images trained on ("source").

        It is measured once for the same CLIP and settings.
        """
        config = "oracle" if of == "oracle" else MINED
        experiment = self.experiment(config, self.seeds[0], ("MODEL.STYLE.BANK", ""))
        cfg = experiment.load_config()
        unseen = [name for name in cfg.DATASETS.TEST if name.endswith("_val") and condition_of(name) != CONDITIONS[0]]
        datasets = [f"{name.removesuffix('_val')}_train" for name in unseen]
        return measured_bank(
            experiment, datasets if of == "oracle" else list(cfg.DATASETS.TRAIN), self.output / "banks", of
        )


def class_agnostic_bank(bank: StyleBank) -> StyleBank:
    """A bank of the same styles from which every class draws any: a class without styles draws those of 255."""
    rewritten = StyleBank(bank.metadata)
    rewritten.add(torch.full_like(bank.class_ids, IGNORE_CLASS), bank.mean, bank.std, bank.annotations)
    return rewritten


def write_report(benchmark: Benchmark, command: str) -> str:
    """The report, in Markdown."""
    records, scores = benchmark.records, scores_of(benchmark.records)
    runs = [record for by_seed in records.values() for record in by_seed.values()]
    parts = [
        "# The miniature town",
        f"Printed by `{command}`:",
        describe_runs(runs),
        f"mIoU in percent; {describe_classes(runs)}. Mean ± standard deviation (n - 1) over the seeds; `unseen` is the mean of the tested conditions "
        f"but {CONDITIONS[0]}, `development` that of {', '.join(DEVELOPMENT_CONDITIONS)}, on which settings were chosen.",
        "Gains in points are paired by seed, with p of the two-sided paired t-test.",
        "## Styles over the same training without them",
        language_table(scores),
        "## Scores",
        score_table(scores),
        "## The strength of jitter",
        "Gains over the same method without jitter. Best: the strength that gains most on the development "
        f"conditions, of those that cost at most {MAX_COST:.0f} points on {CONDITIONS[0]}; seeds "
        f"{', '.join(map(str, CHOOSING_SEEDS))}.",
        strength_table(scores),
        "## Gains on the unseen conditions",
        "Gap closed: gain over the baseline as a share of the oracle's, of methods without jitter.",
        gain_table(scores),
    ]
    if scales := noise_scales(benchmark):
        parts.append(f"MODEL.STYLE.NOISE_SCALE of `noise`, matched to the styles of `famix`: {scales}.")
    if "baseline" in records:
        parts += [
            f"IoU of the baseline on {CONDITIONS[0]}, mean over the seeds:",
            class_table(records["baseline"]),
        ]
    return "\n\n".join(parts) + "\n"


def describe_classes(runs: Sequence[RunRecord]) -> str:
    """How many classes the means are over."""
    counts = [len(score["IoU"]) for record in runs for score in record.scores.values()]
    return describe_occurring(counts, int(runs[0].settings["config"]["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]))


def describe_runs(runs: Sequence[RunRecord]) -> str:
    """When, where and with what the runs were made."""
    dates, machines = sorted({run.date for run in runs}), sorted({run.machine for run in runs})
    versions = sorted({" ".join(f"{name} {version}" for name, version in run.versions.items()) for run in runs})
    clips = sorted({str(run.settings["clip_hash"]) for run in runs})
    seeds = sorted({run.seed for run in runs})
    return (
        f"{len(runs)} runs of {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}, on {' and '.join(machines)}, a thread "
        f"each; {' and '.join(versions)}; seeds {', '.join(map(str, seeds))}; CLIP sha256 {' and '.join(clips)}"
    )


def noise_scales(benchmark: Benchmark) -> str:
    """The matched strength of the noise, seed by seed."""
    return ", ".join(
        f"{record.settings['config'].get(Needs.NOISE_SCALE.value, 1.0):.3f} (seed {seed})"
        for seed, record in benchmark.records.get("noise", {}).items()
    )


def main() -> None:
    """Run and print."""
    arguments = make_parser().parse_args()
    benchmark = Benchmark(arguments)
    torch.set_num_threads(1)  # measured banks are the same on every number of cores

    def work(command: str) -> str:
        benchmark.run()
        return write_report(benchmark, command)

    print_report("minitown.py", work, arguments.report)


if __name__ == "__main__":
    main()
