"""Command lines of the benchmarks, apart from PyTorch: --help and mistakes are answered at once."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from famix_arguments import whole_number

__all__ = ["POSITIVE", "benchmark_parser", "study_parser"]

POSITIVE = partial(whole_number, lowest=1)


def benchmark_parser(description: str | None, device: bool = False) -> argparse.ArgumentParser:
    """Make a parser that shows the docstring of a script; `device` adds --device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


def study_parser(description: str | None, output: str, seeds: Sequence[int] = (1, 2, 3)) -> argparse.ArgumentParser:
    """Make a parser with the arguments of `famix_minitown.study.Study`.

    Args:
        description: docstring of the script.
        output: default run directory.
        seeds: default.
    """
    parser = benchmark_parser(description)
    defaults = " ".join(map(str, seeds))
    parser.add_argument("--seeds", nargs="+", type=whole_number, default=list(seeds), help=f"(default: {defaults})")
    parser.add_argument("--jobs", type=POSITIVE, default=2, help="runs side by side, of one thread each (default: 2)")
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="DIR", help=f"folder of the runs (default: {output})"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the report there")
    parser.add_argument("--quick", type=POSITIVE, metavar="N", help="train N iterations only, to test the set-up")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the configs, behind --")
    return parser
