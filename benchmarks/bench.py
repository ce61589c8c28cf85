"""Speed of mining, training and evaluation relative to lower bounds and simple implementations, measured in one run.

    python benchmarks/bench.py [--device cuda] [--quick] [--only mining training ...] [--step-crop 768] [--rounds 7]

Each row shows a measurement, a reference measurement, and their ratio. The compared functions take turns, so other load
on the machine affects all of them equally; the tables show medians over the rounds, and the range of the ratios. The
network is CLIP's RN50 with random weights, and the images are noise or large scenes of the miniature town. The sizes of
the run are printed above the table, and the targets below it. A run takes about 70 minutes on two cores.

memory compares the lowest peak of five processes. growth fits exponents to runs of three sizes, processes runs the
command-line program with one and two processes, and profiles also measures ConvNeXt-B and ViT-B. These sections use the CPU.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from parts.common import benchmark_parser

SECTIONS = ("mining", "training", "evaluation", "loading", "memory", "growth", "processes", "profiles")
ON_GPU = SECTIONS[:4]


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__, device=True)
    parser.add_argument("--quick", action="store_true", help="use tiny sizes to test the benchmark")
    sections = "sections (default: all, with --device cuda the first four)"
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help=sections)
    parser.add_argument("--step-crop", type=int, metavar="PIXELS", help="side length of the crops in training steps")
    parser.add_argument("--rounds", type=int, help="number of rounds; fast functions run in more of them")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and inputs (default: 0)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the tables to this file")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from speed.evaluation import evaluation_rows, loading_rows
from speed.growth import growth_rows
from speed.memory import memory_rows
from speed.mining import mining_rows
from speed.processes import process_rows
from speed.profiles import profile_rows
from speed.setting import SIZES, Row, Setting, format_table, format_targets
from speed.training import training_rows

from famix_minitown.runs.study import describe_machine

MEASURE: tuple[Callable[[Setting], Iterator[Row | str]], ...] = (
    mining_rows, training_rows, evaluation_rows, loading_rows, memory_rows, growth_rows, process_rows, profile_rows
)  # fmt: skip


def measure(setting: Setting, sections: Sequence[str]) -> Iterator[Row | str]:
    """Yield the rows and paragraphs of the given sections, and log each row to standard error."""
    functions = dict(zip(SECTIONS, MEASURE, strict=True))
    for section in sections:
        start = time.perf_counter()
        for found in functions[section](setting):
            if isinstance(found, Row):
                print(f"  {found.what} / {found.limit_name}: {found.ratio:.3f}", file=sys.stderr, flush=True)
            yield found
        print(f"{section}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark and print its results."""
    args = make_parser().parse_args()
    torch.manual_seed(args.seed)
    sizes = SIZES["quick" if args.quick else args.device.split(":")[0]]
    sizes = replace(sizes, step_crop=args.step_crop or sizes.step_crop, rounds=args.rounds or sizes.rounds)
    sections, start = args.only or (SECTIONS if args.device == "cpu" else ON_GPU), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = list(measure(Setting(sizes, args.device, args.seed, Path(folder)), sections))
    rows = [entry for entry in found if isinstance(entry, Row)]
    facts = f"Seed {args.seed}, {(time.perf_counter() - start) / 60:.1f} minutes: {sizes}."
    tables = [format_table(rows), format_targets(rows)] if rows else []
    texts = [entry for entry in found if isinstance(entry, str)]
    report = "\n\n".join([f"{describe_machine(args.device)}\n{facts}", *tables, *texts])
    print(report)
    if args.report:
        args.report.write_text(report + "\n")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # warnings about random weights
    main()
