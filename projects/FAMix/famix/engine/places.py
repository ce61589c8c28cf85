"""The place of a process among those of a run, as torchrun or SLURM's srun gives it."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass

from famix.utils.errors import ConfigError

__all__ = ["Place", "place_from_environment"]


@dataclass(frozen=True)
class Place:
    """Place of a process among those of a run.

    Attributes:
        rank: of the process, in [0, world_size).
        world_size: number of processes on all machines.
        local_rank: of the process among those of its machine; the number of its GPU.
        url: where they meet, as torch.distributed takes it.
        store_is_apart: the store at the url belongs to a process that outlives them, not to the first of them.
    """

    rank: int
    world_size: int
    local_rank: int
    url: str
    store_is_apart: bool = False


def place_from_environment(args: argparse.Namespace, environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun or SLURM's srun gave this process; None for a process that starts the others itself.

    Args:
        args: of the command line.
        environment: os.environ.

    Raises:
        ConfigError: the variables are incomplete, or the command line asks for further processes.
    """
    starts_others = args.num_gpus > 1 or args.num_machines > 1
    if "RANK" in environment and "WORLD_SIZE" in environment:
        if starts_others and "LOCAL_RANK" in environment:
            raise ConfigError(
                f"--num-gpus must be left out under torchrun, which has started the processes, got {args.num_gpus} for "
                f"{args.num_machines} machine(s). Set the number with torchrun --nproc-per-node."
            )
        if _number("WORLD_SIZE", environment) == 1:
            return None
        names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"
        rank, world_size, local_rank, _ = (_number(name, environment) for name in names)
        _require("MASTER_ADDR", environment)
        return Place(rank, world_size, local_rank, "env://", environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or args.num_machines > 1:  # a task on each machine, which starts the others there
        return None
    if starts_others:
        raise ConfigError(
            f"--num-gpus must be left out where srun starts {tasks} tasks, got {args.num_gpus}. Start one task per GPU "
            "without it, or one task per machine with --num-gpus, --num-machines and --machine-rank."
        )
    rank, local_rank = _number("SLURM_PROCID", environment), _number("SLURM_LOCALID", environment)
    return Place(rank, tasks, local_rank, f"tcp://{_slurm_address(environment)}")


def _require(name: str, environment: Mapping[str, str]) -> str:
    if not environment.get(name):
        raise ConfigError(
            f"{name} must be set for every one of several processes, got none. Start them with torchrun or srun; to start "
            "one process alone, unset RANK and WORLD_SIZE."
        )
    return environment[name]


def _number(name: str, environment: Mapping[str, str]) -> int:
    value = _require(name, environment)
    if not value.isdecimal():
        raise ConfigError(
            f"{name} must be a whole number of at least 0, got {value!r}. Start the processes with torchrun."
        )
    return int(value)


def _slurm_address(environment: Mapping[str, str]) -> str:
    """HOST:PORT of the first task: MASTER_ADDR and MASTER_PORT where they are set, otherwise from the job."""
    port = environment.get("MASTER_PORT") or str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000)
    if environment.get("MASTER_ADDR"):
        return f"{environment['MASTER_ADDR']}:{port}"
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return f"localhost:{port}"
    nodes = environment.get("SLURM_STEP_NODELIST") or _require("SLURM_JOB_NODELIST", environment)
    # "node[003-010,12]-ib,other" begins with node003-ib
    first = re.match(r"(?P<prefix>[^,\[]+)(?:\[(?P<number>\d+)[^\]]*\])?(?P<suffix>[^,\[]*)", nodes)
    assert first is not None
    return f"{first['prefix']}{first['number'] or ''}{first['suffix']}:{port}"
