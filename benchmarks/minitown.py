"""Benchmark of all methods and controls in the miniature town over several seeds, with paired tests.

    python benchmarks/minitown.py [--configs baseline famix ...] [--seeds 1 2 3 4 5] [--ablations] [--report FILE]
    python benchmarks/minitown.py --family vit

Runs with a record in benchmarks/results/runs/minitown are skipped. Use --rerun to repeat them, or --recorded to only
print the records. Each run uses its seed for both mining and training, so the spread over seeds includes mining. The
method "noise" moves statistics as far as the styles that "famix" mined with the same seed. The bank of "oracle" is
measured on labeled images of the tested conditions. Finished runs are kept, and interrupted runs are resumed.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
from collections.abc import Sequence
from pathlib import Path

from parts.common import study_parser
from studies.town_methods import ABLATIONS, CLIPS, METHODS, MINED, methods_of


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = study_parser(__doc__, "output/minitown", seeds=(1, 2, 3, 4, 5))
    parser.add_argument("--configs", nargs="+", choices=METHODS, help="methods to run (default: all)")
    parser.add_argument(
        "--family", default=CLIPS[0], choices=CLIPS, help=f"family of the CLIP (default: {CLIPS[0]}); the other families "
        f"have the methods {', '.join(methods_of(CLIPS[1]))}",
    )  # fmt: skip
    parser.add_argument("--ablations", action="store_true", help=f"also run {', '.join(ABLATIONS)} with the ResNet")
    parser.add_argument("--clip", metavar="WEIGHTS", help="CLIP to start from (default: the CLIP in the configs)")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="folder for records of finished runs (default: "
        "benchmarks/results/runs/minitown or minitown_FAMILY, or OUTPUT/records with --quick, --clip or KEY VALUE)",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recorded", action="store_true", help="print the recorded runs without running anything")
    which.add_argument("--rerun", action="store_true", help="repeat recorded runs and replace their records")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and reject methods that the family lacks."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    known = methods_of(arguments.family)
    absent = [name for name in arguments.configs or () if name not in known] + ["--ablations"] * arguments.ablations
    if absent and arguments.family != CLIPS[0]:
        parser.error(f"--family {arguments.family} has no {', '.join(absent)}. Use some of {', '.join(known)}.")
    return arguments


if __name__ == "__main__":
    parse_arguments()  # answers --help and usage errors before the slow imports

from studies.study import Run, Study
from studies.town_report import write_report

from famix.utils.errors import FAMixError
from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.runs.experiment import Experiment, same_settings
from famix_minitown.runs.study import RunRecord

RUNS = Path(__file__).parent / "results/runs/minitown"
SCORED = [
    *(f"minitown_{name}_val" for name in CONDITIONS),
    *(f"minitown_{name}_dev" for name in DEVELOPMENT_CONDITIONS),
]


class Benchmark(Study):
    """Study of METHODS and ABLATIONS. `records` contains the finished runs by method and seed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        family, known = arguments.family, methods_of(arguments.family)
        methods = {name: known[name] for name in arguments.configs or known}
        methods |= ABLATIONS if arguments.ablations else {}
        records = RUNS
        if family != CLIPS[0]:
            arguments = argparse.Namespace(**{**vars(arguments), "output": arguments.output / family})
            records = RUNS.with_name(f"{RUNS.name}_{family}")
        super().__init__(arguments, methods, (MINED, known[MINED]), ("DATASETS.TEST", str(SCORED)))
        if arguments.clip:
            self.options += ("MODEL.CLIP.WEIGHTS", arguments.clip)
        self.folder: Path = arguments.records or (self.output / "records" if self.options else records)
        self.rerun, self.recorded_only = arguments.rerun, arguments.recorded
        self.records: dict[str, dict[int, RunRecord]] = {}

    def recorded(self, method: str, seed: int) -> RunRecord | None:
        """Return the record of a run, or None if it is missing or has different settings."""
        record, derived = RunRecord.load(self.folder, method, seed), self.methods[method].derived
        if record is None or not same_settings(record.settings, self.experiment(method, seed).settings(), derived):
            return None
        return record

    def run(self) -> None:
        """Read the records, run the remaining experiments, and record each of them as soon as it finishes.

        Raises:
            FAMixError: only recorded runs are requested, and there are none.
        """
        found = {run: record for run in self.pairs() if not self.rerun and (record := self.recorded(*run))}

        def keep(run: Run, experiment: Experiment) -> None:
            found[run] = RunRecord.of(experiment, run[0])
            found[run].save(self.folder)

        if not self.recorded_only:
            self.make([run for run in self.pairs() if run not in found], keep)
        for name, seed in self.pairs():
            if (name, seed) in found:
                self.records.setdefault(name, {})[seed] = found[name, seed]
        if not self.records:
            raise FAMixError(
                f"no records with these settings in '{self.folder}'. Omit --recorded to run the experiments."
            )
        self.records = {name: self.records[name] for name in self.methods if name in self.records}

    def report(self, command: str) -> str:
        """See Study."""
        return write_report(self.records, command)


if __name__ == "__main__":
    Benchmark(parse_arguments()).main()
