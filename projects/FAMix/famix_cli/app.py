"""Open a page in the browser that compares networks on pictures, and shows what style words do to them."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from famix_cli import execute, whole_number

EPILOG = """
Examples:
  the networks of the demo   %(prog)s
  two runs                   %(prog)s output/baseline output/famix
  a server for the network   %(prog)s output/famix --host 0.0.0.0 --port 8000      (anyone who reaches it can use it)
The page loads nothing from other addresses and sends nothing to them. Ctrl-C stops it.
"""


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    runs = "run directory, checkpoint or hf://OWNER/NAME (default: the runs in output/demo)"
    add("runs", nargs="*", type=Path, metavar="RUN", help=runs)
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: this machine only)")
    port = partial(whole_number, lowest=1)
    add("--port", type=port, metavar="N", help="port (default: the first free one from 7860)")
    add("--device", help="cpu or cuda (default: GPU if available)")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    arguments = make_parser().parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before these libraries are imported
    if not any(str(run).startswith("hf:") for run in arguments.runs):
        os.environ["HF_HUB_OFFLINE"] = "1"
    return execute("famix_cli.programs.app", arguments)


if __name__ == "__main__":
    sys.exit(main())
