"""How far mining, training and evaluation are from what limits them: one table, all of it from one run.

    python benchmarks/bench.py [--device cuda] [--quick] [--only mining passes ...] [--step-crop 768] [--rounds 3]

Every row is a figure, the limit that it is compared with, and their ratio. What is compared takes turns, so that
whatever else the machine does meets both alike; a time is the least of its rounds. The network has the shape of CLIP's
RN50 and random weights; images are noise. Below the table every target stands with what was reached. The sizes of the
run stand above; on two quiet cores it takes about 12 minutes.
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

SECTIONS = ("mining", "passes", "processes", "training", "evaluation", "memory")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--step-crop", type=int, metavar="PIXELS", help="side of the crops of timed training steps")
    parser.add_argument("--rounds", type=int, help="in which what is compared takes turns; where times are short, more")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the tables there, too")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import torch
from bench_evaluation import evaluation_rows
from bench_memory import memory_rows
from bench_mining import mining_rows
from bench_pass import pass_rows, process_rows
from bench_setting import SIZES, Setting
from bench_training import training_rows
from bench_turns import Row, format_table, format_targets

from famix_minitown.study import describe_machine

ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "mining": mining_rows,
    "passes": pass_rows,
    "processes": process_rows,
    "training": training_rows,
    "evaluation": evaluation_rows,
    "memory": memory_rows,
}


def measure(setting: Setting, sections: list[str]) -> Iterator[Row]:
    """Rows of some sections, each announced on standard error as soon as it is there."""
    for section in sections:
        start = time.perf_counter()
        for row in ROWS[section](setting):
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
    minutes = (time.perf_counter() - start) / 60
    report = "\n".join([
        describe_machine(args.device),
        f"Seed {args.seed}, {minutes:.1f} minutes: {sizes}.",
        "",
        format_table(rows),
        "",
        format_targets(rows),
    ])  # fmt: skip
    print(report)
    if args.report:
        args.report.write_text(report + "\n")


if __name__ == "__main__":
    main()
