"""Runs continue after processes are killed or stopped while they mine or train."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from famix.data import FAMixDatasetMapper
from famix.io.atomic import FileLock
from famix.mining import StyleMiner, mine
from famix.style import StyleBank
from famix.utils.errors import DatasetError
from panoptic_factory import PanopticWorkspace
from robustness.faults import (
    fork_server,
    is_gone,
    kill_own_process,
    processes_of,
    run_and_kill,
    start_command,
    start_ranks,
    status_of,
    wait_for,
)  # fmt: skip
from run_factory import CallBeforeStep, Workspace, assert_equal_state, train_net_with

# Some tenths of a second for a batch; every batch is a group of its own.
OPTIONS = ("STYLE_MINING.IMS_PER_BATCH", "1", "STYLE_MINING.STEPS", "50")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(mine, "batches_per_group", lambda *sizes: 1)
    return Workspace(tmp_path / "space")


def test_kill_9_while_mining_then_while_training(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("STYLE_MINING.IMS_PER_BATCH", "1", "SOLVER.MAX_ITER", "5", "SOLVER.CHECKPOINT_PERIOD", "2")
    options += ("MODEL_SELECTION.EMA_DECAY", "0.9", "MODEL_SELECTION.USE", "ema")
    resume = ("--resume",)
    workspace.run("whole", *options)
    mine_batches, mined = StyleMiner.mine_batches, []

    def killing(miner: StyleMiner, batches: list[tuple[int, object]]) -> object:
        mined.append(batches)
        return mine_batches(miner, batches) if len(mined) < 4 else kill_own_process()

    with monkeypatch.context() as patch:
        patch.setattr(StyleMiner, "mine_batches", killing)
        assert run_and_kill(lambda: workspace.run("killed", *options)) == -signal.SIGKILL
    assert len(list(workspace.folder.glob("killed/*.mining-*/[0-9]*"))) == 3
    with monkeypatch.context() as patch:
        train_net_with(CallBeforeStep(3, kill_own_process), patch)
        assert run_and_kill(lambda: workspace.run("killed", *options, flags=resume)) == -signal.SIGKILL
    assert (workspace.folder / "killed/last_checkpoint").read_text() == "model_0000001.pth"
    workspace.run("killed", *options, flags=resume)
    banks = [StyleBank.load(workspace.folder / name / "style_bank.safetensors") for name in ("killed", "whole")]
    assert torch.equal(banks[0].mean, banks[1].mean) and torch.equal(banks[0].std, banks[1].std)
    for name in ("model_final", "model_ema"):
        assert_equal_state(workspace.checkpoint("killed", name), workspace.checkpoint("whole", name))


def test_sigterm_while_two_processes_mine(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log, flag = workspace.folder / "two", tmp_path / "log", ("--mine-styles-only",)
    pid = start_command(workspace.arguments("two", *OPTIONS, flags=("--num-gpus", "2", *flag)), log)
    try:
        wait_for(lambda: bool(list(folder.glob("*.mining-*/[0-9]*"))), log)
        os.kill(pid, signal.SIGTERM)  # to the first process alone, which passes it on
        assert status_of(pid) == 128 + signal.SIGTERM, log.read_text()[-2000:]
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


WORKER = ("DATALOADER.NUM_WORKERS", "1", "MODEL.STYLE.STRATEGY", "noise", "SOLVER.MAX_ITER", "2")
ENDLESS = ("SOLVER.MAX_ITER", "100000", "MODEL.STYLE.STRATEGY", "noise", "SOLVER.CHECKPOINT_PERIOD", "2")


def losses(folder: Path) -> dict[str, float]:
    record = json.loads((folder / "metrics.json").read_text().splitlines()[0])
    return {name: value for name, value in record.items() if "loss" in name}


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with fork_server():
        yield


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("head", ["deeplab", "fpn"])
def test_losses_do_not_depend_on_the_launcher(tmp_path: Path, head: str) -> None:
    workspace, log = PanopticWorkspace(tmp_path / "space", f"famix_panoptic_{head}.yaml"), tmp_path / "log"
    options = (*WORKER, "DATASETS.TEST", "('tiny_val_panoptic',)")
    alone = ("DATALOADER.NUM_WORKERS", "0")
    own = start_command(workspace.arguments("own", *options, *alone, flags=("--num-gpus", "2")), log)
    assert status_of(own) == 0, log.read_text()[-3000:]
    ranks = start_ranks(workspace.arguments("given", *options), log)
    assert [status_of(pid) for pid in ranks] == [0, 0], log.read_text()[-3000:]
    first, second = losses(workspace.folder / "own"), losses(workspace.folder / "given")
    assert first and first == pytest.approx(second, abs=1e-5)


@pytest.mark.usefixtures("server")
def test_two_processes_with_workers_train(tmp_path: Path) -> None:
    workspace, log = Workspace(tmp_path / "space"), tmp_path / "log"
    ranks = start_ranks(workspace.arguments("given", *WORKER, "DATASETS.TEST", "('tiny_val',)"), log)
    assert [status_of(pid) for pid in ranks] == [0, 0], log.read_text()[-3000:]
    assert (workspace.folder / "given/results.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("by", ["--num-gpus", "torchrun"])
def test_a_lost_process_is_reported_in_one_line(workspace: Workspace, tmp_path: Path, by: str, rank: int) -> None:
    log, folder = tmp_path / "log", workspace.folder / "lost"
    if by == "torchrun":
        started = ranks = start_ranks(workspace.arguments("lost", *ENDLESS), log)
    else:
        started = [start_command(workspace.arguments("lost", *ENDLESS, flags=("--num-gpus", "2")), log)]
    try:
        wait_for(lambda: (folder / "last_checkpoint").exists(), log)
        if by != "torchrun":
            ranks = processes_of(started[0])[-2:]
        os.kill(ranks[rank], signal.SIGKILL)
        statuses = [status_of(pid) for pid in started]
    finally:
        for pid in {*started} - {0}:
            if not is_gone(pid):
                os.killpg(pid, signal.SIGKILL)
    text = log.read_text()
    assert text.count(f"rank {rank} of 2 was lost. Continue with --resume.") == 1, text[-3000:]
    assert "Traceback" not in text and text.count("\nerror") == 1
    assert all(statuses) and len(statuses) - statuses.count(-signal.SIGKILL) == 1


def test_an_error_of_one_process_ends_all(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, log, reads = FAMixDatasetMapper._read_label, tmp_path / "log", []

    def fail(mapper: FAMixDatasetMapper, *arguments: Any) -> Any:
        reads.append(arguments)
        if os.environ["RANK"] == "1" and len(reads) > 3:
            raise DatasetError("x.png is damaged")
        return read(mapper, *arguments)

    monkeypatch.setattr(FAMixDatasetMapper, "_read_label", fail)
    ranks = start_ranks(workspace.arguments("damaged", *ENDLESS), log)
    assert [status_of(pid) for pid in ranks] == [2, 2], log.read_text()[-3000:]
    text = log.read_text()
    assert "error: x.png is damaged\n" in text
    assert text.count("\nerror") == 1 and "lost" not in text and "Traceback" not in text, text[-3000:]


def test_sigterm_to_all_processes_of_torchrun(workspace: Workspace, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", workspace.folder / "stopped"
    ranks = start_ranks(workspace.arguments("stopped", *ENDLESS), log)
    wait_for(lambda: (folder / "last_checkpoint").exists(), log)
    for pid in ranks:
        os.kill(pid, signal.SIGTERM)
    assert [status_of(pid) for pid in ranks] == [128 + signal.SIGTERM] * 2, log.read_text()[-3000:]
    text = log.read_text()
    assert text.count("from the last checkpoint with --resume") == 1 and "lost" not in text, text[-3000:]
    assert not (folder / "run.lock").exists() or FileLock(folder / "run.lock").is_held
