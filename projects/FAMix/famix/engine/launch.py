"""Start the processes of a run, or join those started by torchrun or SLURM, in one process group."""

import argparse
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException

from famix.config import load_config
from famix.engine.hooks import raise_when_stopped
from famix.engine.peers import LOST, SIGNALLED, USER_ERROR, Peers, Place, describe_loss, print_error
from famix.utils.errors import ConfigError, FAMixError

_GRACE_SECONDS = 10.0  # time for processes to exit on their own after one has failed

Work = Callable[[argparse.Namespace, Peers], Any]
"""Function that does the work of one process, given the command line and the processes of the run."""


def launch(args: argparse.Namespace, work: Work) -> Any:
    """Run `work` in this process, in newly started processes, or as part of a torchrun or SLURM job.

    Detectron2's launch supports neither torchrun nor SLURM, and prints a traceback when a process ends.

    Returns:
        The result of `work` in this process, or None if other processes were started.

    Raises:
        ConfigError: there are fewer GPUs than processes, or the variables of torchrun or SLURM are incomplete.
        SystemExit: a process has failed. The exit status is that of the process.
    """
    place = place_from_environment(args, os.environ)
    if place is not None:
        return _join_group(place, args, work)
    if args.num_gpus * args.num_machines <= 1:  # --num-gpus 0 runs in this process, as in Detectron2
        return work(args, Peers())
    return _start_processes(args, work)


def _device(args: argparse.Namespace) -> torch.device:
    """Return the device for a run. Errors in its config are reported by the run itself."""
    try:
        return torch.device(load_config(args.config_file, args.opts).MODEL.DEVICE)
    except (FAMixError, RuntimeError):
        return torch.device("cpu")


def _start_processes(args: argparse.Namespace, work: Work) -> None:
    """Start one process per device on this machine and wait for all of them."""
    if _device(args).type == "cuda" and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus must be at most {torch.cuda.device_count()}, the number of GPUs, got {args.num_gpus}. "
            "Start fewer processes, or set MODEL.DEVICE to cpu."
        )
    url = "tcp://127.0.0.1:0" if args.dist_url == "auto" and args.num_machines == 1 else args.dist_url
    address = re.fullmatch(r"tcp://(.+:\d+)/?", url)
    if address is None:
        raise ConfigError(
            f"--dist-url must have the form tcp://FIRST_MACHINE:PORT, got {url!r}. Pass --dist-url "
            "tcp://FIRST_MACHINE:PORT with a free port on the first machine."
        )
    # The processes of the run handle signals themselves; if this one ended first, it would interrupt them.
    signal.signal(signal.SIGTERM, _terminate_children)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to all processes
    place = Place(world_size=args.num_gpus * args.num_machines, address=address[1], store_is_apart=True)
    if args.machine_rank == 0:
        # A store in this process outlives the others, so they can still exchange messages when rank 0 is lost.
        store = _tcp_store(place, serves=True)
        place = replace(place, address=f"{place.address.rpartition(':')[0]}:{store.port}")
    context = torch.multiprocessing.start_processes(
        _run_rank, args=(place, args, work), nprocs=args.num_gpus, join=False
    )
    try:
        while not context.join(grace_period=_GRACE_SECONDS):
            pass
    except ProcessExitedException as error:
        # If a signal has ended a process, the exit code is the negative signal number.
        killed = error.exit_code < 0 and -error.exit_code not in (signal.SIGTERM, signal.SIGINT)
        if killed and all(process.exitcode != LOST for process in context.processes):  # no process has reported it
            print_error(describe_loss([args.machine_rank * args.num_gpus + error.error_index], place.world_size))
        sys.exit(error.exit_code if error.exit_code > 0 else SIGNALLED - error.exit_code)


def _terminate_children(*_: object) -> None:
    for process in multiprocessing.active_children():
        process.terminate()


def _run_rank(local_rank: int, place: Place, args: argparse.Namespace, work: Work) -> None:
    rank = args.machine_rank * args.num_gpus + local_rank
    _join_group(replace(place, rank=rank, local_rank=local_rank), args, work)


