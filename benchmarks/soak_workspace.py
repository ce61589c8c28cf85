"""The tests' miniature data set and CLIP for the soak, larger, and runs of them in processes that may be killed."""

import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from run_factory import Workspace, assert_equal_state, train_net  # type: ignore[import-not-found]

__all__ = ["Progress", "assert_equal_state", "make_workspace", "run_in_child"]

IMAGES = 48


def make_workspace(folder: Path) -> Any:
    """A Workspace with as many images for training as `IMAGES` says; its own six, again and again."""
    workspace = Workspace(folder)
    for kind in ("images", "labels"):
        train = folder / "data" / kind / "train"
        for index in range(6, IMAGES):
            shutil.copyfile(train / f"{index % 6}.png", train / f"{index}.png")
    return workspace


class Progress:
    """What a run has finished, in a file that outlives it: a line for the start of an attempt, one for each unit of work.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        """Note that an attempt begins."""
        self._write("attempt")

    def done(self, unit: int) -> None:
        """Note that a batch or an iteration is finished."""
        self._write(str(unit))

    def last_attempt(self) -> list[int]:
        """The units that the last attempt has finished."""
        return [int(line) for line in self.path.read_text().rpartition("attempt")[2].split()]

    def _write(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


def run_in_child(
    workspace: Any, arguments: Any, log: Path, prepare: Callable[[Any], None], file_limit: int | None
) -> int:
    """Start train_net in a process of its own, forked from this one so that nothing has to be imported again.

    Args:
        workspace: whose data sets are used.
        arguments: parsed command line.
        log: file for all that the process says.
        prepare: called in the process with the module train_net, before it begins.
        file_limit: bytes beyond which no file can be written, as if the disk were full; None for no limit.

    Returns:
        The process's id.
    """
    module = train_net()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        prepare(module)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        with workspace.registered():
            module.main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
