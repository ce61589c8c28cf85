"""Signals: the iteration is finished, a checkpoint saved, and what is resumed equals what was never stopped."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from famix.engine import hooks
from famix.engine.hooks import StopOnSignal, StoppedBySignal
from robustness.faults import wait_for
from run_factory import TRAIN_NET, CallBeforeStep, Workspace, assert_equal_state, train_net_with

ITERATIONS = ("SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "0", "MODEL.STYLE.STRATEGY", "noise")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("signals"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_iteration_ends_with_a_checkpoint(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    name, before = f"stopped_{number.name}", signal.getsignal(number)
    with monkeypatch.context() as patch:
        module = train_net_with(CallBeforeStep(1, lambda: os.kill(os.getpid(), number)), patch)
        with workspace.registered(), pytest.raises(StoppedBySignal) as stop:
            module.run(workspace.parse(name, *ITERATIONS))
    assert stop.value.signal == number and signal.getsignal(number) is before
    assert (workspace.folder / name / "last_checkpoint").read_text() == "model_0000001.pth"
    workspace.run(name, *ITERATIONS, flags=("--resume",))
    if not (workspace.folder / "whole").exists():
        workspace.run("whole", *ITERATIONS)
    assert_equal_state(workspace.checkpoint(name), workspace.checkpoint("whole"))


@pytest.mark.parametrize("by_torchrun", [False, True])
def test_a_second_interrupt_does_not_wait(monkeypatch: pytest.MonkeyPatch, by_torchrun: bool) -> None:
    """torchrun passes on an interrupt that the terminal sends too: both at once are one."""
    if by_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    hook = StopOnSignal()
    hook.before_train()
    try:
        for _ in range(2 if by_torchrun else 1):
            os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(hooks, "_SECONDS_OF_ONE_SIGNAL", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        hook.after_train()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_children_are_not_kept_alive(number: signal.Signals) -> None:
    """Or a pool that an evaluator forks waits for ever for the workers that it has told to end."""
    hook = StopOnSignal()
    hook.before_train()
    try:
        fork = multiprocessing.get_context("fork")
        started = fork.Event()

        def work() -> None:
            started.set()
            time.sleep(60)

        child = fork.Process(target=work, daemon=True)
        child.start()
        assert started.wait(timeout=30)
        os.kill(child.pid or 0, number)
        child.join(timeout=30)
        assert child.exitcode == -number
    finally:
        child.kill()
        hook.after_train()


@pytest.mark.parametrize(("iteration", "asked"), [(8, False), (9, True), (10, False)])
def test_several_processes_stop_at_the_same_iteration(
    monkeypatch: pytest.MonkeyPatch, iteration: int, asked: bool
) -> None:
    """This process got no signal, another did: it hears of it where they agree, every tenth iteration."""
    reduced: list[object] = []

    def all_reduce(value: torch.Tensor, operation: object) -> None:
        reduced.append(operation)
        value.fill_(signal.SIGTERM)

    saved: list[str] = []
    checkpointer = SimpleNamespace(save=lambda name, iteration: saved.append(name))
    hook_trainer = SimpleNamespace(model=torch.nn.Linear(1, 1), checkpointer=checkpointer, iter=iteration)
    hook = StopOnSignal()
    hook.trainer = hook_trainer
    monkeypatch.setattr(hooks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(hooks.comm, "synchronize", lambda: None)
    monkeypatch.setattr(hooks.torch.distributed, "all_reduce", all_reduce)
    if asked:
        with pytest.raises(StoppedBySignal):
            hook.after_step()
        assert saved == ["model_0000009"]
    else:
        hook.after_step()
    assert bool(reduced) == asked


def test_the_command_ends_with_a_status_of_its_own(workspace: Workspace, tmp_path: Path) -> None:
    options = ["SOLVER.MAX_ITER", "100000", "MODEL.STYLE.STRATEGY", "noise", "DATALOADER.NUM_WORKERS", "1"]
    log, out = workspace.folder / "command/log.txt", tmp_path / "out"
    command = [sys.executable, str(TRAIN_NET), *workspace.arguments("command", *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with out.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    wait_for(lambda: log.exists() and "Starting training" in log.read_text(), out)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)  # to the worker of its loader as well, as a cluster does
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert "continue with --resume" in out.read_text()
    assert (workspace.folder / "command" / "last_checkpoint").exists()
