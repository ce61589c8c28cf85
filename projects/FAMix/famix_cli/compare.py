"""Compare runs in one table: mean and standard deviation over the seeds of each method, for each target.

Runs whose configs differ only in seeds and paths belong to the same method. Runs with different datasets, protocols or
classes get separate tables.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from famix_cli import execute


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: %(prog)s output/baseline/seed* output/famix/seed* --baseline baseline --output table.md",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="an OUTPUT_DIR or its results.json")
    grouping = (
        "property that the runs of a method share: config without seeds (default), or only their name, which is the last "
        "part of OUTPUT_DIR without the seed"
    )
    parser.add_argument("--group-by", choices=("config", "method"), default="config", help=grouping)
    metric = "score to compare, e.g. PQ for panoptic models, or mIoU-zero (default: mIoU)"
    parser.add_argument("--metric", default="mIoU", help=metric)
    parser.add_argument("--baseline", metavar="NAME", help="method that gains and their p-values refer to")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table to this .md or .csv file")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.compare", make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
