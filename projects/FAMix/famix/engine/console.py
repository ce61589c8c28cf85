"""Logs and summaries of a run: log.txt records everything; the console shows summaries, progress, warnings and results.

A full, read-only or missing disk ends a run with a single error that names the remedy.
"""

import argparse
import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from tqdm import tqdm

import famix
from famix.data.registration import roles_of
from famix.engine.peers import is_lost_connection
from famix.io.atomic import disk_message, is_disk_error
from famix.io.checkpointer import LAST_FILE
from famix.mining import style_bank_path
from famix.reports import RESULTS_FILE
from famix.style import needs_bank
from famix.utils.errors import FAMixError, OutputError
from famix.utils.messages import counted
from famix.utils.progress import on_terminal

_LOGGERS = ("fvcore", "detectron2", "famix")
_SHOWN = ("famix", "detectron2.utils.events", "detectron2.evaluation.evaluator")  # at every level, not only warnings
_PROGRESS = (*_SHOWN[1:], "famix.mining.mine", "famix.utils.progress")  # shown as bars on a terminal
_ONLY_IN_FILE = ("Start inference", "Total inference")  # beginnings of Detectron2's measurements
_DATE = "%m/%d %H:%M:%S"
_SCRIPTS = Path(__file__).parents[2]  # exist only in a clone

Rows = list[tuple[str, str]]


def set_up_logs(folder: str) -> None:
    """Log everything to log.txt in a folder, without color codes, and selected messages to the console."""
    os.environ["NO_COLOR"] = "1"  # turns off colors in Detectron2's messages
    for name in _LOGGERS:
        logger = setup_logger(folder, comm.get_rank(), name=name, configure_stdout=False)
        if comm.is_main_process() and not any(isinstance(handler, _Console) for handler in logger.handlers):
            logger.addHandler(_Console())
        raise_log_errors(logger.handlers)
    # Detectron2 logs a traceback whenever an exception ends training; user errors are reported in one line instead.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)


def _is_no_user_error(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, FAMixError) or is_disk_error(error) or is_lost_connection(error))


class _Console(logging.StreamHandler):
    """Handler that prints selected messages to stdout above progress bars, with timestamps unless on a terminal."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the console shows a record."""
        shown = any(record.name == name or record.name.startswith(f"{name}.") for name in _SHOWN)
        shown = shown and not (record.name in _PROGRESS and on_terminal())
        return record.levelno >= logging.WARNING or (shown and not record.getMessage().startswith(_ONLY_IN_FILE))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            text = self.format(record)
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname.lower()}: {text}"
            if not on_terminal():
                text = f"[{logging.Formatter().formatTime(record, _DATE)}] {text}"
            tqdm.write(text, file=self.stream)
            self.flush()
        except Exception:
            self.handleError(record)


def raise_log_errors(handlers: Iterable[logging.Handler]) -> None:
    """Make log handlers raise disk errors. By default, `logging` prints a traceback for every line."""
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.handleError = partial(_handle_log_error, handler)  # type: ignore[method-assign]


def _handle_log_error(handler: "logging.StreamHandler[Any]", record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if error is None or not is_disk_error(error):
        type(handler).handleError(handler, record)
        return
    # Discard the rest of the log; otherwise, its buffer is written again with every line and at exit.
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), handler.stream.fileno())
    raise error


@contextmanager
def explain_disk_errors() -> Iterator[None]:
    """Convert the operating system's disk errors to `OutputError`.

    Disk errors in other threads, such as TensorBoard's writer, reach the run as well; their tracebacks are not printed.

    Raises:
        OutputError: a file cannot be written.
    """
    show = threading.excepthook
    threading.excepthook = lambda thread: None if is_disk_error(thread.exc_value) else show(thread)
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        remedy = "set OUTPUT_DIR to another folder; --resume continues from the last checkpoint"
        raise OutputError(disk_message(error, remedy)) from error
    finally:
        threading.excepthook = show


