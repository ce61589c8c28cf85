"""Studies that keep a record of each finished run, so that a later call prints the report without the run's folder."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from parts.common import Method

from famix.reports.report import describe_occurring
from famix.utils.errors import FAMixError
from famix_minitown.runs.experiment import Experiment, same_settings
from famix_minitown.runs.study import RunRecord
from studies.study import Run, Study

RUNS = Path(__file__).parents[1] / "results/runs"

Records = Mapping[str, Mapping[int, RunRecord]]  # method -> seed -> run


class RecordedStudy(Study):
    """Study with records. Subclasses implement `report`.

    Args:
        arguments: arguments of `parts.common.study_parser` with records.
        methods, mined, options: see Study.
        name: folder of the records below RUNS, unless the arguments change settings or name a folder.

    Attributes:
        folder: folder of the records.
        records: records by method and seed, filled by `run`.
        derived: settings that follow from runs or files that the study makes, and are not compared with records.
    """

    derived: tuple[str, ...] = ()

    def __init__(
        self,
        arguments: argparse.Namespace,
        methods: dict[str, Method],
        name: str,
        mined: tuple[str, Method] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(arguments, methods, mined, options)
        self.folder: Path = arguments.records or (self.output / "records" if self.options else RUNS / name)
        self.rerun, self.recorded_only = arguments.rerun, arguments.recorded
        self.records: dict[str, dict[int, RunRecord]] = {}

    def recorded(self, method: str, seed: int) -> RunRecord | None:
        """Return the record of a run, or None if it is missing or has different settings."""
        record, derived = RunRecord.load(self.folder, method, seed), (*self.derived, *self.methods[method].derived)
        if record is None or not same_settings(record.settings, self.experiment(method, seed).settings(), derived):
            return None
        return record

    def keep(self, run: Run, experiment: Experiment) -> None:
        """Save the record of a finished run."""
        method, seed = run
        record = RunRecord.of(experiment, method)
        record.save(self.folder)
        self.records.setdefault(method, {})[seed] = record

    def run(self) -> None:
        """Read the records, run the remaining experiments, and record each of them as soon as it finishes.

        Raises:
            FAMixError: only recorded runs are requested, and there are none.
        """
        self.records = {}
        for method, seed in self.pairs():
            if not self.rerun and (record := self.recorded(method, seed)):
                self.records.setdefault(method, {})[seed] = record
        if not self.recorded_only:
            self.make([run for run in self.pairs() if run[1] not in self.records.get(run[0], {})], self.keep)
        if not self.records:
            raise FAMixError(
                f"no records with these settings in '{self.folder}'. Omit --recorded to run the experiments."
            )
        order = [(name, [seed for seed in self.seeds if seed in self.records.get(name, {})]) for name in self.methods]
        self.records = {name: {seed: self.records[name][seed] for seed in seeds} for name, seeds in order if seeds}


def records_of(records: Records) -> list[RunRecord]:
    """Return all records, method by method."""
    return [record for by_seed in records.values() for record in by_seed.values()]


def describe_records(records: Records) -> str:
    """Return a line with the number, dates, machines, versions, seeds and CLIPs of runs."""
    runs = records_of(records)
    dates, machines = sorted({run.date for run in runs}), sorted({run.machine for run in runs})
    versions = sorted({" ".join(f"{name} {version}" for name, version in run.versions.items()) for run in runs})
    clips = sorted({str(run.settings["clip_hash"]) for run in runs})
    return (
        f"{len(runs)} runs of {' to '.join(dict.fromkeys([dates[0], dates[-1]]))} on {' and '.join(machines)}, one "
        f"thread each; {' and '.join(versions)}; seeds {', '.join(map(str, sorted({run.seed for run in runs})))}; "
        f"CLIP sha256 {' and '.join(clips)}"
    )


def describe_classes(records: Records) -> str:
    """Return a phrase with the number of classes that occur in the tested images."""
    runs: Sequence[RunRecord] = records_of(records)
    counts = [len(score["IoU"]) for record in runs for score in record.scores.values()]
    return describe_occurring(counts, int(runs[0].settings["config"]["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]))
