"""The frame of benchmarks that take long: what is finished is kept, what is stopped ends in order, the report is last."""

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from famix.errors import FAMixError
from famix.files import whole_file

__all__ = ["make_run_parser", "print_report"]

_FAILED, _INTERRUPTED, _TERMINATED = 1, 130, 143  # exit status


def make_run_parser(description: str | None, output: str, seeds: Sequence[int] = (1, 2, 3)) -> argparse.ArgumentParser:
    """Make a parser with what all benchmarks of several runs and seeds have in common.

    Args:
        description: what --help says.
        output: default of the folder of the runs.
        seeds: default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    said = " ".join(map(str, seeds))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds), help=f"(default: {said})")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, of one thread each (default: 2)")
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="DIR", help=f"folder of the runs (default: {output})"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the configs, behind --")
    return parser


def print_report(script: str, work: Callable[[str], str], file: Path | None) -> None:
    """Do the work of a benchmark and print its report.

    Args:
        script: name of the benchmark's file.
        work: given the command line, makes all runs and returns the report, in Markdown.
        file: for the report, too.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("famix.minitown").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        report = work(shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]))
        if file is not None:
            with whole_file(file) as part:
                part.write_text(report)
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_FAILED)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues where it was", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    print(report)


def _terminate(number: int, frame: object) -> NoReturn:
    """End in order when asked to, so that no run outlives this process."""
    sys.exit(_TERMINATED)
