"""Processes that are killed while they mine or train, or are asked to stop: what was done is kept, and goes on."""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from famix.mining import StyleMiner, bank_mining
from famix.style import StyleBank
from run_factory import Workspace, assert_equal_state, train_net

# Some tenths of a second for a batch; every batch is a group of its own.
OPTIONS = ("STYLE_MINING.IMS_PER_BATCH", "1", "STYLE_MINING.STEPS", "50")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(bank_mining, "batches_per_group", lambda *sizes: 1)
    return Workspace(tmp_path / "space")


def kill_in(run: Callable[[], object]) -> None:
    """Run in a process of its own, which is to kill itself."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillHook(HookBase):
    """Kills the process in the middle of an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            kill()


def test_kill_9_while_mining_then_while_training(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("STYLE_MINING.IMS_PER_BATCH", "1", "SOLVER.MAX_ITER", "5", "SOLVER.CHECKPOINT_PERIOD", "2")
    options += ("MODEL_SELECTION.EMA_DECAY", "0.9", "MODEL_SELECTION.USE", "ema")
    resume = ("--resume",)
    workspace.run("whole", *options)
    mine_batches, mined = StyleMiner.mine_batches, []

    def killing(miner: StyleMiner, batches: list[tuple[int, object]]) -> object:
        mined.append(batches)
        return mine_batches(miner, batches) if len(mined) < 4 else kill()

    with monkeypatch.context() as patch:
        patch.setattr(StyleMiner, "mine_batches", killing)
        kill_in(lambda: workspace.run("killed", *options))
    assert len(list(workspace.folder.glob("killed/*.mining-*/[0-9]*"))) == 3
    module = train_net()
    build_hooks = module.Trainer.build_hooks
    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "build_hooks", lambda self: [*build_hooks(self), KillHook(3)])
        kill_in(lambda: workspace.run("killed", *options, flags=resume))
    assert (workspace.folder / "killed/last_checkpoint").read_text() == "model_0000001.pth"
    workspace.run("killed", *options, flags=resume)
    banks = [StyleBank.load(workspace.folder / name / "style_bank.safetensors") for name in ("killed", "whole")]
    assert torch.equal(banks[0].mean, banks[1].mean) and torch.equal(banks[0].std, banks[1].std)
    for name in ("model_final", "model_ema"):
        assert_equal_state(workspace.checkpoint("killed", name), workspace.checkpoint("whole", name))


def start_command(arguments: list[str], log: Path) -> int:
    """Start train_net with several processes, forked so that nothing has to be imported again; returns the first's id."""
    module = train_net()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        torch.multiprocessing.start_processes = partial(torch.multiprocessing.start_processes, start_method="fork")
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # as if it were new
        sys.argv = ["train_net.py", *arguments]
        module.launch_from_command_line()
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    finally:
        os._exit(99)


def wait_for(happened: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.01)


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_sigterm_while_two_processes_mine(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log, flag = workspace.folder / "two", tmp_path / "log", ("--mine-styles-only",)
    pid = start_command(workspace.arguments("two", *OPTIONS, flags=("--num-gpus", "2", *flag)), log)
    try:
        wait_for(lambda: bool(list(folder.glob("*.mining-*/[0-9]*"))), log)
        os.kill(pid, signal.SIGTERM)  # to the first process alone, which passes it on
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 128 + signal.SIGTERM, log.read_text()[-2000:]
        wait_for(lambda: is_gone(pid), log)
    finally:
        if not is_gone(pid):
            os.killpg(pid, signal.SIGKILL)
    kept = {int(path.stem) for path in folder.glob("*.mining-*/[0-9]*")}
    assert kept and not (folder / "style_bank.safetensors").exists()
    mined: list[int] = []
    mine_batches = StyleMiner.mine_batches

    def noting(miner: StyleMiner, batches: list[tuple[int, object]]) -> object:
        mined.extend(index for index, _ in batches)
        return mine_batches(miner, batches)

    monkeypatch.setattr(StyleMiner, "mine_batches", noting)
    workspace.run("two", *OPTIONS, flags=flag)
    assert set(mined) == set(range(6)) - kept
    bank = StyleBank.load(folder / "style_bank.safetensors")
    assert torch.equal(bank.annotations["batch_id"].unique(), torch.arange(6))
