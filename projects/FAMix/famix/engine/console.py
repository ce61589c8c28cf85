"""What a run shows: its log.txt has everything; the console has the summary, progress, warnings and results."""

import logging
import re
import sys
from typing import TextIO

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from famix.utils.progress import on_terminal, progress_bar

__all__ = ["LOGGERS", "TrainingProgress", "set_up_logs"]

LOGGERS = ("fvcore", "detectron2", "famix")
_SHOWN = ("famix", "detectron2.utils.events", "detectron2.evaluation.evaluator")  # of what is no warning
_PROGRESS = ("famix.mining.mine", "detectron2.utils.events", "detectron2.evaluation.evaluator")  # bars say it
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_PERIOD = 20  # iterations from one line to the next, which is Detectron2's
_STEPS_OF_NUMBERS = 10  # iterations from one update of the bar's loss to the next


def set_up_logs(folder: str) -> None:
    """Log everything to log.txt without colour codes, and let the console show what a reader of it needs.

    Args:
        folder: OUTPUT_DIR.
    """
    for name in LOGGERS:
        logger = setup_logger(
            folder, distributed_rank=comm.get_rank(), **({} if name == "detectron2" else {"name": name})
        )
        for handler in logger.handlers:
            if not isinstance(handler, logging.StreamHandler):
                continue
            if handler.stream is sys.stdout:
                handler.filters = [_is_for_console]
                handler.setFormatter(_ConsoleFormatter(datefmt="%m/%d %H:%M:%S"))
                handler.setStream(_AboveBars(sys.stdout))
            elif not isinstance(handler.stream, _AboveBars):
                handler.setFormatter(_FileFormatter(datefmt="%m/%d %H:%M:%S"))


def _is_for_console(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        return True
    names = [name for name in _SHOWN if record.name == name or record.name.startswith(f"{name}.")]
    return bool(names) and not (record.name in _PROGRESS and on_terminal())


class _FileFormatter(logging.Formatter):
    """Detectron2's lines without colours, which only a terminal understands."""

    def __init__(self, datefmt: str) -> None:
        super().__init__("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt)

    def format(self, record: logging.LogRecord) -> str:
        """One record, perhaps of several lines."""
        return _COLORS.sub("", super().format(record))


class _ConsoleFormatter(logging.Formatter):
    """Messages alone on a terminal, with the time in a file."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, perhaps of several lines."""
        text = _COLORS.sub("", super().format(record))
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        return text if on_terminal() else f"[{self.formatTime(record, self.datefmt)}] {text}"


class _AboveBars:
    """A stream whose lines stand above the bars of tqdm instead of in them.

    Args:
        stream: to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a text."""
        tqdm.write(text, file=self._stream, end="")

    def flush(self) -> None:
        """Pass on what was written."""
        self._stream.flush()

    def fileno(self) -> int:
        """Descriptor of the stream."""
        return self._stream.fileno()


class TrainingProgress(HookBase):
    """Shows a bar, and logs the first iteration: without a terminal, Detectron2's first line would be the 20th.

    Args:
        max_iter: iterations of the training.
    """

    def __init__(self, max_iter: int) -> None:
        self._printer = CommonMetricPrinter(max_iter)

    def before_train(self) -> None:
        """Show the empty bar."""
        self._bar = progress_bar(self.trainer.max_iter, "training", "it", done=self.trainer.start_iter)

    def after_step(self) -> None:
        """Go on by an iteration."""
        done = self.trainer.iter + 1 - self.trainer.start_iter
        if done == 1 and (self.trainer.iter + 1) % _PERIOD and self.trainer.iter + 1 < self.trainer.max_iter:
            self._printer.write()
        if done % _STEPS_OF_NUMBERS == 1 and not self._bar.disable:
            latest = self.trainer.storage.latest()
            shown = {name: latest[key][0] for key, name in (("total_loss", "loss"), ("lr", "lr")) if key in latest}
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
