"""Mining, training and evaluation in one process or several: famix-train."""

import argparse
import logging
import signal
import sys
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.utils import comm

from famix import FAMixError, Trainer
from famix.engine import explain_disk_errors, launch, load_for_scoring, setup, summarize_end, summarize_start
from famix.engine.peers import (
    LOST,
    SIGNALLED,
    USER_ERROR,
    Peers,
    describe_loss,
    is_lost_connection,
    print_error,
)
from famix.mining import obtain_style_bank
from famix.style.strategies import warn_of_missing_classes
from famix.utils.plugins import load_plugins

logger = logging.getLogger("famix.train_net")  # below "famix", whose log a run keeps


def main(args: argparse.Namespace, peers: Peers | None = None) -> Any:
    """Run one process. On a user error, a signal or a lost process, print one line and exit."""
    peers = peers or Peers()
    try:
        return run_or_explain(args, peers)
    except KeyboardInterrupt as stop:  # also one that arrives while an error is being handled
        ignore_signals()
        lost = peers.find_lost(patience=0)  # torchrun ends the other processes with SIGTERM
        if lost:
            peers.say(describe_loss(lost, peers.world_size))
            peers.leave(LOST)
        peers.say("Stopped. Continue from the last checkpoint with --resume.")
        peers.leave(SIGNALLED + getattr(stop, "signal", signal.SIGINT))
    finally:
        # A process that exits with an open group may be aborted by the group's threads.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run_or_explain(args: argparse.Namespace, peers: Peers) -> Any:
    """Run one process. On a user error or a lost process, print one line and exit."""
    try:
        with explain_disk_errors():
            results = run(args)
        comm.synchronize()
        return results
    except FAMixError as error:
        ignore_signals()
        peers.say(f"error: {one_line(error)}")
        peers.leave(USER_ERROR)
    except Exception as error:
        if not is_lost_connection(error):
            peers.note_end(1)
            raise
        ignore_signals()
        peers.leave_after_loss(error)


def ignore_signals() -> None:
    """Ignore signals while this process reports why it ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def one_line(error: FAMixError) -> str:
    """Return the message on one line, without the traceback that a data loader's worker process prepends."""
    message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(message.split())


def run(args: argparse.Namespace) -> Any:
    """Load plugins, set up the run, then mine styles, evaluate or train."""
    load_plugins()  # in every process of the run
    with ExitStack() as held:  # holds the lock on the run directory
        cfg = setup(args, held)
        if args.mine_styles_only:
            logger.info(summarize_start(cfg, args))
            results: Any = obtain_style_bank(cfg)
            warn_of_missing_classes(results)  # as training does when it receives the bank
        elif args.eval_only:
            model = Trainer.build_model(cfg)
            logger.info(summarize_start(cfg, args, model))
            results = Trainer.test(cfg, model, weights=load_for_scoring(cfg, model, resume=args.resume))
        else:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
            logger.info(summarize_start(cfg, args, trainer.model, trainer.start_iter))
            results = trainer.train(overwrite=args.overwrite)
        logger.info(summarize_end(cfg, args))
        return results


def execute(args: argparse.Namespace) -> None:
    """Launch the processes of a run. A user error prints one line and exits with status 2."""
    try:
        load_plugins()
        launch(args, main)
    except FAMixError as error:
        print_error(f"error: {one_line(error)}")
        sys.exit(USER_ERROR)
