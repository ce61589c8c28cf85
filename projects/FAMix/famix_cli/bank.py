"""Inspect and edit style banks, measure them on images, show their effect, and select the words to mine them with.

%(prog)s BANK              print a summary; --html writes a page with a map of the styles
%(prog)s merge BANK BANK   merge the styles of several banks
%(prog)s filter BANK       keep some styles of a bank
%(prog)s validate BANK     exit with status 1 if training cannot use the bank
%(prog)s measure           measure a bank on labeled images
%(prog)s preview           show the effect of a bank on an image
%(prog)s select            select diverse style words from a vocabulary
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from famix_cli import execute, whole_number

_MEASURE = "Measure a style bank on labeled images instead of mining one from prompts, as an upper bound for prompts."
_PREVIEW = """\
Show the effect of a bank's styles on an image: the change of its features and, with --weights, of its prediction.

Styles of each style word are applied to all patches of the image, without the patches' own statistics unless --own-weight
is set. The output files are distances.png, with picture styles (MODEL.STYLE.STAGE image) pictures.png, and with --weights
predictions.png.
"""
_SELECT = """\
Select diverse style words from a vocabulary by farthest-point sampling over CLIP's text embeddings.

The first word is the one farthest from the class names without a style, and each next one is the farthest from those
before. No image is read. The output is a value for STYLE_MINING.STYLES and the coverage: the cosine distances of the
vocabulary's phrases to the nearest selected one, or to no style if that is nearer, and those for random selections. The
lower, the better the selection represents the vocabulary. Phrases with words that the CLIP does not know are skipped.
"""


def add_show(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `show`."""
    add = parser.add_argument
    add("bank", type=Path, metavar="BANK", help=".safetensors file")
    add("--html", type=Path, metavar="FILE", help="also write a page")
    nearest = "the bank's CLIP, in the form of MODEL.CLIP.WEIGHTS; adds the nearest prompts for each style"
    add_clip(parser, nearest)
    content = "content images that --clip applies styles to (default: noise)"
    add("--content", nargs="+", default=[], type=Path, metavar="IMAGE", help=content)
    most = "maximum number of styles for --clip (default: 300)"
    add("--most-styles", default=300, type=int, metavar="N", help=most)
    own = "measured bank of the source (see the command measure); adds distances from the source"
    add("--own", type=Path, metavar="BANK", help=own)


def add_clip(parser: argparse.ArgumentParser, use: str) -> None:
    """Add --clip, with its use, and the options that describe it."""
    parser.add_argument("--clip", metavar="WEIGHTS", help=use)
    architecture = (
        "architecture of --clip, in the form of MODEL.CLIP.ARCHITECTURE; needed for files of open_clip's models"
    )
    parser.add_argument("--architecture", default="", metavar="NAME", help=architecture)
    tokenizer = "folder with the tokenizer of --clip, as MODEL.CLIP.TOKENIZER"
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help=tokenizer)


def add_merge(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `merge`."""
    parser.add_argument("banks", nargs="+", type=Path, metavar="BANK")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="output bank")


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `filter`."""
    add, repeated = parser.add_argument, dict[str, Any](action="append", default=[])
    add("bank", type=Path, metavar="BANK")
    add("--class", dest="classes", **repeated, metavar="NAME", help="keep styles of this class (repeatable)")
    prompt = "keep styles with this text in their prompt (repeatable)"
    add("--prompt", dest="prompts", **repeated, metavar="TEXT", help=prompt)
    add("--max-loss", type=float, metavar="LOSS", help="keep styles with at most this loss after mining")
    add("--output", required=True, type=Path, metavar="FILE", help="output bank")


def add_validate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `validate`."""
    parser.add_argument("banks", nargs="+", type=Path, metavar="BANK")
    add_clip(parser, "CLIP that the banks must have been made with")


def add_measure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `measure`."""
    parser.description = _MEASURE
    parser.epilog = (
        "Example: %(prog)s --config-file famix://minitown/oracle.yaml --output bank.safetensors --datasets "
        "minitown_night_train minitown_fog_train"
    )
    add_config(parser, "config that defines the CLIP, crops, stage and grid")
    add = parser.add_argument
    add("--datasets", required=True, nargs="+", metavar="NAME", help="registered datasets with labels")
    output = "bank to write; an existing file is overwritten"
    add("--output", required=True, type=Path, metavar="FILE", help=output)


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `preview`."""
    parser.description = _PREVIEW
    parser.epilog = (
        "Example: %(prog)s --config-file famix://minitown/famix_weather.yaml --image street.png --weights "
        "output/minitown/famix_weather/model_final.pth"
    )
    add_config(parser, "config of the run")
    add = parser.add_argument
    add("--image", required=True, type=Path, metavar="FILE")
    add("--weights", type=Path, metavar="CHECKPOINT", help="checkpoint of the run; adds predictions")
    add("--bank", type=Path, metavar="FILE", help="style bank (default: the bank in the config)")
    own = "weight of a patch's own statistics, 0 to 1 (default: 0)"
    add("--own-weight", default=0.0, type=float, metavar="A", help=own)
    add("--seed", default=0, type=whole_number, help="seed for drawing styles (default: 0)")
    add("--output", type=Path, metavar="FOLDER", help="output folder (default: OUTPUT_DIR/preview)")


def add_select(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `select`."""
    parser.description = _SELECT
    parser.epilog = (
        "Example: %(prog)s --config-file famix://GTA5/famix_RN50.yaml --vocabulary famix://vocabularies/wordnet.txt "
        "--exclude foggy rainy"
    )
    add_config(parser, "config that defines the CLIP and classes")
    add = parser.add_argument
    vocabulary = "text file with a phrase per line, # for comments; or famix://vocabularies/wordnet.txt"
    add("--vocabulary", required=True, type=Path, metavar="FILE", help=vocabulary)
    count = partial(whole_number, lowest=1)
    add("--count", default=20, type=count, metavar="N", help="phrases to select (default: 20)")
    exclude = "leave out phrases with these words, e.g. names of targets"
    add("--exclude", nargs="+", default=[], metavar="WORD", help=exclude)
    add("--seed", default=0, type=whole_number, help="seed of the random selections (default: 0)")


def add_config(parser: argparse.ArgumentParser, use: str) -> None:
    """Add --config-file, with its use, and the settings that override it."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help=use)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the config, after --")


# Command -> its summary, and the function that adds its arguments.
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "show": ("print a summary (the default)", add_show),
    "merge": ("merge the styles of several banks", add_merge),
    "filter": ("keep some styles of a bank", add_filter),
    "validate": ("check whether training can use banks", add_validate),
    "measure": ("measure a bank on labeled images", add_measure),
    "preview": ("show the effect of a bank on an image", add_preview),
    "select": ("select diverse style words from a vocabulary", add_select),
}


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Create the parser of all commands, or of a single command for the scripts of a clone that run only that one."""
    layout = argparse.RawDescriptionHelpFormatter
    if command is not None:
        parser = argparse.ArgumentParser(formatter_class=layout)
        parser.set_defaults(command=command)
        COMMANDS[command][1](parser)
        return parser
    example = "Example: %(prog)s output/style_bank.safetensors --html bank.html --clip RN50"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, epilog=example)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (summary, add_arguments) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=summary, formatter_class=layout))
    return parser


def main(argv: Sequence[str] | None = None, command: str | None = None) -> int | None:
    """Run the command line, whose default command is show, and return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if command is None and words and words[0] not in (*COMMANDS, "-h", "--help"):
        words = ["show", *words]
    return execute("famix_cli.programs.bank", make_parser(command).parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
