"""Speed of mining, training and evaluation relative to lower bounds and simple implementations, measured in one run.

    python benchmarks/bench.py [--device cuda] [--quick] [--only mining training ...] [--step-crop 768] [--rounds 3]

Each row shows a measurement, a reference measurement, and their ratio. The compared functions take turns, so other load
on the machine affects all of them equally, and each reported time is the minimum over all rounds. The network is CLIP's
RN50 with random weights, and the images are noise or large scenes of the miniature town. The sizes of the run are
printed above the table, and the targets below it. A run takes about 8 minutes on two idle cores.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from parts.common import benchmark_parser

SECTIONS = ("mining", "training", "evaluation")


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__, device=True)
    parser.add_argument("--quick", action="store_true", help="use tiny sizes to test the benchmark")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--step-crop", type=int, metavar="PIXELS", help="side length of the crops in training steps")
    parser.add_argument("--rounds", type=int, help="number of rounds; fast functions run in more of them")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and inputs (default: 0)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the tables to this file")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from speed.mining import mining_rows
from speed.setting import SIZES, Row, Setting, format_table, format_targets
from speed.training import evaluation_rows, training_rows

from famix_minitown.runs.study import describe_machine


def measure(setting: Setting, sections: list[str]) -> Iterator[Row]:
    """Yield the rows of the given sections, and log each of them to standard error."""
    functions = dict(zip(SECTIONS, (mining_rows, training_rows, evaluation_rows), strict=True))
    for section in sections:
        start = time.perf_counter()
        for row in functions[section](setting):
            print(f"  {row.what} / {row.limit_name}: {row.ratio:.3f}", file=sys.stderr, flush=True)
            yield row
        print(f"{section}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark and print its results."""
    args = make_parser().parse_args()
    torch.manual_seed(args.seed)
    sizes = SIZES["quick" if args.quick else args.device.split(":")[0]]
    sizes = replace(sizes, step_crop=args.step_crop or sizes.step_crop, rounds=args.rounds or sizes.rounds)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Setting(sizes, args.device, args.seed, Path(folder)), args.only))
    facts = f"Seed {args.seed}, {(time.perf_counter() - start) / 60:.1f} minutes: {sizes}."
    report = "\n".join([describe_machine(args.device), facts, "", format_table(rows), "", format_targets(rows)])
    print(report)
    if args.report:
        args.report.write_text(report + "\n")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # warnings about random weights
    main()