def summarize_start(cfg: CfgNode, args: argparse.Namespace, model: nn.Module | None = None, done: int = 0) -> str:
    """Summarize a run before it starts.

    Args:
        cfg: the effective config.
        args: parsed command line.
        model: model to train or evaluate; None if the run only mines styles.
        done: number of iterations that a resumed run has already completed.
    """
    roles, bank = roles_of(cfg), style_bank_path(cfg)
    training = not (args.eval_only or args.mine_styles_only)
    change = "" if roles.decided_by == "TEST.SOURCE" else "; TEST.SOURCE changes this"
    device, processes = torch.device(cfg.MODEL.DEVICE), comm.get_world_size()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    rows = {"source": ", ".join(roles.sources) or "none"}
    if not args.mine_styles_only:
        rows["targets"] = f"{', '.join(roles.targets) or 'none'} (by {roles.decided_by}{change})"
        if roles.held_out:
            rows["also scored"] = f"{', '.join(roles.held_out)}: in the source domain, excluded from the mean"
    rows["CLIP"] = cfg.MODEL.CLIP.WEIGHTS or "random weights, or weights from a checkpoint"
    if model is not None:
        rows["network"] = cfg.MODEL.META_ARCHITECTURE
    if model is not None and training:
        total, trained = (
            sum(p.numel() for p in model.parameters() if p.requires_grad or full) / 1e6 for full in (1, 0)
        )
        backbone = ", ".join(cfg.MODEL.CLIP.TRAINABLE) or "nothing"
        rows["trainable"] = f"{trained:.1f} of {total:.1f} million parameters ({backbone} of CLIP and the head)"
    if not args.eval_only:
        state = "existing" if os.path.isfile(bank) else "to be mined first"
        without = f"strategy {cfg.MODEL.STYLE.STRATEGY} (no bank)"
        rows["styles"] = f"bank {bank} ({state})" if needs_bank(cfg) else without
    if training:
        start = f", resuming at iteration {done:,}" if done else ""
        rows["iterations"] = f"{cfg.SOLVER.MAX_ITER:,} with {counted(cfg.SOLVER.IMS_PER_BATCH, 'image')} each{start}"
    rows["run"] = cfg.OUTPUT_DIR
    rows["device"] = f"{cfg.MODEL.DEVICE} ({name}), {processes} process{'es' if processes > 1 else ''}"
    rows["seed"] = str(cfg.SEED)
    task = "style mining" if args.mine_styles_only else "evaluation" if args.eval_only else "training and evaluation"
    return _table(f"FAMix {famix.__version__}, {task}:", list(rows.items()))


def summarize_end(cfg: CfgNode, args: argparse.Namespace) -> str:
    """List the files of a finished run and commands to run next."""
    folder, bank = cfg.OUTPUT_DIR, style_bank_path(cfg)
    rows: Rows = []
    if args.mine_styles_only:
        following = {
            ("train_net.py", "famix-train"): ["--config-file", args.config_file, *args.opts],
            ("tools/inspect_bank.py", "famix-bank"): [bank, "--html", os.path.join(folder, "bank.html")],
        }
    else:
        names = (RESULTS_FILE, Path(RESULTS_FILE).with_suffix(".md").name)
        rows.append(("results", " and ".join(os.path.join(folder, name) for name in names)))
        weights = cfg.MODEL.WEIGHTS if args.eval_only and cfg.MODEL.WEIGHTS else folder
        following = {
            ("tools/report.py", "famix-report"): [folder, "--output", os.path.join(folder, "report.html")],
            ("demo.py", "famix-demo"): [
                "--weights",
                weights,
                "--input",
                "IMAGES",
                "--output",
                os.path.join(folder, "seen"),
            ],
        }
        if not args.eval_only:
            rows.append(("checkpoint", os.path.join(folder, LAST_FILE)))
    if not args.eval_only and needs_bank(cfg):
        rows.append(("style bank", bank))
    rows.append(("log", os.path.join(folder, "log.txt")))
    python = os.path.basename(sys.executable) or "python"
    for (script, command), words in following.items():
        is_clone = (_SCRIPTS / script).is_file()
        program = [python, os.path.relpath(_SCRIPTS / script)] if is_clone else [command]
        rows.append(("next", shlex.join([*program, *map(str, words)])))
    return _table("Done:", rows)


def _table(head: str, rows: Rows) -> str:
    return "\n".join([head, *(f"  {name:<13}{value}" for name, value in rows)])
