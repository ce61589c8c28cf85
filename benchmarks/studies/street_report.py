"""Reports of the benchmark on real streets: the choice of a method on the source, and its test on the targets."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from famix.io import file_sha256
from famix.reports.tables import format_p, format_spread
from famix_minitown.runs.experiment import condition_of
from famix_minitown.runs.study import markdown
from studies import street_methods
from studies.recorded import Records, describe_classes, describe_records, records_of
from studies.street_methods import CONTROL, with_control
from studies.town_report import Scores, column_names, paired_gains, score_table

MAX_COST = 1.0  # maximum loss of the chosen method on unchanged source images in points, relative to the control
HELD, UNSEEN = "held", "unseen"
_CONTROL = "control"


def scores_of(records: Records) -> Scores:
    """Collect the mIoU on each tested dataset."""
    return {name: {seed: run.miou for seed, run in by_seed.items()} for name, by_seed in records.items()}


def write_choice(records: Records, command: str) -> str:
    """Return the report of the stage "choose" in Markdown. `command` is the command line that prints it."""
    scores = scores_of(records)
    rows = []
    for name, runs in scores.items():
        gains = {column: paired_gains(scores, name, _CONTROL, column) for column in (HELD, UNSEEN)}
        cells = [format_spread(by, "+") if by and name != _CONTROL else "" for by in gains.values()]
        values = [format_spread([run[column] for run in runs.values()]) for column in (HELD, UNSEEN)]
        rows.append([name, *values, *cells])
    chosen = choose(scores)
    parts = [
        "# Real streets: choice of the method on the source",
        f"Printed by `{command}`:",
        describe_records(records),
        f"mIoU in percent; {describe_classes(records)}. `held` is a fifth of the source's images, `unseen` the same images "
        "with effects that no style word names. The chosen method has the largest gain on `unseen` among those that lose "
        f"at most {MAX_COST:.0f} point on `held`. No target was read.",
        markdown(["method", HELD, UNSEEN, f"{HELD} vs. {_CONTROL}", f"{UNSEEN} vs. {_CONTROL}"], rows),
        f"Chosen: {chosen or 'none'}",
    ]
    return "\n\n".join(parts) + "\n"


def choose(scores: Scores) -> str | None:
    """Return the method with the largest gain on unseen effects among those that cost at most MAX_COST, or None."""
    gains = {}
    for name in scores.keys() - {_CONTROL}:
        held, unseen = (paired_gains(scores, name, _CONTROL, column) for column in (HELD, UNSEEN))
        if unseen and fmean(held) >= -MAX_COST:
            gains[name.removesuffix("_control")] = fmean(unseen)
    return max(sorted(gains), key=gains.__getitem__) if gains else None


def write_report(records: Records, command: str, targets: Sequence[str], files: Sequence[Path]) -> str:
    """Return the report of the stage "score" in Markdown.

    Args:
        records: runs to report.
        command: command line that prints it.
        targets: names of the target datasets.
        files: existing checkpoints, which are listed with their size and hash.
    """
    scores, heads = scores_of(records), [condition_of(name) for name in targets]
    own = [column for column in column_names(scores) if column not in heads]
    parts = [
        "# Real streets",
        f"Printed by `{command}`:",
        describe_records(records),
        f"mIoU in percent; {describe_classes(records)}. Mean ± standard deviation (n - 1) over the seeds. "
        f"Targets: {', '.join(heads)}. Held-out images of the source: {', '.join(own)}. The method `{street_methods.CHOSEN}` was fixed "
        f"before targets were scored. `{_CONTROL}` is {' '.join(CONTROL)}.",
        score_table(scores),
    ]
    for reference in (_CONTROL, with_control("effects")):
        table = gain_table(scores, reference, [*heads, *own])
        if table:
            parts += [
                f"Differences from `{reference}` in points, paired by seed, with p-values of the two-sided paired t-test:",
                table,
            ]
    rows = [
        [run.method, str(run.seed), *(f"{value:.1f}" for value in run.miou.values())] for run in records_of(records)
    ]
    parts += ["Every seed:", markdown(["method", "seed", *column_names(scores)], rows)]
    if files:
        listed = [[f"`{path}`", f"{path.stat().st_size / 1e6:.1f}", f"`{file_sha256(path)}`"] for path in files]
        parts += ["Files of these runs:", markdown(["file", "MB", "SHA-256"], listed)]
    return "\n\n".join(parts) + "\n"


def gain_table(scores: Scores, reference: str, columns: Sequence[str]) -> str:
    """Return a table of the differences from a reference on each dataset, or "" without pairs of runs."""
    rows = []
    for name in scores:
        gains = [paired_gains(scores, name, reference, column) for column in columns]
        if name != reference and all(gains):
            cells = [text for by in gains for text in (format_spread(by, "+"), format_p(by))]
            rows.append([name, *cells, str(len(gains[0]))])
    heads = [text for column in columns for text in (column, "p")]
    return markdown(["method", *heads, "seeds"], rows) if rows else ""
