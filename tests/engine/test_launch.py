"""Which process of a run this one is, from what torchrun, SLURM and the command line say."""

import os
import signal
import sys
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from error_matching import expect_error, explains
from famix.engine import argument_parser, peers
from famix.engine.launch import _gpu, launch, place_from_environment
from famix.engine.peers import Peers, Place, describe_loss, is_lost_connection
from famix.utils.errors import ConfigError
from famix_cli.train import main
from model_factory import make_batch, tiny_backbone, tiny_segmentor

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "20007", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[007-008]",
}  # fmt: skip


def place(environment: dict[str, str], *arguments: str) -> Place | None:
    return place_from_environment(argument_parser().parse_args(arguments), environment)


def test_torchrun() -> None:
    assert place(TORCHRUN) == Place(3, 4, 1, "node1:29500", store_is_apart=True)
    assert place({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) is None
    assert place({**SLURM, **TORCHRUN}) == place(TORCHRUN), "torchrun in a task of SLURM"
    assert place({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": ""}) == Place(3, 4, 1, "node1:29500")


@pytest.mark.parametrize(
    ("changes", "arguments", "key", "value", "remedy"),
    [
        *(({name: ""}, (), name, None, "torchrun") for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")),
        ({"WORLD_SIZE": "two"}, (), "WORLD_SIZE", "two", "torchrun"),
        *(({"WORLD_SIZE": n}, ("--num-gpus", "2"), "--num-gpus", 2, "--nproc-per-node") for n in "14"),
    ],
)
def test_torchrun_with_wrong_variables_or_options(
    changes: dict[str, str], arguments: tuple[str, ...], key: str, value: object, remedy: str
) -> None:
    with expect_error(ConfigError, key, value, remedy):
        place({**TORCHRUN, **changes}, *arguments)


@pytest.mark.parametrize(
    ("arguments", "environment", "key", "remedy"),
    [
        (("--num-gpus", "2"), TORCHRUN, "--num-gpus", "--nproc-per-node"),
        (("--num-gpus", "2", "--num-machines", "2"), {}, "--dist-url", "tcp://FIRST_MACHINE:PORT"),
        (("--num-gpus", "2", "--dist-url", "file:///tmp/x"), {}, "--dist-url", "tcp://FIRST_MACHINE:PORT"),
    ],
)
def test_launch_errors_take_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    environment: dict[str, str],
    key: str,
    remedy: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments, "MODEL.DEVICE", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    explains(line, key, remedy=remedy)


def test_slurm() -> None:
    assert place(SLURM) == Place(5, 8, 1, "node007:20007")
    assert place({**SLURM, "SLURM_STEP_NUM_NODES": "1"}) == Place(5, 8, 1, "localhost:20007")
    assert place({**SLURM, "MASTER_ADDR": "a", "MASTER_PORT": "7"}) == Place(5, 8, 1, "a:7")
    assert place({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, "--num-gpus", "4") is None
    machines = ("--num-gpus", "4", "--num-machines", "2", "--dist-url", "tcp://a:1")
    assert place({**SLURM, "SLURM_STEP_NUM_TASKS": "2"}, *machines) is None, "a task per machine, as docs/famix.sbatch"
    batch_script = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
    assert place(batch_script) is None, "not started by srun"
    with expect_error(ConfigError, "--num-gpus", 4):
        place(SLURM, "--num-gpus", "4")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("a,b", "a"),
        ("n[1,3-4]", "n1"),
        ("rack-2-[07-09,12]-ib,n1", "rack-2-07-ib"),
        ("gpu3,gpu[4-5]", "gpu3"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    found = place({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert found is not None and found.address == f"{first}:20007"


def peers_of(*local_ranks: int, pids: "list[int] | None" = None) -> Peers:
    """The first of several processes on this machine; without `pids` all are this process."""
    store = distributed.HashStore()
    for rank, local_rank in enumerate(local_ranks):
        store.set(f"home/{rank}", f"{local_rank} {pids[rank] if pids else os.getpid()} {peers._machine()}")
    return Peers(Place(0, len(local_ranks), local_ranks[0], store_is_apart=True), store)


@pytest.mark.parametrize("local_ranks", [[0, 1, 0], [0, 0, 1, 1]])
def test_machines_with_different_numbers_of_processes(local_ranks: list[int]) -> None:
    first = peers_of(*local_ranks)
    with expect_error(ConfigError, "LOCAL_RANK", local_ranks):
        first.per_machine()


def test_lost_processes_of_this_machine() -> None:
    """A zombie counts as lost, but not a process that has told that it ends."""
    gone = [os.fork() for _ in range(3)]
    if 0 in gone:
        os._exit(0)
    os.waitid(os.P_PID, gone[0], os.WEXITED | os.WNOWAIT)
    for pid in gone[1:]:
        os.waitpid(pid, 0)
    peers = peers_of(0, 1, 2, 3, 4, pids=[os.getpid(), *gone, os.getpid()])
    assert peers.per_machine() == 5
    assert peers.find_lost() == [1, 2, 3]
    assert peers._store is not None
    peers._store.set("ended/2", "0")
    assert peers.find_lost() == [1, 3]
    os.waitpid(gone[0], 0)


def test_lost_processes_of_other_machines() -> None:
    store = distributed.HashStore()
    store.set("home/1", "0 1 elsewhere")
    peers = Peers(Place(0, 2, store_is_apart=True), store)
    assert peers.find_lost(patience=0) == [] and peers.find_lost(patience=0.2) == [1]
    store.set("alive/1", "1")
    assert peers.find_lost() == []


def test_only_first_process_explains_end(capsys: pytest.CaptureFixture[str]) -> None:
    peers = peers_of(0, 1)
    peers.say("a")
    peers.say("b")
    assert capsys.readouterr().err == "a\n"


def test_loss_is_described_in_one_line() -> None:
    assert "rank 1 of 2 was lost" in describe_loss([1], 2) and "--resume" in describe_loss([1], 2)
    assert "ranks 1 and 3 of 4 were lost" in describe_loss([1, 3], 4)


class Client:
    """A process's connection to a store which, like TCPStore, sends a value without waiting for its arrival."""

    def __init__(self, store: "distributed.Store") -> None:
        self._store, self._sent = store, dict[str, str]()

    def set(self, key: str, value: str) -> None:
        self._sent[key] = value

    def __getattr__(self, name: str) -> Any:  # calls with an answer, which arrive after what was sent before
        while self._sent:
            self._store.set(*self._sent.popitem())
        return getattr(self._store, name)


def test_others_know_why_a_process_ends_before_its_connection_closes() -> None:
    store = distributed.HashStore()
    for rank in range(2):
        store.set(f"home/{rank}", f"{rank} {os.getpid()} {peers._machine()}")
    stopped, other = (Peers(Place(rank, 2, rank, store_is_apart=True), Client(store)) for rank in range(2))  # type: ignore[arg-type]
    stopped.note_end(128 + signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        other.leave_after_loss(RuntimeError("gloo: connection closed by peer"))
    assert end.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[../third_party/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("CUDA out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("gloo"), False),
        (None, False),
    ],
)
def test_lost_connections(error: BaseException | None, is_one: bool) -> None:
    assert is_lost_connection(error) == is_one


@pytest.mark.parametrize(("count", "gpu"), [(4, 2), (1, 0), (8, 2)])
def test_each_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch, count: int, gpu: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)  # SLURM can show each task its own GPU only
    assert _gpu(2, 4) == gpu


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with expect_error(ConfigError, "LOCAL_RANK", remedy="cpu"):
        _gpu(2, 4)
    with expect_error(ConfigError, "--num-gpus", 4, "cpu"):
        launch(argument_parser().parse_args(["--num-gpus", "4", "MODEL.DEVICE", "cuda"]), lambda args, peers: None)


def test_only_gradients_of_trained_parameters_are_exchanged() -> None:
    model = tiny_segmentor(backbone=tiny_backbone(trainable=["layer4"])).train()
    exchanged: list[int] = []

    def count(state: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        exchanged.append(bucket.buffer().numel())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        parallel.register_comm_hook(None, count)
        parallel(make_batch((64, 96), (64, 96)))["loss_sem_seg"].backward()
    finally:
        distributed.destroy_process_group()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert sum(exchanged) == trained < sum(weight.numel() for weight in model.parameters())
