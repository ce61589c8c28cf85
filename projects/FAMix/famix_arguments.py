"""Command lines, apart from the package: --help and a mistake must not wait for PyTorch, which the package imports."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["argument_parser", "whole_number"]

_EPILOG = """
Examples:
  mine, train and evaluate      train_net.py --config-file configs/GTA5/famix_RN50.yaml
  mine the style bank only      train_net.py --config-file CONFIG --mine-styles-only
  evaluate a checkpoint         train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth
  continue after a stop         train_net.py --config-file CONFIG --resume
  start anew in its place       train_net.py --config-file CONFIG --overwrite
  8 GPUs of one machine         train_net.py --config-file CONFIG --num-gpus 8
  8 processes of torchrun       torchrun --nproc-per-node 8 train_net.py --config-file CONFIG
  2 machines, on each           train_net.py --config-file CONFIG --num-gpus 4 --num-machines 2 --machine-rank 0|1
                                --dist-url tcp://FIRST_MACHINE:PORT
  other settings                train_net.py --config-file CONFIG SOLVER.BASE_LR 0.05 MODEL.DEVICE cpu
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments of a training, --mine-styles-only and --overwrite."""
    parser = _TrainingParser(epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the run, YAML")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="score MODEL.WEIGHTS, or with --resume the last checkpoint"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes of this machine, one per GPU (default: 1)"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="of this machine, from 0 (default: 0)")
    # Detectron2's default is one port per user, on which two runs of a machine would collide.
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where processes meet: tcp://FIRST_MACHINE:PORT (default: a free port)",
    )
    parser.add_argument(
        "--mine-styles-only", action="store_true", help="mine the style bank, or check the one there is, and stop"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start a training anew in the place of the one in OUTPUT_DIR; its style bank stays",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="settings that override the config"
    )
    return parser


class _TrainingParser(argparse.ArgumentParser):
    """A parser that tells config keys written as options what they are."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; of the words that are left over, config keys are explained."""
        parsed, left = super().parse_known_args(args, namespace)
        keys = [word for word in left if re.match(r"--?[A-Z][A-Z0-9_]*\.?[A-Z]", word)]
        if keys:
            key = keys[0].lstrip("-").split("=")[0]
            self.error(
                f"{key} must stand without dashes behind all options, got {keys[0]!r}. Write {key} and its value"
            )
        return parsed, left


def whole_number(text: str, lowest: int = 0, highest: int | None = None) -> int:
    """An argument that must be a whole number in a range, both ends included.

    Args:
        text: as typed.
        lowest: that it may be.
        highest: that it may be; None sets no limit.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    allowed = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
    expected = f"{text!r} is no whole number {allowed}"
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(expected) from error
    if number < lowest or (highest is not None and number > highest):
        raise argparse.ArgumentTypeError(expected)
    return number
