"""Messages between the processes of a run: which processes have ended and why, and which have been lost."""

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from detectron2.utils import comm
from torch import distributed

from famix.utils.errors import ConfigError, FAMixError
from famix.utils.messages import first_line

T = TypeVar("T")

USER_ERROR, LOST, SIGNALLED = 2, 3, 128
"""Exit statuses after a user error, the loss of another process and (added to the signal number) a signal."""

_PATIENCE = 4.0  # seconds within which every living process notices a loss
_TICK = 0.05


@dataclass(frozen=True)
class Place:
    """Position of a process in a run."""

    rank: int = 0
    world_size: int = 1  # number of processes on all machines
    local_rank: int = 0  # rank on its machine, and index of its GPU
    address: str = ""  # HOST:PORT of the store that all processes share
    store_is_apart: bool = False  # True if a process that outlives the run serves the store; otherwise, rank 0 does


class Peers:
    """Processes of a run, which tell each other when and why they end.

    Args:
        place: position of this process in the run.
        store: store that all processes share; None for a single process.
    """

    def __init__(self, place: Place | None = None, store: "distributed.Store | None" = None) -> None:
        self._place = place or Place()
        self.rank, self.world_size = self._place.rank, self._place.world_size
        self._store = store
        self._others = [rank for rank in range(self.world_size) if rank != self.rank]
        self._local_ranks = [0]
        self._here = {self.rank: os.getpid()}  # rank -> process id, on this machine only
        if store is not None:
            store.set(f"home/{self.rank}", f"{self._place.local_rank} {os.getpid()} {_machine()}")
            homes = [store.get(f"home/{rank}").decode().split(" ", 2) for rank in range(self.world_size)]
            self._local_ranks = [int(local_rank) for local_rank, *_ in homes]
            self._here = {rank: int(pid) for rank, (_, pid, machine) in enumerate(homes) if machine == _machine()}

    def per_machine(self) -> int:
        """Return the number of processes on each machine.

        Raises:
            ConfigError: the number differs between machines, or the ranks on a machine are not consecutive.
        """
        count = max(self._local_ranks) + 1
        if self._local_ranks != list(range(count)) * (self.world_size // count):
            raise ConfigError(
                f"LOCAL_RANK must run from 0 to the same number on each machine, got {self._local_ranks} (by rank). "
                "Start the same number of processes on each machine, with consecutive ranks."
            )
        return count

    def say(self, line: str) -> None:
        """Print a line to stderr, unless another process has already explained the end of the run."""
        is_first = True
        store = self._living_store()
        if store is not None:
            with suppress(RuntimeError):
                is_first = store.add("said", 1) == 1
        elif self._store is not None:  # rank 0 is gone, and the store with it
            is_first = self.rank == min(rank for rank, pid in self._here.items() if _is_running(pid))
        if is_first:
            print_error(line)

    def leave(self, status: int) -> NoReturn:
        """End this process with an exit status, without waiting for collective operations with the others."""
        self.note_end(status)
        if not distributed.is_initialized():
            sys.exit(status)
        if distributed.get_backend() == "gloo":
            with suppress(Exception):
                distributed.destroy_process_group()  # wakes the others up
        deadline = time.monotonic() + _PATIENCE
        while self.rank == 0 and not self._place.store_is_apart and time.monotonic() < deadline:
            if all(self._has("ended", rank) or self._is_gone(rank) for rank in self._others):
                break  # no other process needs the store, which ends with this one
            time.sleep(_TICK)
        os._exit(status)  # an orderly exit would wait for the others, or be aborted by the process group's threads

    def note_end(self, status: int) -> None:
        """Tell the other processes that this one is ending and has explained why."""
        self._tell("ended", str(status))

    def leave_after_loss(self, error: BaseException) -> NoReturn:
        """End this process after a connection error, silently if another process has ended on purpose."""
        store = self._living_store()
        for rank in self._others:
            if store is not None and self._has("ended", rank):
                self.leave(int(store.get(f"ended/{rank}")))
        lost = self.find_lost()
        reason = f"error: the processes cannot reach each other ({first_line(error)}). Continue with --resume."
        self.say(describe_loss(lost, self.world_size) if lost else reason)
        self.leave(LOST)

    def find_lost(self, patience: float = _PATIENCE) -> list[int]:
        """Return the ranks of processes that have ended without notice.

        Args:
            patience: number of seconds to wait for a sign of life from processes on other machines.
        """
        if self._store is None:
            return []
        self._tell("alive", "1")
        deadline = time.monotonic() + patience
        while True:
            silent = [rank for rank in self._others if not (self._has("alive", rank) or self._has("ended", rank))]
            lost = [rank for rank in silent if self._is_gone(rank)]
            if lost or not silent:
                return lost
            if time.monotonic() >= deadline:
                return [rank for rank in silent if rank not in self._here] if patience else []
            time.sleep(_TICK)

    def _is_gone(self, rank: int) -> bool:
        """Return whether a process on this machine has ended. Returns False for processes on other machines."""
        return rank in self._here and not _is_running(self._here[rank])

    def _has(self, key: str, rank: int) -> bool:
        store = self._living_store()
        with suppress(RuntimeError):
            return store is not None and store.check([f"{key}/{rank}"])
        return False

    def _tell(self, key: str, value: str) -> None:
        store = self._living_store()
        with suppress(RuntimeError):
            if store is not None:
                store.set(f"{key}/{self.rank}", value)
                store.check([f"{key}/{self.rank}"])  # a TCPStore acknowledges this, but not `set`

    def _living_store(self) -> "distributed.Store | None":
        """Return the store, or None if its process is gone. Using it then would flood stderr."""
        return None if not self._place.store_is_apart and self._is_gone(0) else self._store


def in_main_process(work: Callable[[], T]) -> T:
    """Run a function in the main process and return its result in every process. Call it in all processes.

    Raises:
        FAMixError: the function has failed. Every process raises its error.
    """
    result: Any = None
    error: FAMixError | None = None
    if comm.is_main_process():
        try:
            result = work()
        except FAMixError as problem:
            error = problem
    result, error = comm.all_gather((result, error))[0]
    if error is not None:
        raise error
    shared: T = result
    return shared


def describe_loss(lost: Sequence[int], world_size: int) -> str:
    """Return one line with the lost processes and the remedy."""
    ranks = f"rank {lost[0]}" if len(lost) == 1 else f"ranks {' and '.join(map(str, lost))}"
    return f"error: {ranks} of {world_size} {'was' if len(lost) == 1 else 'were'} lost. Continue with --resume."


def is_lost_connection(error: BaseException | None) -> bool:
    """Return whether an error is one that torch.distributed raises when a process is gone."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|by peer|Broken pipe", str(error)) is not None


def print_error(line: str) -> None:
    """Print a line to stderr immediately."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _machine() -> str:
    """Return a name for this machine, or for the container in which process ids are valid."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _is_running(pid: int) -> bool:
    """Return whether a process is running on this machine and is not a zombie. Without /proc, all count as running."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")
    except OSError:
        return True
