#!/usr/bin/env python
"""Check datasets: files, sizes, encodings and classes. The exit status is 0 if all datasets are usable."""

# ruff: noqa: E402, the parser precedes imports that take seconds

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from famix_arguments import whole_number

SHOWN = 12  # images in a contact sheet
MOST_WORKERS = 16


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit status: 0 if all datasets are usable, 1 if problems were found, 2 for unknown names or wrong usage. "
        "Example: check.py gta5_train cityscapes_val --sheet look.png",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="dataset names, such as cityscapes_val")
    parser.add_argument(
        "--definition", action="append", default=[], metavar="YAML", help="definition file for your datasets; may be repeated"
    )  # fmt: skip
    parser.add_argument(
        "--sample", default=1000, type=whole_number, metavar="N",
        help="number of evenly spaced pairs to decode per dataset; 0 decodes all (default: 1000). The headers and ends "
        "of all files are always read",
    )  # fmt: skip
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG",
        help=f"draw a contact sheet of {SHOWN} labeled images; several datasets get one file each, named PNG-NAME.png",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", default=1 << 26, type=whole_number, metavar="N",
        help=f"maximum number of pixels per image, as in INPUT.MAX_PIXELS (default: {1 << 26})",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports to this JSON file")
    parser.add_argument(
        "--workers", default=min(os.cpu_count() or 1, MOST_WORKERS), type=whole_number, metavar="N",
        help="number of worker processes (default: one per CPU core, at most 16); 0 uses the main process",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and usage errors need no imports

from famix.data import get_label_readers, register_datasets
from famix.data.check import DatasetReport, check_dataset, evenly_spaced, format_report
from famix.io.atomic import require_writable, whole_file
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix.visualization.contact_sheet import draw_contact_sheet

USABLE, PROBLEMS, INTERRUPTED = 0, 1, 130  # exit statuses; argparse exits with 2 for usage errors


def check(name: str, arguments: argparse.Namespace) -> DatasetReport:
    """Check one dataset, print its report and draw its contact sheet."""
    report, sound = check_dataset(
        name, arguments.sample, arguments.workers, show_progress=True, max_pixels=arguments.max_pixels
    )
    print(format_report(report), flush=True)
    path = arguments.sheet
    if path is not None and sound:
        path = path if len(arguments.names) == 1 else path.with_name(f"{path.stem}-{name}.png")
        sheet = draw_contact_sheet(report, evenly_spaced(sound, SHOWN), arguments.max_pixels)
        with whole_file(path) as part:
            sheet.save(part)
        print(f"{name}: contact sheet written to {path}")
    elif path is not None:
        print(f"{name}: no contact sheet, because every pair has a problem")
    print()
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. A user error exits with status 2 and a one-line message."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    arguments.names = list(dict.fromkeys(arguments.names))
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        parser.error(f"--sheet must end in .png, got {arguments.sheet}")
    try:
        load_plugins()
        expand_arguments(arguments)
        register_datasets(arguments.definition)
        get_label_readers(arguments.names)
        for file in filter(None, (arguments.json, arguments.sheet)):
            require_writable(file.parent)  # before the check, which takes minutes
        reports = [check(name, arguments) for name in arguments.names]
        if arguments.json is not None:
            with whole_file(arguments.json) as part:
                part.write_text(json.dumps([report.as_json() for report in reports], indent=2) + "\n")
    except (FAMixError, OSError) as error:
        parser.error(str(error))
    except BrokenExecutor:
        parser.error("a worker process was killed, probably because memory ran out. Use fewer --workers.")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    return USABLE if not any(report.problems for report in reports) else PROBLEMS


if __name__ == "__main__":
    sys.exit(main())
