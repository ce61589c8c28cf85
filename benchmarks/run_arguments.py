"""The command line of benchmarks of several runs, apart from what imports PyTorch: --help and a mistake must not wait."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from famix_arguments import whole_number

__all__ = ["make_run_parser"]


def make_run_parser(description: str | None, output: str, seeds: Sequence[int] = (1, 2, 3)) -> argparse.ArgumentParser:
    """Make a parser with what all benchmarks of several runs and seeds have in common.

    Args:
        description: what --help says.
        output: default of the folder of the runs.
        seeds: default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    said = " ".join(map(str, seeds))
    parser.add_argument("--seeds", nargs="+", type=whole_number, default=list(seeds), help=f"(default: {said})")
    parser.add_argument(
        "--jobs",
        type=partial(whole_number, lowest=1),
        default=2,
        help="runs side by side, of one thread each (default: 2)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="DIR", help=f"folder of the runs (default: {output})"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the configs, behind --")
    return parser
