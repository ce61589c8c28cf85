"""Benchmark of all methods and controls in the miniature town over several seeds, with paired tests.

    python benchmarks/minitown.py [--configs baseline famix ...] [--seeds 1 2 3 4 5] [--ablations] [--report FILE]
    python benchmarks/minitown.py --variant vit

Runs with a record in benchmarks/results/runs/minitown are skipped. Use --rerun to repeat them, or --recorded to only
print the records. Each run uses its seed for both mining and training, so the spread over seeds includes mining. The
method "noise" moves statistics as far as the styles that "famix" mined with the same seed. The bank of "oracle" is
measured on labeled images of the tested conditions. Finished runs are kept, and interrupted runs are resumed.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
from collections.abc import Sequence

from parts.common import study_parser
from studies.town_methods import ABLATIONS, METHODS, MINED, VARIANTS, methods_of


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = study_parser(__doc__, "output/minitown", "minitown or minitown_VARIANT", seeds=(1, 2, 3, 4, 5))
    parser.add_argument("--configs", nargs="+", choices=METHODS, help="methods to run (default: all)")
    parser.add_argument(
        "--variant", default="", choices=VARIANTS, help="CLIP family or head (default: the ResNet with DeepLabV3+)"
    )
    parser.add_argument("--ablations", action="store_true", help=f"also run {', '.join(ABLATIONS)} with the ResNet")
    parser.add_argument("--clip", metavar="WEIGHTS", help="CLIP to start from (default: the CLIP in the configs)")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and reject methods that the variant lacks."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    known = methods_of(arguments.variant)
    absent = [name for name in arguments.configs or () if name not in known] + ["--ablations"] * arguments.ablations
    if absent and arguments.variant:
        parser.error(f"--variant {arguments.variant} has no {', '.join(absent)}. Use some of {', '.join(known)}.")
    return arguments


if __name__ == "__main__":
    parse_arguments()  # answers --help and usage errors before the slow imports

from studies.recorded import RecordedStudy
from studies.town_report import write_report

from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS

SCORED = [
    *(f"minitown_{name}_val" for name in CONDITIONS),
    *(f"minitown_{name}_dev" for name in DEVELOPMENT_CONDITIONS),
]


class Benchmark(RecordedStudy):
    """Study of METHODS and ABLATIONS."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        variant, known = arguments.variant, methods_of(arguments.variant)
        methods = {name: known[name] for name in arguments.configs or known}
        methods |= ABLATIONS if arguments.ablations else {}
        changed, name = vars(arguments).copy(), "minitown"
        if variant:
            changed["output"] /= variant
            name += f"_{variant}"
        if arguments.clip:
            changed["opts"] = [*arguments.opts, "MODEL.CLIP.WEIGHTS", arguments.clip]
        mined = (MINED, known[MINED]) if MINED in known else None
        scored = ("DATASETS.TEST", str(SCORED))
        super().__init__(argparse.Namespace(**changed), methods, name, mined, scored)

    def report(self, command: str) -> str:
        """See Study."""
        return write_report(self.records, command)


if __name__ == "__main__":
    Benchmark(parse_arguments()).main()
