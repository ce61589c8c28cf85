"""Which looks of the web resemble a tested condition? The list of "strict" looks rests on this table.

    python benchmarks/minitown_looks.py [--scenes 30]

For every look and condition: the cosine between what both change in the means and deviations of colour and detail of
the patches of clear scenes, which are in none of the data sets.
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=30, help="(default: 30)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from tabulate import tabulate

from famix_minitown.look_table import LOOKS
from famix_minitown.resemblance import RESEMBLING, look_resemblance
from famix_minitown.scene import render_scene
from famix_minitown.study import describe_machine

FIRST_SCENE = 420_000


def main() -> None:
    """Measure and print the table."""
    count = make_parser().parse_args().scenes
    table = look_resemblance([render_scene(FIRST_SCENE + index) for index in range(count)])
    rows = []
    for look, cosines in table.items():
        nearest = max(cosines, key=lambda name: cosines[name])
        verdict = nearest if cosines[nearest] >= RESEMBLING else ""
        rows.append([LOOKS[look].phrases[0], *(f"{value:.2f}" for value in cosines.values()), verdict])
    print(describe_machine())
    print(f"{count} scenes; a look resembles a condition from a cosine of {RESEMBLING} on\n")
    headers = ["look", *next(iter(table.values())), "resembles"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
