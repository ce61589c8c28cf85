"""Check of datasets, with a report and a contact sheet for each: famix-check."""

import argparse
import json
import sys
from concurrent.futures import BrokenExecutor

from famix.data.check import DatasetReport, check_dataset, evenly_spaced, format_report
from famix.io.atomic import require_writable_file, whole_file
from famix.utils.errors import DatasetError
from famix.visualization.contact_sheet import draw_contact_sheet
from famix_cli.check import SHOWN, make_parser
from famix_cli.programs import register_definitions, run_program

USABLE, PROBLEMS, INTERRUPTED = 0, 1, 130  # exit statuses


def check(name: str, arguments: argparse.Namespace) -> DatasetReport:
    """Check one dataset, print its report and draw its contact sheet."""
    report, sound = check_dataset(
        name, arguments.sample, arguments.workers, show_progress=True, max_pixels=arguments.max_pixels
    )
    print(format_report(report), flush=True)
    path = arguments.sheet
    shown = evenly_spaced(report.unsound, SHOWN // 2)  # problems first
    shown += evenly_spaced(sound, SHOWN - len(shown))
    if path is not None and shown:
        path = path if len(arguments.names) == 1 else path.with_name(f"{path.stem}-{name}.png")
        sheet = draw_contact_sheet(report, shown, arguments.max_pixels)
        with whole_file(path) as part:
            sheet.save(part)
        print(f"{name}: contact sheet written to {path}")
    elif path is not None:
        print(f"{name}: no contact sheet, because there are no pairs")
    print()
    return report


def run(arguments: argparse.Namespace) -> int:
    """Check all datasets and return the exit status."""
    register_definitions(arguments.definition, arguments.names)
    for file in filter(None, (arguments.json, arguments.sheet)):
        require_writable_file(file)  # before the check, which takes minutes
    try:
        reports = [check(name, arguments) for name in arguments.names]
    except BrokenExecutor as error:
        raise DatasetError(
            "A worker process was killed, probably because memory ran out. Use fewer --workers."
        ) from error
    if arguments.json is not None:
        with whole_file(arguments.json) as part:
            part.write_text(json.dumps([report.as_json() for report in reports], indent=2) + "\n")
    return PROBLEMS if any(report.problems for report in reports) else USABLE


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    arguments.names = list(dict.fromkeys(arguments.names))
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        make_parser().error(f"--sheet must end in .png, got {arguments.sheet}")
    try:
        return run_program(run, arguments)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
