"""Messages between the processes of a run: the end of a process and its reason, and the ranks of lost ones."""

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

__all__ = [
    "LOST",
    "SIGNALLED",
    "USER_ERROR",
    "Peers",
    "Place",
    "describe_loss",
    "in_main_process",
    "is_lost_connection",
    "print_error",
]

T = TypeVar("T")

USER_ERROR, LOST, SIGNALLED = 2, 3, 128
"""Exit status after a mistake of the user, after the loss of another process, and, plus its number, after a signal."""

_PATIENCE = 4.0  # seconds in which every living process notices a loss
_TICK = 0.05


@dataclass(frozen=True)
class Place:
    """Place of a process in a run.

    Attributes:
        rank: in [0, world_size).
        world_size: number of processes on all machines.
        local_rank: rank on its machine, the number of its GPU.
        url: rendezvous, as torch.distributed takes it.
        store_is_apart: a process that outlives the run serves the store at the url; otherwise rank 0 does.
    """

    rank: int
    world_size: int
    local_rank: int
    url: str
    store_is_apart: bool = False


class Peers:
    """Messages between the processes of a run, beside their work: that they end, and why.

    Args:
        place: place of this process; None for a single process.
        store: store of all processes.
    """

    def __init__(self, place: Place | None = None, store: "distributed.Store | None" = None) -> None:
        self.rank, self.world_size = (place.rank, place.world_size) if place else (0, 1)
        self._store = store
        self._rank_0_serves = place is not None and not place.store_is_apart
        self._homes: list[tuple[str, int]] = []  # machine and process id, by rank
        self._local_ranks = [0]
        if place is not None and store is not None:
            store.set(f"home/{self.rank}", f"{place.local_rank} {os.getpid()} {_machine()}")
            facts = [store.get(f"home/{rank}").decode().split(" ", 2) for rank in range(self.world_size)]
            self._homes = [(machine, int(pid)) for _, pid, machine in facts]
            self._local_ranks = [int(local_rank) for local_rank, *_ in facts]

    def per_machine(self) -> int:
        """Return the number of processes on each machine.

        Raises:
            ConfigError: machines differ in it, or the ranks of a machine are not consecutive.
        """
        count = max(self._local_ranks) + 1
        if self._local_ranks != list(range(count)) * (self.world_size // count):
            raise ConfigError(
                "LOCAL_RANK must count from 0 on each machine, up to the same number on all, got "
                f"{self._local_ranks} by rank. Start as many processes on each machine, with consecutive ranks."
            )
        return count

    def say(self, line: str) -> None:
        """Print a line to stderr, unless another process has already said why the run ends."""
        is_first = True
        store = self._living_store()
        if store is not None:
            with suppress(RuntimeError):
                is_first = store.add("said", 1) == 1
        elif self._store is not None:  # rank 0 is gone, and the store with it
            is_first = self.rank == min(rank for rank in self._here() if _is_running(self._homes[rank][1]))
        if is_first:
            print_error(line)

    def leave(self, status: int) -> NoReturn:
        """End this process with an exit status, without waiting for collective operations of the others."""
        self.note_end(status)
        if not distributed.is_initialized():
            sys.exit(status)
        if distributed.get_backend() == "gloo":
            with suppress(Exception):
                distributed.destroy_process_group()  # wakes the others up
        if self._rank_0_serves and self.rank == 0:  # the others need the store to learn of the end
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline and any(
                not self._has("ended", rank) and (rank not in self._here() or _is_running(self._homes[rank][1]))
                for rank in self._others()
            ):
                time.sleep(_TICK)
        os._exit(status)  # an orderly exit waits for the others, or is aborted by the threads of the process group

    def note_end(self, status: int) -> None:
        """Tell the others that this process ends and has said why."""
        self._tell("ended", str(status))

    def leave_after_loss(self, error: BaseException) -> NoReturn:
        """End this process after a connection was lost: silently if another has ended on purpose, else with a line.

        Args:
            error: error of the connection.
        """
        store = self._living_store()
        for rank in self._others():
            if store is not None and self._has("ended", rank):
                self.leave(int(store.get(f"ended/{rank}")))
        lost = self.find_lost()
        reason = f"error: the processes cannot reach each other ({first_line(error)}); continue with --resume"
        self.say(describe_loss(lost, self.world_size) if lost else reason)
        self.leave(LOST)

    def find_lost(self, patience: float = _PATIENCE) -> list[int]:
        """Return the ranks of processes that have ended without telling.

        Args:
            patience: seconds to wait for a sign of processes on other machines.
        """
        if self._store is None:
            return []
        self._tell("alive", "1")
        deadline = time.monotonic() + patience
        while True:
            silent = [rank for rank in self._others() if not (self._has("alive", rank) or self._has("ended", rank))]
            here = [rank for rank in silent if rank in self._here()]
            lost = [rank for rank in here if not _is_running(self._homes[rank][1])]
            if lost or not silent:
                return lost
            if time.monotonic() >= deadline:
                return sorted(set(silent) - set(here)) if patience else []
            time.sleep(_TICK)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank != self.rank]

    def _here(self) -> list[int]:
        """Ranks on this machine."""
        return [rank for rank, (machine, _) in enumerate(self._homes) if machine == self._homes[self.rank][0]]

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

    def _living_store(self) -> "distributed.Store | None":
        """The store, unless the process that serves it is gone; torch would write a page to stderr."""
        is_gone = self._rank_0_serves and 0 in self._here() and not _is_running(self._homes[0][1])
        return None if is_gone else self._store


def in_main_process(work: Callable[[], T]) -> T:
    """Run a function in the main process and return its result in every process; called in all processes.

    Raises:
        FAMixError: raised by the function; in every process.
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
    """Name the lost processes and the remedy in one line."""
    ranks = f"rank {lost[0]}" if len(lost) == 1 else f"ranks {' and '.join(map(str, lost))}"
    return f"error: {ranks} of {world_size} {'was' if len(lost) == 1 else 'were'} lost; continue with --resume"


def is_lost_connection(error: BaseException | None) -> bool:
    """Return whether torch.distributed raises such an error when a process is gone."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|by peer|Broken pipe", str(error)) is not None


def print_error(line: str) -> None:
    """Print a line to stderr at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _machine() -> str:
    """Name this machine, or the container in which process ids are valid."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _is_running(pid: int) -> bool:
    """Return whether a process runs on this machine; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:
        pass
    except OSError:
        return True
    if os.path.isdir("/proc/self"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
