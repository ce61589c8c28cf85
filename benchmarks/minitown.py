"""The miniature town with every control: methods x seeds, and a report with spread, paired tests and the oracle's gap.

    python benchmarks/minitown.py [--configs baseline famix ...] [--seeds 1 2 3 4 5] [--ablations] [--report FILE]

Runs that have a record in benchmarks/results/runs/minitown are not made again; --rerun makes them again, --recorded
makes no run. The seed of a run is also that of its mining, so the spread over seeds contains that of mining. The noise
of method "noise" moves statistics as far as the styles that "famix" mined with the same seed. The bank of "oracle" is
measured first, on labeled images of the tested conditions. Finished runs are kept, stopped ones continue.
"""

# ruff: noqa: E402, the parser comes before imports that take seconds

import argparse
from pathlib import Path

from common import study_parser
from minitown_methods import ABLATIONS, METHODS, MINED


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

from minitown_report import write_report
from study import Run, Study

from famix.utils.errors import FAMixError
from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.experiment import Experiment, same_settings
from famix_minitown.study import RunRecord

RUNS = Path(__file__).parent / "results/runs/minitown"
SCORED = [
    *(f"minitown_{name}_val" for name in CONDITIONS),
    *(f"minitown_{name}_dev" for name in DEVELOPMENT_CONDITIONS),
]


class Benchmark(Study):
    """METHODS and ABLATIONS x seeds; `records` has the finished runs by method and seed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        methods = {name: METHODS[name] for name in arguments.configs} | (ABLATIONS if arguments.ablations else {})
        super().__init__(arguments, methods, (MINED, METHODS[MINED]), ("DATASETS.TEST", str(SCORED)))
        if arguments.clip:
            self.options += ("MODEL.CLIP.WEIGHTS", arguments.clip)
        self.folder: Path = arguments.records or (self.output / "records" if self.options else RUNS)
        self.rerun, self.recorded_only = arguments.rerun, arguments.recorded
        self.records: dict[str, dict[int, RunRecord]] = {}

    def recorded(self, method: str, seed: int) -> RunRecord | None:
        """Return the record of a run if its settings are those of today."""
        record, derived = RunRecord.load(self.folder, method, seed), self.methods[method].derived
        if record is None or not same_settings(record.settings, self.experiment(method, seed).settings(), derived):
            return None
        return record

    def run(self) -> None:
        """Read the records, then make all other runs and write the record of each as soon as it is finished.

        Raises:
            FAMixError: only recorded runs are asked for, and there are none.
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
                f"no records of these settings in '{self.folder}' for --recorded. Omit it to make the runs."
            )
        self.records = {name: self.records[name] for name in self.methods if name in self.records}

    def report(self, command: str) -> str:
        """See Study."""
        return write_report(self.records, command)


if __name__ == "__main__":
    Benchmark(make_parser().parse_args()).main()
