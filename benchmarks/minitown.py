"""The miniature town with every control: methods x seeds, and a report with spread, paired tests and the oracle's gap.

    python benchmarks/minitown.py [--configs baseline famix ...] [--seeds 1 2 3 4 5] [--ablations] [--report FILE]

Runs that have a record in benchmarks/results/runs/minitown are not made again; --rerun makes them again, --recorded
makes no run. The seed of a run is also that of its mining, so the spread over seeds contains that of mining. The noise
of method "noise" moves statistics as far as the styles that "famix" mined with the same seed. The bank of "oracle" is
measured first, on labeled images of the tested conditions. Finished runs are kept, stopped ones continue.
"""

# ruff: noqa: E402, the parser comes before imports that take seconds

import argparse
from collections.abc import Sequence
from pathlib import Path

from arguments import study_parser
from minitown_methods import ABLATIONS, METHODS, MINED, Method, Needs


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = study_parser(__doc__, "output/minitown", seeds=(1, 2, 3, 4, 5))
    parser.add_argument("--configs", nargs="+", default=list(METHODS), choices=METHODS, help="methods (default: all)")
    parser.add_argument("--ablations", action="store_true", help=f"also run {', '.join(ABLATIONS)}")
    parser.add_argument("--clip", metavar="WEIGHTS", help="CLIP to start from (default: that of the configs)")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="records of finished runs (default: benchmarks/results/runs/minitown; "
        "with --quick, --clip or settings of your own, a folder of the runs)",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recorded", action="store_true", help="print the recorded runs, make none")
    which.add_argument("--rerun", action="store_true", help="make recorded runs again and replace their records")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import torch
from minitown_report import write_report

from famix.style import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import FAMixError
from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.experiment import CONFIGS, Experiment, condition_of
from famix_minitown.study import RunRecord, Study, record_of

RUNS = Path(__file__).parent / "results/runs/minitown"
SCORED = [
    *(f"minitown_{name}_val" for name in CONDITIONS),
    *(f"minitown_{name}_dev" for name in DEVELOPMENT_CONDITIONS),
]

Run = tuple[str, int]  # method, seed


class Benchmark(Study):
    """METHODS and ABLATIONS x seeds, with records.

    Attributes:
        records: method -> seed -> finished run.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        if arguments.clip:
            self.options += ("MODEL.CLIP.WEIGHTS", arguments.clip)
        ablations = ABLATIONS if arguments.ablations else {}
        self.methods: dict[str, Method] = {name: METHODS[name] for name in arguments.configs} | ablations
        self.folder: Path = arguments.records or (self.output / "records" if self.options else RUNS)
        self.rerun: bool = arguments.rerun
        self.recorded_only: bool = arguments.recorded
        self.records: dict[str, dict[int, RunRecord]] = {}

    def experiment(self, method: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """See Study."""
        chosen = self.methods.get(method) or METHODS[method]
        settings = ("DATASETS.TEST", str(SCORED), *chosen.options, *options)
        return self.make(method, seed, CONFIGS / f"{chosen.config}.yaml", settings)

    def pairs(self) -> list[Run]:
        """Return all runs, seed by seed."""
        return [(name, seed) for seed in self.seeds for name in self.methods]

    def recorded(self, method: str, seed: int) -> RunRecord | None:
        """Return the record of a run if one fits its settings."""
        record = RunRecord.load(self.folder, method, seed)
        fits = record and record.fits(self.experiment(method, seed), self.methods[method].derived)
        return record if fits else None

    def run(self) -> None:
        """Read the records, then make all other runs, those with a bank that others need first.

        Raises:
            FAMixError: only recorded runs are asked for, and there are none.
        """
        found = {run: None if self.rerun else self.recorded(*run) for run in self.pairs()}
        if not self.recorded_only:
            pending = [run for run, record in found.items() if record is None]
            second = [run for run in pending if self.methods[run[0]].needs_mined_bank]
            first = [*((MINED, seed) for _, seed in second), *(run for run in pending if run not in second)]
            found |= self.make_recorded(list(dict.fromkeys(first)))
            found |= self.make_recorded(second)
        for name in self.methods:
            records = {seed: record for seed in self.seeds if (record := found[name, seed]) is not None}
            if records:
                self.records[name] = records
        if not self.records:
            raise FAMixError(f"--recorded needs records of these settings in '{self.folder}', got none. Omit it.")

    def make_recorded(self, runs: Sequence[Run]) -> dict[Run, RunRecord]:
        """Make runs and write the record of each as soon as it is finished."""
        experiments = {self.prepared(*run): run for run in runs}
        records: dict[Run, RunRecord] = {}

        def keep(experiment: Experiment) -> None:
            run = experiments[experiment]
            records[run] = record_of(experiment, run[0])
            records[run].save(self.folder)

        self.run_experiments(experiments, on_finish=keep)
        return records

    def prepared(self, method: str, seed: int) -> Experiment:
        """Return a run with the bank or the noise scale that it needs, which are made first."""
        match self.methods[method].needs if method in self.methods else Needs.NOTHING:
            case Needs.MEASURED_BANK:
                options = ("MODEL.STYLE.BANK", str(self.reference_bank("oracle")))
            case Needs.AGNOSTIC_BANK:
                path = self.output / "banks" / f"{method}_seed{seed}.safetensors"
                class_agnostic_bank(self.mined_bank(MINED, seed)).save(path)
                options = ("MODEL.STYLE.BANK", str(path))
            case Needs.NOISE_SCALE:
                options = self.noise_scale(self.mined_bank(MINED, seed), self.reference_bank("source"))
            case _:
                return self.experiment(method, seed)
        return self.experiment(method, seed, options)

    def reference_bank(self, kind: str) -> Path:
        """Measure a bank on the tested conditions ("oracle") or on the training images ("source")."""
        experiment = self.experiment("oracle" if kind == "oracle" else MINED, self.seeds[0], ("MODEL.STYLE.BANK", ""))
        cfg = experiment.load_config()
        unseen = [name for name in cfg.DATASETS.TEST if name.endswith("_val") and condition_of(name) != CONDITIONS[0]]
        tested = [f"{name.removesuffix('_val')}_train" for name in unseen]
        return self.measured_bank(experiment, tested if kind == "oracle" else list(cfg.DATASETS.TRAIN), kind)

    def report(self, command: str) -> str:
        """See Study."""
        return write_report(self.records, command)


def class_agnostic_bank(bank: StyleBank) -> StyleBank:
    """Return a bank of the same styles, all of class 255: every class draws from them, as it has none of its own."""
    rewritten = StyleBank(bank.metadata)
    rewritten.add(torch.full_like(bank.class_ids, IGNORE_CLASS), bank.mean, bank.std, bank.annotations)
    return rewritten


if __name__ == "__main__":
    arguments = make_parser().parse_args()
    print(Benchmark(arguments).main("minitown.py", arguments.report))
