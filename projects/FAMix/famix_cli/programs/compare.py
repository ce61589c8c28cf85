"""Table of runs with means over seeds: famix-compare."""

import argparse
import os
from pathlib import Path

from famix.io.atomic import whole_file
from famix.reports import RESULTS_FILE, read_report
from famix.reports.comparison import compare_reports, format_comparisons, require_baseline, write_comparisons_csv
from famix.utils.errors import ConfigError
from famix_cli.programs import run_program

FORMATS = {".md": format_comparisons, ".csv": write_comparisons_csv}


def compare(arguments: argparse.Namespace) -> None:
    """Print the tables in Markdown, and write the output file."""
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
    print(format_comparisons(comparisons, arguments.baseline), end="")


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    return run_program(compare, arguments)
