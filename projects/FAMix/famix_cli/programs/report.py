"""Page about runs: famix-report."""

import argparse
import sys
from functools import partial

from tqdm import tqdm

from famix.inference.loading import load_model
from famix.io.atomic import require_writable_file, whole_file
from famix.reports.run_page import render_runs
from famix.reports.runs import CONFIG_FILE, Example, predict_examples, read_runs, scored_weights
from famix.utils.errors import ClassesError, FAMixError
from famix_cli.programs import run_program


def write_report(arguments: argparse.Namespace) -> None:
    """Read the runs, predict examples, and write the page."""
    runs = read_runs([run.resolve() if run.is_dir() else run for run in arguments.runs])
    require_writable_file(arguments.output)
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


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    return run_program(write_report, arguments)
