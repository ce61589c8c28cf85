"""Upload a scored run to a model hub (Hugging Face): checkpoint, training config, scores, hash and model card."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from famix_cli import execute

EPILOG = """
Examples:
  look at the files first   %(prog)s output/famix owner/famix-town --output published
  upload them               %(prog)s output/famix owner/famix-town --license cc-by-nc-4.0     (after hf auth login)
  use the network           famix-demo --weights hf://owner/famix-town --input street.jpg --output predicted
"""


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="run directory with a results.json; the weights that it scores are used",
    )
    add("name", metavar="OWNER/NAME", help="name on the hub; created if it does not exist")
    add("--output", type=Path, metavar="FOLDER", help="write the files to this new folder and upload nothing")
    add(
        "--license", default="", metavar="ID", help="license in the model card, e.g. cc-by-nc-4.0 (default: not stated)"
    )
    add("--private", action="store_true", help="make a new network visible to its owner only")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.publish", make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
