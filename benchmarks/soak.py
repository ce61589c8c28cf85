"""Runs that are killed and starved until they finish, damaged files by the hundred, and a memory curve.

Everything is seeded. Every fault must be survived: the bank and the weights of the disturbed runs are compared bit for
bit with those of undisturbed ones. Every damaged file must load or be refused by the package's own error, within 20
seconds, 512 MiB and one readable message; where the format has checksums, random damage must not change what is read.
The exit status is 1 if anything went otherwise.

    python benchmarks/soak.py [--quick] [--faults 6] [--files 500] [--iterations 2000] [--seed 0]
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

QUICK = {"faults": 1, "files": 20, "iterations": 200}
FULL = {"faults": 6, "files": 500, "iterations": 2000}
JUDGED_FROM = 2000  # iterations from which on a memory curve is judged, soak_memory.LONG


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: few of everything")
    parser.add_argument("--faults", type=int, help=f"of every kind (default: {FULL['faults']})")
    parser.add_argument("--files", type=int, help=f"damaged ones of every format (default: {FULL['files']})")
    parser.add_argument(
        "--iterations",
        type=int,
        help=f"of the memory curve (default: {FULL['iterations']}; judged from {JUDGED_FROM} on)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all faults and damage (default: 0)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share few cores; also what makes runs repeatable
warnings.simplefilter("ignore")

import torch
from soak_faults import BATCHES, FaultReport, Mining, Soaked, Training, soak
from soak_files import FORMATS, FileReport, try_files
from soak_memory import FLAT, MemoryCurve, measure_memory
from soak_workspace import make_workspace
from tabulate import tabulate

from famix_minitown.study import describe_machine

ITERATIONS, PERIOD = 60, 10  # of the trainings that are disturbed


def soak_runs(workspace: object, folder: Path, faults: int, seed: int) -> dict[str, dict[str, FaultReport]]:
    """Disturb mining, then training with the bank that undisturbed mining gives; prints what is done meanwhile."""
    reports = {}
    bank = folder / "mining/whole/style_bank.safetensors"
    kinds: list[Soaked] = [Mining(), Training(ITERATIONS, PERIOD, bank)]
    for kind in kinds:
        (folder / kind.name).mkdir()
        start = time.perf_counter()
        reports[kind.name], rounds = soak(kind, workspace, folder / kind.name, faults, seed)
        say(f"{kind.name}: {rounds} runs finished under faults", start)
    return reports


def fault_rows(reports: dict[str, dict[str, FaultReport]]) -> list[list[object]]:
    """Rows of the table of faults."""
    units = {"mining": f"of {BATCHES} batches", "training": f"of {ITERATIONS} iterations"}
    return [
        [what, kind, report.injected, report.survived, _mean(report.lost), max(report.lost, default=0), units[what]]
        for what, of_kind in reports.items()
        for kind, report in of_kind.items()
    ]


def file_rows(reports: dict[str, FileReport]) -> list[list[object]]:
    """Rows of the table of files, with a sum."""
    rows: list[list[object]] = [
        [name, sum(report.counts.values()), report.counts["loaded"], report.counts["refused"], report.counts["wrong"],
         f"{report.slowest:.2f}"]
        for name, report in reports.items()
    ]  # fmt: skip
    sums = [sum(int(str(row[column])) for row in rows) for column in range(1, 5)]
    return [*rows, ["all", *sums, f"{max(report.slowest for report in reports.values()):.2f}"]]


def main() -> int:
    """Soak and print."""
    args = make_parser().parse_args()
    sizes = {**(QUICK if args.quick else FULL), **{k: v for k in FULL if (v := getattr(args, k)) is not None}}

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = make_workspace(folder / "workspace")
        faults = soak_runs(workspace, folder, sizes["faults"], args.seed)
        start = time.perf_counter()
        bank = folder / "mining/whole/style_bank.safetensors"
        memory = measure_memory(workspace, folder, sizes["iterations"], bank)
        say(f"memory: {sizes['iterations']} iterations", start)
    files = {}
    for name in FORMATS:
        start = time.perf_counter()
        files[name] = try_files(name, sizes["files"], args.seed)
        say(f"{name}: {sizes['files']} damaged files", start)
    print_report(faults, files, memory, f"seed {args.seed}, {(time.perf_counter() - begin) / 60:.0f} minutes")
    return report_wrong(faults, files, memory)


def print_report(
    faults: dict[str, dict[str, FaultReport]], files: dict[str, FileReport], memory: MemoryCurve, what: str
) -> None:
    """Print the tables."""
    print(f"{describe_machine()}, {what}\n")
    heads = ["run", "fault", "injected", "survived", "lost, mean", "lost, most", ""]
    print(tabulate(fault_rows(faults), headers=heads, floatfmt=".1f", tablefmt="github"))
    heads = ["damaged files", "tried", "loaded", "refused", "wrong outcomes", "slowest, s"]
    print("\n" + tabulate(file_rows(files), headers=heads, tablefmt="github"))
    row = [memory.iterations, memory.first / 1024, memory.last / 1024, f"{memory.slope:.0f}", memory.verdict]
    slope = "slope, kB per 1,000 iterations"
    heads = ["iterations", "MiB half-way", "MiB at the end", slope, f"flat: below {FLAT:.0f}"]
    print("\n" + tabulate([row], headers=heads, floatfmt=".1f", tablefmt="github"))


def report_wrong(faults: dict[str, dict[str, FaultReport]], files: dict[str, FileReport], memory: MemoryCurve) -> int:
    """Print every wrong outcome on stderr; the exit status."""
    wrong = [
        f"{run}, {kind}: {text}" for run, of in faults.items() for kind, report in of.items() for text in report.wrong
    ]
    wrong += [f"{name}, file {number}: {text}" for name, report in files.items() for number, text in report.wrong]
    wrong += [f"memory grows by {memory.slope:.0f} kB per 1,000 iterations"] * (memory.verdict == "growing")
    for text in wrong:
        print(f"wrong: {text}", file=sys.stderr)
    return 1 if wrong else 0


def say(what: str, start: float) -> None:
    """Tell on stderr what is done."""
    print(f"{what} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else 0.0


if __name__ == "__main__":
    sys.exit(main())
