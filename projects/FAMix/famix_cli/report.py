"""Write a self-contained HTML page about runs: scores with gains, classes, confusions, example errors and losses."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from famix_cli import execute


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: %(prog)s output/baseline output/famix --output report.html"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR that contains a results.json")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="HTML file, replaced if it exists")
    parser.add_argument("--baseline", metavar="NAME", help="run that gains refer to (default: the first run)")
    examples = "example images per dataset and run (default: 2); 0 requires neither images nor weights"
    parser.add_argument("--examples", default=2, type=int, metavar="N", help=examples)
    parser.add_argument("--device", help="device for predictions (default: a GPU if available)")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.report", make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
