"""Faults for tests and the soak: processes killed at any file operation, full disks, and commands to interrupt."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TextIO

import torch

from famix.io import atomic as files
from famix_cli.train import main
from run_factory import train_net

OPERATIONS = ("create", "fsync", "replace", "fsync of the folder", "unlink")
PRELOADED = ["famix.data"]  # modules that workers of data loaders need


def run_and_kill(work: Callable[[], Any], operation: int | None = None) -> int:
    """Run a function in a child process and return its exit code, negative after a signal.

    The child kills itself before the file operation of `whole_file` with this number.
    """
    pid = os.fork()
    if pid == 0:
        try:
            if operation is not None:
                kill_at(operation)
            work()
        finally:
            os._exit(0)
    return status_of(pid)


def kill_own_process() -> None:
    """Kill this process as the system does when memory is exhausted."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(operation: int) -> None:
    """Let this process kill itself before one of its file operations."""
    passed = iter(range(10**6))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(passed) == operation:
                kill_own_process()
            return function(*args, **kwargs)

        return call

    files._create_part = counted(files._create_part)
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    files.os.fsync, files.os.replace = counted(os.fsync), counted(os.replace)  # type: ignore[assignment]


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Limit files of this process to `size` bytes; writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def start_fork(command: Callable[[], object], log: Path) -> int:
    """Start a command in a fork, which need not import anything again, and return the id of its first process.

    The fork has a process group of its own, writes its output to a log, and obeys SIGTERM, SIGINT and SIGHUP.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        torch.set_num_threads(1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # pytest's environment may ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    finally:
        traceback.print_exc()
        os._exit(99)


def start_command(
    arguments: list[str],
    log: Path,
    prepare: Callable[[Any], None] = lambda module: None,
    workers: str = "forkserver",
    **environment: str,
) -> int:
    """Start train_net in a fork and return the id of its first process.

    By default, workers of data loaders come from a fork server: their arguments are pickled, as in separate processes,
    and the server imports the package for seconds, unless a `fork_server` runs. `prepare` is called in the fork with the
    module train_net.
    """
    module = train_net()

    def train() -> None:
        os.environ.update(environment)
        multiprocessing.set_start_method(workers, force=True)
        multiprocessing.set_forkserver_preload(PRELOADED)
        if forkserver._forkserver._forkserver_pid is not None:  # it serves forks, too, but they cannot wait for it
            forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
        torch.multiprocessing.start_processes = partial(torch.multiprocessing.start_processes, start_method="fork")
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # as in a new process
        sys.argv = ["train_net.py", *arguments]
        prepare(module)
        main()

    return start_fork(train, log)


@contextmanager
def fork_server() -> Iterator[None]:
    """Run a server for the workers of all commands that start meanwhile."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
    try:
        yield
    finally:
        forkserver._forkserver._stop()


class ForkedTrainNet:
    """Stands for `subprocess.Popen` of train_net in the runner of experiments."""

    def __init__(self, command: list[str], *, stdout: TextIO, env: Mapping[str, str], **options: Any) -> None:
        assert command[1:4] == ["-P", "-m", "famix_cli.train"]
        self.pid = start_command(command[4:], Path(stdout.name), workers="fork", **env)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = 0.0) -> int:
        """Wait for the end and return the exit code."""
        if self.returncode is None:
            self.returncode = status_of(self.pid)
        return self.returncode


def start_ranks(arguments: list[str], log: Path) -> list[int]:
    """Start two processes as torchrun does and return their ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start_command(arguments, log, RANK=rank, LOCAL_RANK=rank, **common) for rank in "01"]


def status_of(pid: int) -> int:
    """Wait for a process and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def processes_of(pid: int) -> list[int]:
    """Return the ids of the children of a process, in the order of their start."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def wait_for(happened: Callable[[], bool], log: Path) -> None:
    """Wait up to a minute for a condition; show the log if it stays false."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.01)


def is_gone(group: int) -> bool:
    """Return whether a process group has no processes left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
