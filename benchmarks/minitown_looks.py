"""Similarity of web looks to the tested conditions, which determines the "strict" looks.

    python benchmarks/minitown_looks.py [--scenes 30]

For every look and condition, the table shows the cosine between the changes that they cause in the mean and standard
deviation of color and detail, over patches of clear scenes that no dataset uses.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
from collections.abc import Sequence

from parts.common import POSITIVE, benchmark_parser


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--scenes", type=POSITIVE, default=30, help="(default: 30)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.utils.seeding import derive_seed
from famix_minitown.rendering.canvas import to_gray
from famix_minitown.rendering.conditions import CONDITIONS, apply_condition
from famix_minitown.rendering.looks import LOOKS, WEATHER, apply_looks
from famix_minitown.rendering.scene import Scene, render_scene
from famix_minitown.runs.study import describe_machine, markdown

RESEMBLING = 0.6  # minimum cosine at which a look resembles a condition
FIRST_SCENE = 420_000
STRENGTH = 0.85
GRID = (3, 6)  # rows and columns of square patches in a scene


def image_statistics(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean and standard deviation of red, green, blue and detail in every patch, (2 * 3 * 6 * 4,).

    Detail is the magnitude of the gray image's Laplacian.
    """
    detail = np.abs(cv2.Laplacian(to_gray(image), cv2.CV_32F))
    channels = np.dstack([image.astype(np.float32), detail])
    rows, cols = GRID
    height, width = image.shape[0] // rows, image.shape[1] // cols
    patches = channels[: rows * height, : cols * width].reshape(rows, height, cols, width, -1)
    return np.stack([patches.mean((1, 3)), patches.std((1, 3))]).ravel()


def look_resemblance(scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """Return the mean cosine in [-1, 1] between the changes caused by each non-weather look and tested condition."""
    looks = [look.name for look in LOOKS.values() if look.family != WEATHER]
    conditions = list(CONDITIONS)[1:]  # the first is the source

    def unit(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        stacked = np.stack(vectors)
        return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)

    cosines = np.zeros((len(scenes), len(looks), len(conditions)))
    for index, scene in enumerate(scenes):
        clear, rng = image_statistics(scene.image), np.random.default_rng(derive_seed(scene.seed))
        under_looks = [image_statistics(apply_looks(scene, ((name, STRENGTH),), rng)) - clear for name in looks]
        in_conditions = [image_statistics(apply_condition(scene, name, rng)) - clear for name in conditions]
        cosines[index] = unit(under_looks) @ unit(in_conditions).T
    rows = zip(looks, cosines.mean(0).tolist(), strict=True)
    return {look: dict(zip(conditions, row, strict=True)) for look, row in rows}


def main() -> None:
    """Run the benchmark and print the table."""
    count = make_parser().parse_args().scenes
    table = look_resemblance([render_scene(FIRST_SCENE + index) for index in range(count)])
    rows = []
    for look, cosines in table.items():
        nearest = max(cosines, key=lambda name: cosines[name])
        verdict = nearest if cosines[nearest] >= RESEMBLING else ""
        rows.append([LOOKS[look].phrases[0], *(f"{value:.2f}" for value in cosines.values()), verdict])
    print(describe_machine())
    print(f"{count} scenes; a look resembles a condition if the cosine is at least {RESEMBLING}\n")
    print(markdown(["look", *next(iter(table.values())), "resembles"], rows))


if __name__ == "__main__":
    main()
