"""Logs and summaries of a run: log.txt stores everything, the console shows summaries, progress, warnings and results.

Disks that are full, read-only or gone end a run with one error that names the remedy.
"""

import argparse
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from tqdm import tqdm

from famix.data.domains import roles_of
from famix.engine.peers import is_lost_connection
from famix.io.atomic import is_disk_error
from famix.io.checkpointer import LAST_FILE
from famix.mining import style_bank_path
from famix.reports import RESULTS_FILE
from famix.style import needs_bank
from famix.utils.errors import FAMixError, OutputError
from famix.utils.progress import on_terminal

__all__ = ["explain_disk_errors", "raise_log_errors", "set_up_logs", "summarize_end", "summarize_start"]

_LOGGERS = ("fvcore", "detectron2", "famix")
_SHOWN = ("famix", "detectron2.utils.events", "detectron2.evaluation.evaluator")  # also below the level of warnings
_PROGRESS = ("famix.mining.mine", "detectron2.utils.events", "detectron2.evaluation.evaluator")  # bars replace them
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_DATE = "%m/%d %H:%M:%S"
_SCRIPTS = Path(__file__).parents[2]  # only a clone has them
_WIDTH = 13  # characters of the first column of a summary


def set_up_logs(folder: str) -> None:
    """Log everything to log.txt without color codes, and a selection to the console.

    Args:
        folder: OUTPUT_DIR.
    """
    handlers: list[logging.Handler] = []
    for name in _LOGGERS:
        named = {} if name == "detectron2" else {"name": name}
        handlers += setup_logger(folder, distributed_rank=comm.get_rank(), **named).handlers
    for handler in handlers:
        if not isinstance(handler, logging.StreamHandler):
            continue
        if handler.stream is sys.stdout:
            handler.filters = [_is_for_console]
            handler.setFormatter(_ConsoleFormatter(datefmt=_DATE))
            handler.setStream(_AboveBars(sys.stdout))
        elif not isinstance(handler.stream, _AboveBars):
            handler.setFormatter(_FileFormatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", _DATE))
    raise_log_errors(handlers)
    # Detectron2 logs any end of a training with a traceback; a mistake of the user is reported in one line.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)


def _is_no_user_error(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, FAMixError) or is_disk_error(error) or is_lost_connection(error))


