"""Accuracy and speed of an exported network with CLIP RN50.

The network of configs/GTA5/famix_RN50.yaml has random weights. The norms of CLIP's image tower and the predictor are
random as well, so labels differ between pixels. tools/export.py writes the network as ONNX, torch.export and stripped
files, compares the files with the network, and times both.

    python benchmarks/export.py [--config-file FILE] [--sizes 512x1024 385x769] [--runs 3] [--format onnx ...]
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from parts.common import PROJECT, benchmark_parser

CONFIG = PROJECT / "configs/GTA5/famix_RN50.yaml"


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config-file", type=Path, default=CONFIG, help="(default: configs/GTA5/famix_RN50.yaml)")
    parser.add_argument("--sizes", nargs="+", default=("512x1024", "385x769"), metavar="HxW", help="of images")
    parser.add_argument("--runs", default="3", help="number of timed runs (default: 3)")
    parser.add_argument("--format", nargs="+", default=("onnx", "torch_export", "stripped"), help="(default: all)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from torch import nn

from famix.clip.base import family_named
from famix.clip.export import random_clip
from famix.data import register_datasets
from famix.engine import Trainer, load_config, save_weights
from famix.inference import Predictor
from famix.inference.export import make_image
from famix_cli.export import main as export
from famix_minitown.runs.study import describe_machine


def make_run(config: Path, run: Path) -> None:
    """Write the files of a finished training run."""
    cfg = load_config(str(config), ["MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    register_datasets(cfg.DATASETS.FILES)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    _, architecture = family_named(cfg.MODEL.CLIP.ARCHITECTURE)
    model.backbone.load_visual(random_clip(architecture, text_layers=1, random_norms=True).state_dict())
    predictor = [module for module in model.sem_seg_head.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.normal_(predictor.weight)
    save_weights(model, run / "model_final.pth", iterations=0)
    (run / "config.yaml").write_text(cfg.dump())


def main() -> int:
    """Export the network and return the exit status of the tool."""
    args = make_parser().parse_args()
    config = args.config_file.resolve()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        run = Path("run")
        make_run(config, run)
        print(describe_machine(), flush=True)
        seen = Predictor.from_checkpoint(run, device="cpu")(make_image((256, 512))[0].permute(1, 2, 0).numpy())
        print(f"{config.name}, random weights; {len(seen.visible_classes())} classes predicted in a test image\n")
        options = ["--format", *args.format, "--half", "--sizes", *args.sizes, "--runs", args.runs]
        return int(export([str(run), *options]) or 0)


if __name__ == "__main__":
    sys.exit(main())
