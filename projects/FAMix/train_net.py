#!/usr/bin/env python
"""Mine styles, train FAMix and evaluate it: the one entry point, in Detectron2's manner."""

import argparse
import multiprocessing
import os
import signal
import sys
import warnings
from contextlib import ExitStack
from typing import Any, NoReturn

# Detectron2 and fvcore use what newer versions of torch deprecate; users can do nothing about it.
for deprecated in ("torch.jit.script", "broadcast_buffers"):
    warnings.filterwarnings("ignore", message=f".*{deprecated}.* is deprecated", category=FutureWarning)

import torch  # noqa: E402
from detectron2.engine import launch  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from torch.multiprocessing.spawn import ProcessExitedException  # noqa: E402

from famix import FAMixError, Trainer  # noqa: E402
from famix.engine import argument_parser, explain_disk_errors, load_for_scoring, setup  # noqa: E402
from famix.mining import obtain_style_bank  # noqa: E402

USER_ERROR, SIGNALLED = 2, 128  # exit status; that of a signal is its number more, as in a shell


def main(args: argparse.Namespace) -> Any:
    """One process of a run."""
    try:
        with explain_disk_errors():
            results = run(args)
        comm.synchronize()
        return results
    except FAMixError as error:
        process = "" if comm.is_main_process() else f" (process {comm.get_rank()})"
        print(f"error{process}: {one_line(error)}", file=sys.stderr, flush=True)
        leave(USER_ERROR)
    except KeyboardInterrupt as stop:
        print("stopped; continue with --resume from the last checkpoint", file=sys.stderr, flush=True)
        leave(SIGNALLED + getattr(stop, "signal", signal.SIGINT))
    finally:
        # A process that ends with its group still open may be aborted by the threads of the group.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process with an exit status, whatever the other processes of a run are doing."""
    if torch.distributed.is_initialized():
        os._exit(status)  # an orderly end would wait for them, or be aborted by the threads of the process group
    sys.exit(status)


def one_line(error: FAMixError) -> str:
    """The message alone, also of an error that a worker process of a data loader passed on with its traceback."""
    message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(message.split())


def run(args: argparse.Namespace) -> Any:
    """Set up, then mine, evaluate or train."""
    with ExitStack() as held:  # the lock of the run directory
        cfg = setup(args, held)
        if args.mine_styles_only:
            return obtain_style_bank(cfg)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            weights = load_for_scoring(cfg, model, resume=args.resume)
            return Trainer.test(cfg, model, weights=weights)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def pass_on(number: int, frame: object) -> None:
    """Send SIGTERM on to the processes of the run, which it may not have reached."""
    for process in multiprocessing.active_children():
        process.terminate()


def launch_from_command_line() -> None:
    """Parse the command line and start a process per device."""
    parser = argument_parser()
    args = parser.parse_args()
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("several machines need --dist-url tcp://FIRST_MACHINE:PORT")
    if args.num_gpus * args.num_machines > 1:
        # The processes of the run answer signals; the end of this one, which waits for them, would interrupt them.
        signal.signal(signal.SIGTERM, pass_on)
        signal.signal(signal.SIGINT, lambda number, frame: None)  # a terminal sends it to all of them
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:  # a process of several has said what is wrong
        # A process that a signal ended, e.g. while mining, has the negative of its number.
        sys.exit(error.exit_code if error.exit_code > 0 else SIGNALLED - error.exit_code)


if __name__ == "__main__":
    launch_from_command_line()
