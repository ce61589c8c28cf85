"""The frame of benchmarks that take long: what is finished is kept, what is stopped ends in order, the report is last."""

import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from famix.io.atomic import whole_file
from famix.utils.errors import FAMixError
from famix_minitown.experiment import Experiment, read_record

__all__ = ["end_in_order", "print_report", "processors_of"]

_FAILED, _SIGNALLED = 1, 128  # exit status; that of a signal is its number more, as in a shell
_INTERRUPTED = _SIGNALLED + signal.SIGINT
_REQUESTS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


def end_in_order() -> None:
    """Have SIGTERM and SIGHUP (a closed terminal) end this process with 143 and 129, so that no run outlives it."""
    for number in _REQUESTS:
        if signal.getsignal(number) != signal.SIG_IGN:  # else nohup has asked to go on without a terminal
            signal.signal(number, _terminate)


def processors_of(experiments: Iterable[Experiment]) -> str:
    """The processors that finished runs were made on, which may be others than the one that prints their report."""
    names = {
        str(read_record(experiment.output).get("machine", "a processor that was not noted"))
        for experiment in experiments
    }
    return " and ".join(sorted(names))


def print_report(script: str, work: Callable[[str], str], file: Path | None) -> None:
    """Do the work of a benchmark and print its report.

    Args:
        script: name of the benchmark's file.
        work: given the command line, makes all runs and returns the report, in Markdown.
        file: for the report, too.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("famix_minitown").setLevel(logging.INFO)
    end_in_order()
    try:
        report = work(shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]))
        if file is not None:
            with whole_file(file) as part:
                part.write_text(report)
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_FAILED)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues where it was", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    print(report)


def _terminate(number: int, frame: object) -> NoReturn:
    for request in _REQUESTS:
        signal.signal(request, signal.SIG_IGN)  # a shell that closes sends several; the runs shall end in order, too
    sys.exit(_SIGNALLED + number)
