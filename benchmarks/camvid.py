"""Real images on a CPU: mine, train and score CamVid with a narrow CLIP ResNet that starts from random weights.

One command makes the CLIP file, mines styles with it, trains on the day images and scores day and dusk. A random CLIP
knows nothing of language, so this is a test of the whole path on real files, not of the method: its styles are a
random augmentation.

    DETECTRON2_DATASETS=... python benchmarks/camvid.py [--strategies bank none] [--output output/camvid]

The images lie below $DETECTRON2_DATASETS/camvid, see projects/FAMix/famix/data/builtin/camvid.yaml.
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["bank"], help="of MODEL.STYLE.STRATEGY (default: bank)")
    parser.add_argument("--output", type=Path, default=Path("output/camvid"), help="folder (default: output/camvid)")
    parser.add_argument("--seed", type=int, default=1, help="of the CLIP's weights and of the run (default: 1)")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from project import PROJECT
from tabulate import tabulate

from famix_minitown.study import describe_machine

CONFIG = PROJECT / "configs/CamVid/famix_narrow.yaml"
TARGETS = ("camvid_val_day", "camvid_val_dusk")


def make_clip(path: Path, seed: int) -> None:
    """Write a CLIP of 1.7 M visual parameters with random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = ["--width", "16", "--layers", "2", "2", "2", "2", "--resolution", "64", "--embed-dim", "64"]
    form = ["--output", str(path), "--format", "safetensors", "--calibrated-norms", "--seed", str(seed)]
    subprocess.run([sys.executable, str(PROJECT / "tools/make_random_clip.py"), *form, *sizes], check=True)


def run(output: Path, clip: Path, strategy: str, options: list[str]) -> list[object]:
    """Mine, train and score with one strategy; the log goes to a file.

    Returns:
        A row of the table: strategy, mIoU of every target, wall minutes.
    """
    folder = output / strategy
    if folder.exists():
        sys.exit(
            f"{folder} holds an earlier run, whose style bank would be used again; remove it or name another --output"
        )
    folder.mkdir(parents=True)
    settings = ["MODEL.CLIP.WEIGHTS", str(clip), "OUTPUT_DIR", str(folder), "MODEL.STYLE.STRATEGY", strategy, *options]
    print(f"Running strategy {strategy}; its log is {folder}/log.txt", file=sys.stderr)
    start = time.perf_counter()
    with (folder / "console.txt").open("w") as console:
        command = [sys.executable, str(PROJECT / "train_net.py"), "--config-file", str(CONFIG), *settings]
        status = subprocess.run(command, stdout=console, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        sys.exit(f"train_net.py ended with status {status}; see {folder}/console.txt")
    minutes = (time.perf_counter() - start) / 60
    scores = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    return [strategy, *(scores[f"{target}/sem_seg/mIoU"] for target in TARGETS), minutes]


def main() -> None:
    """Run and print."""
    args = make_parser().parse_args()

    clip = args.output / "random_clip.safetensors"
    make_clip(clip, args.seed)
    options = ["SEED", str(args.seed), *args.options]
    rows = [run(args.output, clip, strategy, options) for strategy in args.strategies]
    print(describe_machine())
    print(f"CamVid, 11 classes, mIoU in percent, seed {args.seed}; options {args.options or 'none'}\n")
    headers = ["strategy", *TARGETS, "minutes, all included"]
    print(tabulate(rows, headers=headers, floatfmt=".1f", tablefmt="github"))


if __name__ == "__main__":
    main()