def _join_group(place: Place, args: argparse.Namespace, work: Work) -> Any:
    """Join the process group (NCCL on GPUs, Gloo elsewhere) and run `work`."""
    store = _tcp_store(place, serves=place.rank == 0 and not place.store_is_apart)
    peers = Peers(place, store)
    on_gpu = _device(args).type == "cuda" and torch.cuda.is_available()
    try:
        per_machine = peers.per_machine()
        if on_gpu:
            torch.cuda.set_device(_gpu(place.local_rank, per_machine))
    except ConfigError as error:
        peers.say(f"error: {error}")
        peers.leave(USER_ERROR)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=distributed.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(per_machine)
    comm.synchronize()  # otherwise, slow starts count toward the timeout of the first collective operation
    raise_when_stopped()
    return work(args, peers)


def _tcp_store(place: Place, serves: bool) -> "distributed.TCPStore":
    host, _, port = place.address.rpartition(":")
    return distributed.TCPStore(
        host.strip("[]"), int(port), is_master=serves, wait_for_workers=False, timeout=DEFAULT_TIMEOUT
    )


def _gpu(local_rank: int, per_machine: int) -> int:
    """Return the GPU index for a process: its local rank, or 0 if SLURM exposes only one GPU to it."""
    count = torch.cuda.device_count()
    if count == 1:
        return 0
    if count < per_machine:
        raise ConfigError(
            f"LOCAL_RANK exceeds the available GPUs: {per_machine} processes share a machine with {count} GPU(s). "
            "Start fewer processes, or set MODEL.DEVICE to cpu."
        )
    return local_rank


def place_from_environment(args: argparse.Namespace, environment: Mapping[str, str]) -> Place | None:
    """Return the place that torchrun or SLURM's srun has assigned to this process, or None if there is none.

    Raises:
        ConfigError: the variables are incomplete, or the command line requests additional processes.
    """
    starts_others = args.num_gpus > 1 or args.num_machines > 1
    if "RANK" in environment and "WORLD_SIZE" in environment:
        if starts_others and "LOCAL_RANK" in environment:
            raise ConfigError(
                f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} conflicts with torchrun, which has "
                "already started the processes. Omit both and set the number with torchrun --nproc-per-node."
            )
        if _number("WORLD_SIZE", environment) == 1:
            return None
        names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"
        rank, world_size, local_rank, port = (_number(name, environment) for name in names)
        apart = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Place(rank, world_size, local_rank, f"{_require('MASTER_ADDR', environment)}:{port}", apart)
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or args.num_machines > 1:  # one task per machine, which starts the other processes there
        return None
    if starts_others:
        raise ConfigError(
            f"--num-gpus {args.num_gpus} conflicts with srun, which has already started {tasks} tasks. Start one task "
            "per GPU without --num-gpus, or one task per machine with --num-gpus, --num-machines and --machine-rank."
        )
    rank, local_rank = _number("SLURM_PROCID", environment), _number("SLURM_LOCALID", environment)
    return Place(rank, tasks, local_rank, _slurm_address(environment))


def _require(name: str, environment: Mapping[str, str]) -> str:
    if not environment.get(name):
        raise ConfigError(
            f"{name} is not set, but every process of a distributed run requires it. Start the processes with torchrun "
            "or srun, or unset RANK and WORLD_SIZE to run a single process."
        )
    return environment[name]


def _number(name: str, environment: Mapping[str, str]) -> int:
    value = _require(name, environment)
    if not value.isdecimal():
        raise ConfigError(f"{name} must be a non-negative integer, got {value!r}. Start the processes with torchrun.")
    return int(value)


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Return HOST:PORT for the first task, from MASTER_ADDR and MASTER_PORT or from the SLURM job."""
    port = environment.get("MASTER_PORT") or str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000)
    if environment.get("MASTER_ADDR"):
        return f"{environment['MASTER_ADDR']}:{port}"
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return f"localhost:{port}"
    nodes = environment.get("SLURM_STEP_NODELIST") or _require("SLURM_JOB_NODELIST", environment)
    # the first node in "node[003-010,12]-ib,other" is node003-ib
    first = re.match(r"(?P<prefix>[^,\[]+)(?:\[(?P<number>\d+)[^\]]*\])?(?P<suffix>[^,\[]*)", nodes)
    assert first is not None
    return f"{first['prefix']}{first['number'] or ''}{first['suffix']}:{port}"
