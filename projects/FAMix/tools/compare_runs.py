#!/usr/bin/env python
"""Compare runs in one table: mean and standard deviation over the seeds of each method, for each target.

Runs whose configs differ only in seeds and paths belong to the same method. Runs with different datasets, protocols or
classes get separate tables.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: compare_runs.py output/baseline/seed* output/famix/seed* --baseline baseline --output table.md",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="an OUTPUT_DIR or its results.json")
    grouping = (
        "property that the runs of a method share: config without seeds (default), or only their name, which is the "
    )
    grouping += "last part of OUTPUT_DIR without the seed"
    parser.add_argument("--group-by", choices=("config", "method"), default="config", help=grouping)
    metric = "score to compare, e.g. PQ for panoptic models, or mIoU-zero (default: mIoU)"
    parser.add_argument("--metric", default="mIoU", help=metric)
    parser.add_argument("--baseline", metavar="NAME", help="method that gains and their p-values refer to")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table to this .md or .csv file")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # fast --help and usage errors

from famix.io.atomic import whole_file
from famix.reports import RESULTS_FILE, read_report
from famix.reports.comparison import compare_reports, format_comparisons, require_baseline, write_comparisons_csv
from famix.utils.errors import ConfigError, FAMixError
from famix.utils.paths import expand_arguments

FORMATS = {".md": format_comparisons, ".csv": write_comparisons_csv}


def compare(arguments: argparse.Namespace) -> str:
    """Return the tables in Markdown, and write the output file."""
    output: Path | None = arguments.output
    if output is not None and output.suffix not in FORMATS:
        raise ConfigError(f"--output must end in {' or '.join(FORMATS)}, got '{output}'. Rename the file.")
    paths = [run / RESULTS_FILE if run.is_dir() else run for run in arguments.runs]
    reports = {os.path.realpath(path): read_report(path) for path in paths}
    comparisons = compare_reports(reports, arguments.group_by, arguments.metric)
    require_baseline(arguments.baseline, [group.name for comparison in comparisons for group in comparison.groups])
    if output is not None:
        with whole_file(output) as part:
            part.write_text(FORMATS[output.suffix](comparisons, arguments.baseline))
    return format_comparisons(comparisons, arguments.baseline)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints one line and exits with status 2."""
    try:
        print(compare(expand_arguments(make_parser().parse_args(argv))), end="")
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
