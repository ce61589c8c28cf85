"""Command lines, outside the package: --help and mistakes must not wait for the import of PyTorch."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

_EPILOG = """
Examples:
  mine, train and evaluate      train_net.py --config-file configs/GTA5/famix_RN50.yaml
  mine the style bank only      train_net.py --config-file CONFIG --mine-styles-only
  evaluate a checkpoint         train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth
  continue after a stop         train_net.py --config-file CONFIG --resume
  replace a run by a new one    train_net.py --config-file CONFIG --overwrite
  8 GPUs of one machine         train_net.py --config-file CONFIG --num-gpus 8
  8 processes of torchrun       torchrun --nproc-per-node 8 train_net.py --config-file CONFIG
  2 machines, on each           train_net.py --config-file CONFIG --num-gpus 4 --num-machines 2 --machine-rank 0|1
                                --dist-url tcp://FIRST_MACHINE:PORT
  other settings                train_net.py --config-file CONFIG SOLVER.BASE_LR 0.05 MODEL.DEVICE cpu
"""


def argument_parser() -> argparse.ArgumentParser:
    """Make the parser of train_net.py: Detectron2's arguments, --mine-styles-only and --overwrite."""
    parser = _TrainingParser(epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="YAML config of the run")
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, if there is one")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or with --resume the last checkpoint"
    )
    mode.add_argument(
        "--mine-styles-only", action="store_true", help="mine the style bank, or check the existing one, and stop"
    )
    mode.add_argument(
        "--overwrite", action="store_true", help="replace the training in OUTPUT_DIR by a new one; its style bank stays"
    )
    add("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine, one per GPU (default: 1)")
    add("--num-machines", type=int, default=1, metavar="N", help="(default: 1)")
    add("--machine-rank", type=int, default=0, metavar="N", help="rank of this machine, from 0 (default: 0)")
    # Detectron2's default is one port per user, on which two runs on a machine would collide.
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="rendezvous of the processes: tcp://FIRST_MACHINE:PORT (default: a free port)",
    )
    add("opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="settings that override the config")
    return parser


class _TrainingParser(argparse.ArgumentParser):
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and explain options that are config keys or exclude each other."""
        parsed, left = super().parse_known_args(args, namespace)
        keys = [word for word in left if re.match(r"--?[A-Z][A-Z0-9_]*\.?[A-Z]", word)]
        if keys:
            key = keys[0].lstrip("-").split("=")[0]
            self.error(
                f"{key} must be written without dashes after all options, got {keys[0]!r}. Write {key} and its value"
            )
        if parsed.overwrite and parsed.resume:
            self.error("argument --overwrite: not allowed with argument --resume")
        return parsed, left


def whole_number(text: str, lowest: int = 0, highest: int | None = None) -> int:
    """Parse an argument that must be an integer in [lowest, highest], or of at least `lowest` if `highest` is None.

    Raises:
        argparse.ArgumentTypeError: the text is not such an integer.
    """
    allowed = f"of at least {lowest}" if highest is None else f"in [{lowest}, {highest}]"
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < lowest or (highest is not None and number > highest):
        raise argparse.ArgumentTypeError(f"must be an integer {allowed}, got {text!r}")
    return number
