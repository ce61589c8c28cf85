#!/usr/bin/env python
"""Mine styles, train FAMix and evaluate it: the one entry point, in Detectron2's manner."""

import argparse
import logging
import os
import signal
import sys
import warnings
from contextlib import ExitStack
from typing import Any

# Detectron2 and fvcore use what newer versions of torch deprecate; users can do nothing about it.
for deprecated in ("torch.jit.script", "broadcast_buffers"):
    warnings.filterwarnings("ignore", message=f".*{deprecated}.* is deprecated", category=FutureWarning)

from famix_arguments import argument_parser  # noqa: E402

if __name__ == "__main__":
    argument_parser().parse_args()  # --help and mistakes are answered at once, the imports below take seconds

import torch  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.utils import comm  # noqa: E402

from famix import FAMixError, Trainer  # noqa: E402
from famix.engine import (  # noqa: E402
    explain_disk_errors,
    load_config,
    load_for_scoring,
    setup,
    summarize_end,
    summarize_start,
)
from famix.engine.places import place_from_environment  # noqa: E402
from famix.engine.processes import (  # noqa: E402
    LOST,
    SIGNALLED,
    Peers,
    describe_loss,
    is_lost_connection,
    join_group,
    launch,
)
from famix.mining import obtain_style_bank  # noqa: E402
from famix.utils.plugins import load_plugins  # noqa: E402

logger = logging.getLogger("famix.train_net")

USER_ERROR = 2  # exit status


def main(args: argparse.Namespace, peers: Peers | None = None) -> Any:
    """One process of a run."""
    peers = peers or Peers()
    try:
        return do_part(args, peers)
    except KeyboardInterrupt as stop:
        ignore_signals()
        lost = peers.find_lost(patience=0)  # torchrun ends the others with SIGTERM
        if lost:
            peers.say(describe_loss(lost, peers.world_size))
            peers.leave(LOST)
        peers.say("stopped; continue with --resume from the last checkpoint")
        peers.leave(SIGNALLED + getattr(stop, "signal", signal.SIGINT))
    finally:
        # A process that ends with its group still open may be aborted by the threads of the group.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def do_part(args: argparse.Namespace, peers: Peers) -> Any:
    """A process's part of a run; mistakes of the user and the loss of another process end it with one line."""
    try:
        with explain_disk_errors():
            results = run(args)
        comm.synchronize()
        return results
    except FAMixError as error:
        peers.say(f"error: {one_line(error)}")
        peers.leave(USER_ERROR)
    except Exception as error:
        if not is_lost_connection(error):
            peers.note_end(1)
            raise
        ignore_signals()
        peers.leave_after_loss(error)


def ignore_signals() -> None:
    """Nothing more is to be stopped: this process is about to end, and to say why."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def one_line(error: FAMixError) -> str:
    """The message alone, also of an error that a worker process of a data loader passed on with its traceback."""
    message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(message.split())


def run(args: argparse.Namespace) -> Any:
    """Load plugins, set up, then mine, evaluate or train."""
    load_plugins()  # in every process of the run
    with ExitStack() as held:  # the lock of the run directory
        cfg = setup(args, held)
        results = perform(cfg, args)
        logger.info(summarize_end(cfg, args))
        return results


def perform(cfg: CfgNode, args: argparse.Namespace) -> Any:
    """Mine, evaluate or train."""
    if args.mine_styles_only:
        logger.info(summarize_start(cfg, args))
        return obtain_style_bank(cfg)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        logger.info(summarize_start(cfg, args, model))
        weights = load_for_scoring(cfg, model, resume=args.resume)
        return Trainer.test(cfg, model, weights=weights)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    logger.info(summarize_start(cfg, args, trainer.model, trainer.start_iter))
    return trainer.train(overwrite=args.overwrite)


def device_of(args: argparse.Namespace) -> torch.device:
    """The device that a run computes on; mistakes in its config are left to the run to tell."""
    try:
        return torch.device(load_config(args.config_file, args.opts).MODEL.DEVICE)
    except (FAMixError, RuntimeError):
        return torch.device("cpu")


def launch_from_command_line() -> None:
    """Parse the command line and do a run: here, in processes of its own, or as one that torchrun or SLURM started."""
    parser = argument_parser()
    args = parser.parse_args()
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("several machines need --dist-url tcp://FIRST_MACHINE:PORT")
    try:
        load_plugins()
        place = place_from_environment(args, os.environ)
        if place is None:
            launch(args, device_of(args), main)
        else:
            join_group(place, args, device_of(args), main)
    except FAMixError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    launch_from_command_line()
