"""Speed of mining, training and evaluation against their limits: one table, measured in one run.

    python benchmarks/bench.py [--device cuda] [--quick] [--only mining training ...] [--step-crop 768] [--rounds 3]

A row is a measurement, the limit that it is compared with, and their ratio. Contenders take turns, so that other work
on the machine affects all alike; a time is the least of its rounds. The network has the shape of CLIP's RN50 and random
weights; images are noise, or large scenes of the miniature town. The sizes of the run precede the table, the targets
follow it. Two quiet cores take about 8 minutes.
"""

# ruff: noqa: E402, the parser comes before imports that take seconds

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from common import benchmark_parser

SECTIONS = ("mining", "training", "evaluation")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = benchmark_parser(__doc__, device=True)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the benchmark")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--step-crop", type=int, metavar="PIXELS", help="side of the crops of timed training steps")
    parser.add_argument("--rounds", type=int, help="in which contenders take turns; short ones get more")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the tables there")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import torch
from bench_mining import mining_rows
from bench_setting import SIZES, Row, Setting, format_table, format_targets
from bench_training import evaluation_rows, training_rows

from famix_minitown.study import describe_machine


def measure(setting: Setting, sections: list[str]) -> Iterator[Row]:
    """Yield the rows of some sections, each announced on standard error."""
    functions = dict(zip(SECTIONS, (mining_rows, training_rows, evaluation_rows), strict=True))
    for section in sections:
        start = time.perf_counter()
        for row in functions[section](setting):
            print(f"  {row.what}, over {row.limit_name}: {row.ratio:.3f}", file=sys.stderr, flush=True)
            yield row
        print(f"{section}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
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
    logging.disable(logging.WARNING)  # about random weights
    main()
