"""The processes of a run: started here, by torchrun or by SLURM, joined into one group, and missed when one is lost."""

import argparse
import multiprocessing
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException

from famix.engine.places import Place
from famix.engine.stop_signals import raise_when_stopped
from famix.utils.errors import ConfigError, FAMixError

__all__ = [
    "LOST",
    "SIGNALLED",
    "Peers",
    "describe_loss",
    "in_main_process",
    "is_lost_connection",
    "join_group",
    "launch",
]

T = TypeVar("T")

LOST, SIGNALLED = 3, 128
"""Exit status of a process that ends because another was lost, and of one that a signal ends, less its number."""

_USER_ERROR = 2
_GRACE_SECONDS = 10.0  # of the other processes, to end by themselves when one has failed
_PATIENCE = 4.0  # seconds in which all that live notice that one does not
_TICK = 0.05


class Peers:
    """What the processes of a run tell each other beside their work: that they end, and why.

    Args:
        place: of this process; None for one that is alone.
        store: shared by all processes.
    """

    def __init__(self, place: Place | None = None, store: "distributed.Store | None" = None) -> None:
        self.rank, self.world_size = (place.rank, place.world_size) if place else (0, 1)
        self._store = store
        self._store_is_of_first = place is not None and not place.store_is_apart
        self._homes: list[tuple[str, int]] = []  # machine and process id, by rank
        self._local_ranks = [0]
        if place is not None and store is not None:
            store.set(f"home/{self.rank}", f"{place.local_rank} {os.getpid()} {_machine()}")
            facts = [store.get(f"home/{rank}").decode().split(" ", 2) for rank in range(self.world_size)]
            self._homes = [(machine, int(pid)) for _, pid, machine in facts]
            self._local_ranks = [int(local_rank) for local_rank, *_ in facts]

    def per_machine(self) -> int:
        """Number of processes on each machine.

        Raises:
            ConfigError: machines have different numbers, or their processes do not follow each other.
        """
        count = max(self._local_ranks) + 1
        if self._local_ranks != list(range(count)) * (self.world_size // count):
            raise ConfigError(
                "LOCAL_RANK must count the processes of each machine, of which all have the same number, got "
                f"{self._local_ranks} by rank. Start as many on each machine, one machine's ranks in a row."
            )
        return count

    def say(self, line: str) -> None:
        """Print a line to stderr, unless another process has said why the run ends."""
        is_first = True
        store = self._living_store()
        if store is not None:
            with suppress(RuntimeError):
                is_first = store.add("said", 1) == 1
        elif self._store is not None:  # the first process is gone with it
            is_first = self.rank == min(rank for rank in self._here() if _is_running(self._homes[rank][1]))
        if is_first:
            _to_stderr(line)

    def leave(self, status: int) -> NoReturn:
        """End this process with an exit status, whatever the others are doing."""
        self.note_end(status)
        if not distributed.is_initialized():
            sys.exit(status)
        if distributed.get_backend() == "gloo":
            with suppress(Exception):
                distributed.destroy_process_group()  # the others wake up
        if self._store_is_of_first and self.rank == 0:  # which the others need to hear of the end
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline and self._are_running():
                time.sleep(_TICK)
        os._exit(status)  # an orderly end would wait for the others, or be aborted by the threads of the process group

    def note_end(self, status: int) -> None:
        """Tell the others that this process ends, and that the reason has been said."""
        self._tell("ended", str(status))

    def leave_after_loss(self, error: BaseException) -> NoReturn:
        """End this process after a connection was lost: silently where another has ended on purpose, else with a line.

        Args:
            error: of the connection.
        """
        for rank in range(self.world_size):
            status = self._status_of(rank)
            if rank != self.rank and status is not None:
                self.leave(status)
        lost = self.find_lost()
        if lost:
            self.say(describe_loss(lost, self.world_size))
        else:
            self.say(f"error: the processes cannot reach each other ({_first_line(error)}); continue with --resume")
        self.leave(LOST)

    def find_lost(self, patience: float = _PATIENCE) -> list[int]:
        """Ranks of the processes that have ended without a word.

        Args:
            patience: seconds to wait for a sign of those on other machines.
        """
        if self._store is None:
            return []
        self._tell("alive", "1")
        deadline = time.monotonic() + patience
        while True:
            silent = [rank for rank in range(self.world_size) if rank != self.rank and not self._has_a_word(rank)]
            here = [rank for rank in silent if rank in self._here()]
            lost = [rank for rank in here if not _is_running(self._homes[rank][1])]
            if lost or not silent:
                return lost
            if time.monotonic() >= deadline:
                return sorted(set(silent) - set(here)) if patience else []
            time.sleep(_TICK)

    def _has_a_word(self, rank: int) -> bool:
        return self._has("alive", rank) or self._has("ended", rank)

    def _has(self, key: str, rank: int) -> bool:
        store = self._living_store()
        with suppress(RuntimeError):
            return store is not None and store.check([f"{key}/{rank}"])
        return False

    def _status_of(self, rank: int) -> int | None:
        """Exit status of a process that has ended on purpose."""
        store = self._living_store()
        return int(store.get(f"ended/{rank}")) if store is not None and self._has("ended", rank) else None

    def _tell(self, key: str, value: str) -> None:
        store = self._living_store()
        with suppress(RuntimeError):
            if store is not None:
                store.set(f"{key}/{self.rank}", value)

    def _living_store(self) -> "distributed.Store | None":
        """The store, unless its process is gone: to ask it then makes torch write a page to stderr."""
        is_gone = self._store_is_of_first and 0 in self._here() and not _is_running(self._homes[0][1])
        return None if is_gone else self._store

    def _here(self) -> list[int]:
        """Ranks of the processes of this machine."""
        return [rank for rank, (machine, _) in enumerate(self._homes) if machine == self._homes[self.rank][0]]

    def _are_running(self) -> bool:
        others = [rank for rank in range(self.world_size) if rank != self.rank and not self._has("ended", rank)]
        return any(rank not in self._here() or _is_running(self._homes[rank][1]) for rank in others)


def in_main_process(work: Callable[[], T]) -> T:
    """Do some work in the main process; called in all processes of a run.

    Returns:
        Its result, in every process.

    Raises:
        FAMixError: what the work raised, in every process.
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


Work = Callable[[argparse.Namespace, Peers], Any]
"""A process's part of a run, given the command line and the other processes."""


def describe_loss(lost: Sequence[int], world_size: int) -> str:
    """One line for a person: which processes were lost and how to continue."""
    if len(lost) == 1:
        return f"error: rank {lost[0]} of {world_size} was lost; continue with --resume"
    return f"error: ranks {' and '.join(map(str, lost))} of {world_size} were lost; continue with --resume"


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether an error is what torch.distributed makes of a process that is gone."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|by peer|Broken pipe", str(error)) is not None


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _machine() -> str:
    """A name of this machine, or of the container whose process ids are valid here."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _is_running(pid: int) -> bool:
    """Whether a process of this machine runs; one that nobody has waited for yet does not."""
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


def join_group(place: Place, args: argparse.Namespace, device: torch.device, work: Work) -> Any:
    """Join the process group, and do this process's part of a run.

    Args:
        place: of this process.
        args: of the command line.
        device: that the run computes on: processes talk by NCCL on GPUs, otherwise by Gloo.
        work: the part.

    Returns:
        What the part returns.
    """
    peers = Peers(place, store := _store_of(place))
    on_gpu = device.type == "cuda" and torch.cuda.is_available()
    try:
        per_machine = peers.per_machine()
        if on_gpu:
            torch.cuda.set_device(_gpu(place.local_rank, per_machine))
    except ConfigError as error:
        peers.say(f"error: {error}")
        peers.leave(_USER_ERROR)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=distributed.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(per_machine)
    comm.synchronize()  # or the first collective operation might take part of its time for the others' start
    raise_when_stopped()
    return work(args, peers)


def launch(args: argparse.Namespace, device: torch.device, work: Work) -> Any:
    """Do a run in this process, or start one process per device of this machine and wait for all of them.

    Args:
        args: of the command line: how many, and where they meet.
        device: see `join_group`.
        work: the part of a process.

    Returns:
        What the part returns, of a single process.

    Raises:
        ConfigError: there are fewer GPUs than processes.
        SystemExit: a process has failed; with its status.
    """
    if args.num_gpus * args.num_machines <= 1:  # --num-gpus 0 is a run in this process, as in Detectron2
        return work(args, Peers())
    if device.type == "cuda" and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus must be at most the number of GPUs, {torch.cuda.device_count()}, got {args.num_gpus}. Start "
            "fewer, or set MODEL.DEVICE cpu."
        )
    # The processes of the run answer signals; the end of this one, which waits for them, would interrupt them.
    signal.signal(signal.SIGTERM, _pass_on)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # a terminal sends it to all of them
    url = "tcp://127.0.0.1:0" if args.dist_url == "auto" else args.dist_url
    store = _serve_store(url) if args.machine_rank == 0 else None
    if store is not None and args.dist_url == "auto":
        url = f"tcp://127.0.0.1:{store.port}"
    context = torch.multiprocessing.start_processes(
        _join_as, args=(url, args, device, work), nprocs=args.num_gpus, join=False
    )
    try:
        while not context.join(grace_period=_GRACE_SECONDS):
            pass
    except ProcessExitedException as error:
        # A process that a signal ended has the negative of its number.
        killed = error.exit_code < 0 and -error.exit_code not in (signal.SIGTERM, signal.SIGINT)
        if killed and all(process.exitcode != LOST for process in context.processes):  # nobody was left to say it
            rank = args.machine_rank * args.num_gpus + error.error_index
            _to_stderr(describe_loss([rank], args.num_gpus * args.num_machines))
        sys.exit(error.exit_code if error.exit_code > 0 else SIGNALLED - error.exit_code)
    return None


def _join_as(local_rank: int, url: str, args: argparse.Namespace, device: torch.device, work: Work) -> None:
    rank, world_size = args.machine_rank * args.num_gpus + local_rank, args.num_gpus * args.num_machines
    join_group(Place(rank, world_size, local_rank, url, _is_address(url)), args, device, work)


def _is_address(url: str) -> bool:
    return url.startswith("tcp://")


def _serve_store(url: str) -> "distributed.TCPStore | None":
    """A store in this process, which outlives the others: they still learn of each other when the first is lost."""
    address = urlsplit(url)
    if not _is_address(url):  # a file, which needs no process
        return None
    return distributed.TCPStore(
        address.hostname or "", address.port or 0, is_master=True, wait_for_workers=False, timeout=DEFAULT_TIMEOUT
    )


def _store_of(place: Place) -> "distributed.Store":
    if place.store_is_apart and _is_address(place.url):
        address = urlsplit(place.url)
        return distributed.TCPStore(address.hostname or "", address.port or 0, timeout=DEFAULT_TIMEOUT)
    store, *_ = next(distributed.rendezvous(place.url, place.rank, place.world_size, timeout=DEFAULT_TIMEOUT))
    return store


def _pass_on(number: int, frame: object) -> None:
    """Send SIGTERM on to the processes of the run, which it may not have reached."""
    for process in multiprocessing.active_children():
        process.terminate()


def _gpu(local_rank: int, per_machine: int) -> int:
    """The GPU of a process: the one with its number, or the only one that SLURM shows to it."""
    count = torch.cuda.device_count()
    if count == 1:
        return 0
    if count < per_machine:
        raise ConfigError(
            f"LOCAL_RANK must be below the number of GPUs, {count}, got {per_machine} processes on a machine. Start fewer, "
            "or set MODEL.DEVICE cpu."
        )
    return local_rank
