#!/usr/bin/env python
"""Show the effect of a bank's styles on an image: the change of its features and, with --weights, of its prediction.

Styles of each style word are applied to all patches of the image, without the patches' own statistics unless --own-weight
is set. The output files are distances.png, with picture styles (MODEL.STYLE.STAGE image) pictures.png, and with --weights
predictions.png.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: preview_styles.py --config-file configs/minitown/famix_weather.yaml --image street.png "
        "--weights output/minitown/famix_weather/model_final.pth",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the run")
    parser.add_argument("--image", required=True, type=Path, metavar="FILE")
    parser.add_argument("--weights", type=Path, metavar="CHECKPOINT", help="checkpoint of the run; adds predictions")
    parser.add_argument("--bank", type=Path, metavar="FILE", help="style bank (default: the bank in the config)")
    own = "weight of a patch's own statistics, 0 to 1 (default: 0)"
    parser.add_argument("--own-weight", default=0.0, type=float, metavar="A", help=own)
    parser.add_argument("--seed", default=0, type=int, help="seed for drawing styles (default: 0)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="output folder (default: OUTPUT_DIR/preview)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the config, after --")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # fast --help and usage errors

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from famix.clip import at_stage, clip_weights_hash, load_configured_clip
from famix.clip.build import tower_without_weights
from famix.clip.files import CLIPStateDict
from famix.data import read_image, register_datasets
from famix.data.classes import ClassTable, classes_of
from famix.engine import Trainer, load_config
from famix.inference.loading import default_device, load_model
from famix.mining import bank_metadata, check_bank, style_bank_path
from famix.reports.style_preview import (
    draw_distances,
    draw_pictures,
    draw_predictions,
    format_changes,
    format_effects,
    preview_styles,
)
from famix.style import StyleBank
from famix.utils.errors import BankError, ConfigError, FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins


def load_bank(cfg: CfgNode, path: str, classes: ClassTable) -> StyleBank:
    """Load a bank that matches the config."""
    bank = StyleBank.load(path)
    if not len(bank):
        raise BankError(f"Style bank '{path}' contains no styles. Mine the bank again.")
    clip = load_configured_clip(cfg) if cfg.MODEL.CLIP.WEIGHTS else CLIPStateDict()
    expected = bank_metadata(cfg, clip_weights_hash(clip) if clip else "", classes.names, clip.text_design)
    tower = at_stage(tower_without_weights(cfg, clip), cfg.MODEL.STYLE.STAGE)
    check_bank(bank, expected, path, tower.output_shape()[cfg.MODEL.STYLE.STAGE].channels, tower.rectified)
    return bank


def preview(arguments: argparse.Namespace) -> None:
    """Print the tables and write the figures."""
    cfg = load_config(arguments.config_file, arguments.opts)
    if not cfg.MODEL.CLIP.WEIGHTS and arguments.weights is None:
        raise ConfigError(
            "MODEL.CLIP.WEIGHTS is empty; there is no CLIP to build a network with. Set it, or pass a checkpoint with --weights."
        )
    register_datasets(cfg.DATASETS.FILES)
    classes = classes_of(cfg)
    bank = load_bank(cfg, str(arguments.bank or style_bank_path(cfg)), classes)
    pixels = np.asarray(read_image(arguments.image, max_pixels=cfg.INPUT.MAX_PIXELS))
    if arguments.weights is not None:
        model = load_model(arguments.weights, arguments.config_file, arguments.opts).model
    else:  # an untrained network with the config's CLIP
        cfg.MODEL.DEVICE = str(default_device())
        model = Trainer.build_model(cfg)
    shown = preview_styles(
        model,
        bank,
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        stage=cfg.MODEL.STYLE.STAGE,
        grid=tuple(cfg.MODEL.STYLE.GRID),
        own_weight=arguments.own_weight,
        trained=arguments.weights is not None,
        seed=arguments.seed,
    )
    effects = list(tqdm(shown, "style words", mininterval=1.0))
    folder = arguments.output or Path(cfg.OUTPUT_DIR) / "preview"
    print(format_effects(effects))
    draw_distances(effects, folder / "distances.png")
    print(f"\nwrote {folder / 'distances.png'}")
    if effects[-1].picture is not None:
        draw_pictures(pixels, effects, folder / "pictures.png")
        print(f"wrote {folder / 'pictures.png'}")
    if arguments.weights is not None:
        print(f"\n{format_changes(effects, classes.names)}")
        draw_predictions(pixels, effects, classes, folder / "predictions.png")
        print(f"\nwrote {folder / 'predictions.png'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints one line and exits with status 2."""
    try:
        load_plugins()
        preview(expand_arguments(make_parser().parse_args(argv)))
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
