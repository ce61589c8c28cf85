"""Signals: the iteration is finished, a checkpoint saved, and the resumed run equals an uninterrupted one."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from famix.engine import hooks
from famix.engine.hooks import StopOnSignal, StoppedBySignal
from famix.utils.errors import ConfigError
from robustness.faults import start_command, status_of, wait_for
from run_factory import CallBeforeStep, Workspace, assert_equal_state, train_net, train_net_with

ITERATIONS = ("SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "0", "MODEL.STYLE.STRATEGY", "noise")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("signals"))
    workspace.run("whole", *ITERATIONS)
    return workspace


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_checkpoint(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    name, before = f"stopped_{number}", signal.getsignal(number)
    with monkeypatch.context() as patch:
        module = train_net_with(CallBeforeStep(1, lambda: os.kill(os.getpid(), number)), patch)
        with workspace.registered(), pytest.raises(StoppedBySignal) as stop:
            module.run(workspace.parse(name, *ITERATIONS))
    assert stop.value.signal == number and signal.getsignal(number) is before
    assert (workspace.folder / name / "last_checkpoint").read_text() == "model_0000001.pth"
    workspace.run(name, *ITERATIONS, flags=("--resume",))
    assert_equal_state(workspace.checkpoint(name), workspace.checkpoint("whole"))


@pytest.fixture
def hook() -> Iterator[StopOnSignal]:
    hook = StopOnSignal()
    hook.before_train()
    yield hook
    hook.after_train()


@pytest.mark.usefixtures("hook")
@pytest.mark.parametrize("by_torchrun", [False, True])
def test_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch, by_torchrun: bool) -> None:
    if by_torchrun:  # passes on an interrupt that the terminal sends too: both together are one
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(hooks, "_SECONDS_OF_ONE_SIGNAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("hook")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_forked_children_end(number: int) -> None:
    """Otherwise a pool that an evaluator forks never ends."""
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    child = fork.Process(target=lambda: (started.set(), time.sleep(60)), daemon=True)
    child.start()
    assert started.wait(timeout=30)
    os.kill(child.pid or 0, number)
    child.join(timeout=30)
    assert child.exitcode == -number


@pytest.mark.parametrize(("iteration", "stops"), [(8, False), (9, True), (10, False)])
def test_processes_stop_at_same_iteration(monkeypatch: pytest.MonkeyPatch, iteration: int, stops: bool) -> None:
    """Another process got the signal; this one learns of it every tenth iteration."""
    saved: list[str] = []
    checkpointer = SimpleNamespace(save=lambda name, iteration: saved.append(name))
    hook = StopOnSignal()
    hook.trainer = SimpleNamespace(model=torch.nn.Linear(1, 1), checkpointer=checkpointer, iter=iteration)
    monkeypatch.setattr(hooks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(hooks.comm, "synchronize", lambda: None)
    monkeypatch.setattr(hooks.torch.distributed, "all_reduce", lambda value, _: value.fill_(signal.SIGTERM))
    with pytest.raises(StoppedBySignal) if stops else nullcontext():
        hook.after_step()
    assert saved == (["model_0000009"] if stops else [])


def test_command_exits_with_signal_status(workspace: Workspace, tmp_path: Path) -> None:
    options = ["SOLVER.MAX_ITER", "100000", "MODEL.STYLE.STRATEGY", "noise", "DATALOADER.NUM_WORKERS", "1"]
    log, out = workspace.folder / "command/log.txt", tmp_path / "out"
    pid = start_command(workspace.arguments("command", *options), out, workers="fork")
    wait_for(lambda: log.exists() and "Starting training" in log.read_text(), out)
    time.sleep(1)
    os.killpg(pid, signal.SIGTERM)  # to the worker of its loader as well, as a cluster does
    assert status_of(pid) == 128 + signal.SIGTERM
    assert "from the last checkpoint with --resume" in out.read_text()
    assert (workspace.folder / "command" / "last_checkpoint").exists()


@pytest.mark.parametrize("error", [ConfigError("A must be 1, got 2."), RuntimeError("gloo: closed by peer")])
def test_signal_while_an_error_is_handled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    module, arrived = train_net(), []

    def fail(args: object) -> None:
        raise error

    def receive(*_: object) -> bool:
        if not arrived:
            arrived.append(True)
            raise StoppedBySignal(signal.SIGTERM)
        return True

    monkeypatch.setattr(module, "run", fail)
    monkeypatch.setattr(module, "ignore_signals", receive)
    with pytest.raises(SystemExit) as end:
        module.main(SimpleNamespace())
    assert end.value.code == 128 + signal.SIGTERM and "--resume" in capsys.readouterr().err
