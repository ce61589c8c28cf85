#!/usr/bin/env python
"""Turn the output folders of runs into one HTML page that can be mailed: scores, classes, confusions, examples, losses."""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: report.py output/baseline output/famix --output report.html"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR with a results.json")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="HTML file, replaced if there")
    parser.add_argument(
        "--examples",
        default=2,
        type=int,
        metavar="N",
        help="images of every data set to label with every run's weights (default: 2); 0 needs neither images nor weights",
    )
    parser.add_argument("--device", help="to label on (default: a GPU where there is one)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from tqdm import tqdm

from famix.io.atomic import whole_file
from famix.reports.run_examples import Example, predict_examples
from famix.reports.run_folder import Run, read_runs
from famix.reports.run_page import render_runs
from famix.utils.errors import ClassesError, FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins

USER_ERROR = 2  # exit status


def write_report(arguments: argparse.Namespace) -> None:
    """Read the runs, label examples, and write the page.

    Raises:
        FAMixError: a folder holds no run, or runs that cannot stand side by side.
        OSError: the page cannot be written.
    """
    runs = read_runs([run.resolve() if run.is_dir() else run for run in arguments.runs])
    examples: dict[str, list[Example]] = {}
    notes: list[str] = []
    for run in runs if arguments.examples > 0 else ():
        try:
            examples[run.name] = label_examples(run, arguments.examples, arguments.device)
        except ClassesError:
            raise  # names in the page would be wrong
        except FAMixError as error:  # the rest of the page is worth having
            notes.append(f"No examples of {run.name}: {error}")
            print(f"warning: {notes[-1]}", file=sys.stderr)
    page = render_runs(runs, examples, notes)
    with whole_file(arguments.output) as part:
        part.write_text(page, encoding="utf-8")
    print(f"wrote {arguments.output}, {len(page) / 1e6:.1f} MB")


def label_examples(run: Run, count: int, device: str | None) -> list[Example]:
    """Examples of a run, with a progress bar."""
    return predict_examples(run, count, device, partial(tqdm, desc=f"examples of {run.name}", mininterval=1.0))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with status 2 and one line on a mistake of the user."""
    try:
        load_plugins()
        write_report(expand_arguments(make_parser().parse_args(argv)))
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
