#!/usr/bin/env python
"""Check datasets: files, sizes, encodings and classes. The exit status says whether all of them can be used."""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from famix_arguments import whole_number

SHOWN = 12  # images of a contact sheet
MOST_WORKERS = 16


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit status: 0 all datasets are usable, 1 problems were found, 2 unknown name or wrong usage. "
        "Example: check.py gta5_train cityscapes_val --sheet sheets/look.png",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="datasets, such as cityscapes_val")
    parser.add_argument(
        "--definition", action="append", default=[], metavar="YAML", help="file that defines own datasets; may be repeated"
    )  # fmt: skip
    parser.add_argument(
        "--sample", default=1000, type=whole_number, metavar="N",
        help="pairs of each dataset whose pixels are read, evenly spaced; 0 reads all (default: 1000). Sizes and ends of "
        "all files are looked at in any case",
    )  # fmt: skip
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG",
        help=f"picture to write, of {SHOWN} images under their labels; several datasets get PNG-NAME.png",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", default=1 << 26, type=whole_number, metavar="N",
        help=f"that a file may have, as INPUT.MAX_PIXELS (default: {1 << 26})",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports for other programs, too")
    parser.add_argument(
        "--workers", default=min(os.cpu_count() or 1, MOST_WORKERS), type=whole_number, metavar="N",
        help="processes (default: one for each processor, at most 16); 0 works in this one",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from famix.data import get_label_readers, register_datasets
from famix.data.check import DatasetReport, check_dataset, evenly_spaced, format_report
from famix.inference.outputs import require_writable
from famix.io.atomic import whole_file
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix.visualization.contact_sheet import draw_contact_sheet

USABLE, PROBLEMS, INTERRUPTED = 0, 1, 130  # exit status; argparse's own, for mistakes on the command line, is 2


def check(name: str, arguments: argparse.Namespace) -> DatasetReport:
    """Check one dataset, print its report and draw its contact sheet."""
    report, sound = check_dataset(
        name, arguments.sample, arguments.workers, show_progress=True, max_pixels=arguments.max_pixels
    )
    print(format_report(report), flush=True)
    if arguments.sheet is not None:
        path = sheet_path(name, arguments)
        if sound:
            sheet = draw_contact_sheet(report, evenly_spaced(sound, SHOWN), arguments.max_pixels)
            with whole_file(path) as part:
                sheet.save(part)
        print(f"{name}: {f'contact sheet in {path}' if sound else 'no contact sheet, since no pair is sound'}")
    print()
    return report


def sheet_path(name: str, arguments: argparse.Namespace) -> Path:
    """Where the contact sheet of a dataset goes."""
    path: Path = arguments.sheet
    return path if len(arguments.names) == 1 else path.with_name(f"{path.stem}-{name}.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status; a mistake on the command line exits with status 2 and one line.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    arguments.names = list(dict.fromkeys(arguments.names))
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        parser.error(f"--sheet {arguments.sheet}: expected a name that ends in .png")
    try:
        load_plugins()
        expand_arguments(arguments)
        register_datasets(arguments.definition)
        get_label_readers(arguments.names)
        for file in filter(None, (arguments.json, arguments.sheet)):
            require_writable(file.parent)  # before the files are looked at, which takes minutes
        reports = [check(name, arguments) for name in arguments.names]
        if arguments.json is not None:
            with whole_file(arguments.json) as part:
                part.write_text(json.dumps([report.as_json() for report in reports], indent=2) + "\n")
    except (FAMixError, OSError) as error:
        parser.error(str(error))
    except BrokenExecutor:
        parser.error("a process was ended from outside, probably for lack of memory: try fewer --workers")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    return USABLE if not any(report.problems for report in reports) else PROBLEMS


if __name__ == "__main__":
    sys.exit(main())
