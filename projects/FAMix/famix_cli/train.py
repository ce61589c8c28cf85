"""Mine styles, train FAMix and evaluate it. Modeled on Detectron2's train_net.py."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from famix_cli import execute

_EPILOG = """
Examples:
  mine, train and evaluate      %(prog)s --config-file famix://GTA5/famix_RN50.yaml
  mine the style bank only      %(prog)s --config-file CONFIG --mine-styles-only
  evaluate a checkpoint         %(prog)s --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth
  continue a stopped run        %(prog)s --config-file CONFIG --resume
  replace a run with a new one  %(prog)s --config-file CONFIG --overwrite
  8 GPUs on one machine         %(prog)s --config-file CONFIG --num-gpus 8
  8 processes with torchrun     torchrun --nproc-per-node 8 -m famix_cli.train --config-file CONFIG
  on each of 2 machines         %(prog)s --config-file CONFIG --num-gpus 4 --num-machines 2 --machine-rank 0|1
                                --dist-url tcp://FIRST_MACHINE:PORT
  override settings             %(prog)s --config-file CONFIG SOLVER.BASE_LR 0.05 MODEL.DEVICE cpu
"""


def argument_parser() -> argparse.ArgumentParser:
    """Build the parser for training: Detectron2's arguments plus --mine-styles-only and --overwrite."""
    parser = _TrainingParser(epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="YAML config file, or famix://NAME for an installed one")
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, if there is one")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS or, with --resume, the last checkpoint"
    )
    mode.add_argument(
        "--mine-styles-only", action="store_true", help="mine the style bank or check an existing one, then exit"
    )
    mode.add_argument(
        "--overwrite", action="store_true", help="replace the run in OUTPUT_DIR with a new one but keep its style bank"
    )
    add("--num-gpus", type=int, default=1, metavar="N", help="processes to start here, one per GPU (default: 1)")
    add("--num-machines", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    add("--machine-rank", type=int, default=0, metavar="N", help="rank of this machine, starting at 0 (default: 0)")
    # Detectron2's default is one port per user, so two runs on one machine would collide.
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="rendezvous address, tcp://FIRST_MACHINE:PORT (default: a free local port)",
    )
    add("opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="settings that override the config")
    return parser


class _TrainingParser(argparse.ArgumentParser):
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse arguments, and explain errors for options that are config keys or mutually exclusive."""
        parsed, left = super().parse_known_args(args, namespace)
        keys = [word for word in left if re.match(r"--?[A-Z][A-Z0-9_]*\.?[A-Z]", word)]
        if keys:
            key = keys[0].lstrip("-").split("=")[0]
            self.error(
                f"{key} must be written without dashes after all options, got {keys[0]!r}. Use {key} and a value."
            )
        if parsed.overwrite and parsed.resume:
            self.error("argument --overwrite: not allowed with argument --resume")
        return parsed, left


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    return execute("famix_cli.programs.train", argument_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
