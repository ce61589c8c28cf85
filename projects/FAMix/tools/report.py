#!/usr/bin/env python
"""Write a self-contained HTML page about runs: scores with gains, classes, confusions, example errors and losses."""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: report.py output/baseline output/famix --output report.html"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR that contains a results.json")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="HTML file, replaced if it exists")
    parser.add_argument("--baseline", metavar="NAME", help="run that gains refer to (default: the first run)")
    examples = "example images per dataset and run (default: 2); 0 requires neither images nor weights"
    parser.add_argument("--examples", default=2, type=int, metavar="N", help=examples)
    parser.add_argument("--device", help="device for predictions (default: a GPU if available)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # fast --help and usage errors

from tqdm import tqdm

from famix.inference.loading import load_model
from famix.io.atomic import whole_file
from famix.reports.run_page import render_runs
from famix.reports.runs import CONFIG_FILE, Example, predict_examples, read_runs, scored_weights
from famix.utils.errors import ClassesError, FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins


def write_report(arguments: argparse.Namespace) -> None:
    """Read the runs, predict examples, and write the page."""
    runs = read_runs([run.resolve() if run.is_dir() else run for run in arguments.runs])
    examples: dict[str, list[Example]] = {}
    notes: list[str] = []
    for run in runs if arguments.examples > 0 else ():
        progress = partial(tqdm, desc=f"examples for {run.name}", mininterval=1.0)
        try:
            loaded = load_model(scored_weights(run), run.folder / CONFIG_FILE, device=arguments.device)
            examples[run.name] = predict_examples(run, loaded, arguments.examples, progress)
        except ClassesError:
            raise  # the page would show wrong class names
        except FAMixError as error:  # the page is useful without examples
            notes.append(f"No examples for {run.name}: {error}")
            print(f"warning: {notes[-1]}", file=sys.stderr)
    page = render_runs(runs, examples, notes, arguments.baseline)
    with whole_file(arguments.output) as part:
        part.write_text(page, encoding="utf-8")
    print(f"wrote {arguments.output}, {len(page) / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints one line and exits with status 2."""
    try:
        load_plugins()
        write_report(expand_arguments(make_parser().parse_args(argv)))
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
