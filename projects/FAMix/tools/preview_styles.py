#!/usr/bin/env python
"""Show what the styles of a bank do to an image: how far its features move and, with --weights, what is seen in it.

Every look of the bank is put on all patches of the image, without the patches' own statistics unless --own-weight says
so. Writes distances.png and, with weights, predictions.png.
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: preview_styles.py --config-file configs/minitown/famix_weather.yaml --image street.png "
        "--weights output/minitown/famix_weather/model_final.pth",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the run")
    parser.add_argument("--image", required=True, type=Path, metavar="FILE")
    parser.add_argument("--weights", type=Path, metavar="CHECKPOINT", help="of the run: also show predictions")
    parser.add_argument("--bank", type=Path, metavar="FILE", help="style bank (default: the config's)")
    parser.add_argument(
        "--own-weight", default=0.0, type=float, metavar="A", help="of patches' own statistics, 0 to 1 (default: 0)"
    )
    parser.add_argument("--seed", default=0, type=int, help="of the draw of styles (default: 0)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the pictures (default: OUTPUT_DIR/preview)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the file, behind --")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import numpy as np
import torch
from tqdm import tqdm

from famix.data import read_image
from famix.reports.preview_inputs import load_preview_inputs
from famix.reports.preview_text import format_changes, format_effects
from famix.reports.style_preview import StylePreview
from famix.utils.errors import FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix.visualization.preview_picture import draw_distances, draw_predictions

USER_ERROR = 2  # exit status


def preview(arguments: argparse.Namespace) -> None:
    """Print the tables and write the pictures that a command line asks for.

    Raises:
        FAMixError: config, bank, weights or image cannot be used, alone or together.
        OSError: a picture cannot be written.
    """
    inputs = load_preview_inputs(arguments.config_file, arguments.opts, weights=arguments.weights, bank=arguments.bank)
    pixels = np.asarray(read_image(arguments.image, max_pixels=inputs.cfg.INPUT.MAX_PIXELS))
    style = inputs.cfg.MODEL.STYLE
    shown = StylePreview(
        inputs.model,
        inputs.bank,
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        stage=style.STAGE,
        grid=tuple(style.GRID),
        own_weight=arguments.own_weight,
        trained=inputs.is_trained,
        seed=arguments.seed,
    )
    effects = list(tqdm(shown.effects(), "looks", len(shown.names), mininterval=1.0))
    folder = arguments.output or Path(inputs.cfg.OUTPUT_DIR) / "preview"
    print(format_effects(effects, shown.plain))
    draw_distances(effects, folder / "distances.png")
    print(f"\nwrote {folder / 'distances.png'}")
    if shown.plain is not None:
        print(f"\n{format_changes(effects, shown.plain, inputs.classes.names)}")
        draw_predictions(pixels, shown.plain, effects, inputs.classes, folder / "predictions.png")
        print(f"\nwrote {folder / 'predictions.png'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with status 2 and one line on a mistake of the user."""
    try:
        load_plugins()
        preview(expand_arguments(make_parser().parse_args(argv)))
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