def _is_for_console(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        return True
    shown = any(record.name == name or record.name.startswith(f"{name}.") for name in _SHOWN)
    return shown and not (record.name in _PROGRESS and on_terminal())


class _FileFormatter(logging.Formatter):
    """Detectron2's lines without color codes."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return _COLORS.sub("", super().format(record))


class _ConsoleFormatter(logging.Formatter):
    """The message alone on a terminal, with the time in a file."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        text = _COLORS.sub("", super().format(record))
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        return text if on_terminal() else f"[{self.formatTime(record, self.datefmt)}] {text}"


class _AboveBars:
    """A stream that prints above the bars of tqdm.

    Args:
        stream: the underlying stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a text."""
        tqdm.write(text, file=self._stream, end="")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return self._stream.fileno()


def raise_log_errors(handlers: Iterable[logging.Handler]) -> None:
    """Let log files on a full disk raise the system's error, in place; logging would print a traceback per line.

    Args:
        handlers: handlers of loggers.
    """
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.handleError = partial(_handle_log_error, handler)  # type: ignore[method-assign]


def _handle_log_error(handler: "logging.StreamHandler[Any]", record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if error is None or not is_disk_error(error):
        type(handler).handleError(handler, record)
        return
    _discard_log(handler)
    raise error


def _discard_log(handler: "logging.StreamHandler[Any]") -> None:
    """Discard the rest of a log; its buffer would be written again with every line, and at exit."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), handler.stream.fileno())


@contextmanager
def explain_disk_errors() -> Iterator[None]:
    """Turn the system's errors of a disk into the package's error.

    Threads that write beside the run, such as TensorBoard's, pass their errors on to it; their tracebacks and those of
    log files are not printed.

    Raises:
        OutputError: a file cannot be written.
    """
    show, show_logs = threading.excepthook, logging.raiseExceptions
    logging.raiseExceptions = False
    threading.excepthook = lambda thread: None if is_disk_error(thread.exc_value) else show(thread)
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
        for handler in {handler for logger in loggers for handler in logger.handlers}:
            if isinstance(handler, logging.StreamHandler):
                try:
                    handler.flush()
                except OSError:
                    _discard_log(handler)
                except ValueError:  # closed
                    continue
        place = f" {error.filename}" if error.filename else ""
        raise OutputError(
            f"the run cannot write its files{place} ({error.strerror}). Free disk space, or set OUTPUT_DIR to another "
            "folder; --resume continues from the last checkpoint"
        ) from error
    finally:
        threading.excepthook, logging.raiseExceptions = show, show_logs


def summarize_start(cfg: CfgNode, args: argparse.Namespace, model: nn.Module | None = None, done: int = 0) -> str:
    """Summarize a run before it starts.

    Args:
        cfg: the effective config.
        args: parsed command line.
        model: model to train or evaluate; None if the run only mines styles.
        done: number of completed iterations of a resumed run.
    """
    roles = roles_of(cfg)
    training, bank = not (args.eval_only or args.mine_styles_only), style_bank_path(cfg)
    rows = [("source", ", ".join(roles.sources) or "none")]
    if not args.mine_styles_only:
        change = "" if roles.decided_by == "TEST.SOURCE" else "; TEST.SOURCE changes this"
        rows.append(("targets", f"{', '.join(roles.targets) or 'none'} (by {roles.decided_by}{change})"))
        if roles.held_out:
            rows.append(("also scored", f"{', '.join(roles.held_out)}: in the domain of the source, not in the mean"))
    rows.append(("CLIP", cfg.MODEL.CLIP.WEIGHTS or "random weights, or those of a checkpoint"))
    if model is not None:
        rows.append(("network", cfg.MODEL.META_ARCHITECTURE))
    if model is not None and training:
        trained, total = (
            sum(value.numel() for value in model.parameters() if value.requires_grad or not only) / 1e6
            for only in (True, False)
        )
        backbone = ", ".join(cfg.MODEL.CLIP.TRAINABLE) or "nothing"
        rows.append(
            ("trainable", f"{trained:.1f} of {total:.1f} million parameters ({backbone} of CLIP, and the head)")
        )
    if not args.eval_only and needs_bank(cfg):
        rows.append(("styles", f"bank {bank} ({'there already' if os.path.isfile(bank) else 'to be mined first'})"))
    elif not args.eval_only:
        rows.append(("styles", f"strategy {cfg.MODEL.STYLE.STRATEGY}, without a bank"))
    if training:
        start = f", from iteration {done:,} on" if done else ""
        rows.append(("iterations", f"{cfg.SOLVER.MAX_ITER:,} of {cfg.SOLVER.IMS_PER_BATCH} images{start}"))
    device, processes = torch.device(cfg.MODEL.DEVICE), comm.get_world_size()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    rows.append(("run", cfg.OUTPUT_DIR))
    rows.append(("device", f"{cfg.MODEL.DEVICE} ({name}), {processes} process{'es' if processes > 1 else ''}"))
    rows.append(("seed", str(cfg.SEED)))
    task = "mines styles" if args.mine_styles_only else "scores" if args.eval_only else "trains and scores"
    try:
        release = version("famix")
    except PackageNotFoundError:  # a clone that is not installed
        release = "of this folder"
    return _table(f"FAMix {release} {task}:", rows)


def summarize_end(cfg: CfgNode, args: argparse.Namespace) -> str:
    """List the files of a finished run and the next commands.

    Args:
        cfg: the effective config.
        args: parsed command line.
    """
    folder = cfg.OUTPUT_DIR
    results = [os.path.join(folder, name) for name in (RESULTS_FILE, Path(RESULTS_FILE).with_suffix(".md").name)]
    files = [("results", " and ".join(results))] if not args.mine_styles_only else []
    if not (args.eval_only or args.mine_styles_only):
        files.append(("checkpoint", os.path.join(folder, LAST_FILE)))
    if not args.eval_only and needs_bank(cfg):
        files.append(("style bank", style_bank_path(cfg)))
    files.append(("log", os.path.join(folder, "log.txt")))
    return _table("Done:", [*files, *(("next", command) for command in _next_commands(cfg, args))])


def _table(head: str, rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join([head, *(f"  {name:<{_WIDTH}}{value}" for name, value in rows)])


def _next_commands(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Return commands that use the results of the run."""
    folder = cfg.OUTPUT_DIR
    if args.mine_styles_only:
        page = os.path.join(folder, "bank.html")
        commands = [("train_net.py", ["--config-file", args.config_file, *args.opts])]
        commands.append(("tools/inspect_bank.py", [style_bank_path(cfg), "--html", page]))
    else:
        report = ("tools/report.py", [folder, "--output", os.path.join(folder, "report.html")])
        weights = cfg.MODEL.WEIGHTS if args.eval_only and cfg.MODEL.WEIGHTS else folder
        demo = ("demo.py", ["--weights", weights, "--input", "IMAGES", "--output", os.path.join(folder, "seen")])
        commands = [report, demo]
    python = os.path.basename(sys.executable) or "python"
    return [
        shlex.join([python, os.path.relpath(_SCRIPTS / script), *map(str, words)])
        for script, words in commands
        if (_SCRIPTS / script).is_file()
    ]
