"""Completed work survives processes killed at any file operation, full and read-only disks, and vanished data."""

import errno
import logging
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import JSONWriter
from tensorboard.summary.writer.record_writer import RecordWriter

from data_factory import data_config, make_dataset, registered
from error_matching import error_line, explains
from famix.data import build_train_loader
from famix.engine import SafeCheckpointer
from famix.io.atomic import whole_file
from famix.mining import StyleMiner
from famix.mining.miner import MinedBatch
from famix.mining.partial_results import PartialResults
from famix.style import StyleBank
from famix.utils.errors import FAMixError
from robustness.faults import OPERATIONS, run_and_kill
from run_factory import CallBeforeStep, Workspace, assert_equal_state, train_net, train_net_with

Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize("operation", range(len(OPERATIONS)), ids=OPERATIONS)
def test_killed_writers_leave_whole_files(tmp_path: Path, operation: int) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as part:
            part.write_text("new" * 10_000)

    assert run_and_kill(write, operation) == -signal.SIGKILL
    assert path.read_text() in ("old", "new" * 10_000)
    assert (path.read_text() == "old") == (OPERATIONS[operation] in ("create", "fsync", "replace"))


@pytest.mark.parametrize("operation", range(2 * len(OPERATIONS)))
def test_killed_writers_leave_a_checkpoint_to_resume(tmp_path: Path, operation: int) -> None:
    SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("model_0000001", iteration=1)
    saver = SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    assert run_and_kill(lambda: saver.save("model_0000003", iteration=3), operation) == -signal.SIGKILL
    found = SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)
    assert found["iteration"] == (1 if operation < len(OPERATIONS) + 3 else 3)
    assert not list(tmp_path.glob(".model*"))


@pytest.mark.parametrize("operation", range(len(OPERATIONS)), ids=OPERATIONS)
def test_killed_writers_leave_whole_banks_and_mined_batches(tmp_path: Path, operation: int) -> None:
    results, ids, values = PartialResults(tmp_path / "bank", {}), torch.arange(2), torch.rand(2, 3)
    batches = [MinedBatch(index, ids, values, values, ids, values[:, 0], values[:, 1]) for index in range(2)]
    results.write(batches[0])
    bank = StyleBank({"a": "b"})
    bank.add(ids, values, values)
    for write in (lambda: results.write(batches[1]), lambda: bank.save(tmp_path / "bank")):
        assert run_and_kill(write, operation) == -signal.SIGKILL
    late = OPERATIONS[operation] in OPERATIONS[3:]
    assert results.indices() == ([0, 1] if late else [0])
    assert (tmp_path / "bank").exists() == late
    assert not late or torch.equal(StyleBank.load(tmp_path / "bank").mean, values)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = Workspace(tmp_path_factory.mktemp("pristine") / "space")
    workspace.run("whole", *OPTIONS)
    return workspace.folder


@pytest.fixture
def workspace(pristine: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may break, with a finished run in it."""
    shutil.copytree(pristine, tmp_path / "space")
    return Workspace.existing(tmp_path / "space")


# Metrics are written every twenty iterations.
OPTIONS = ("SOLVER.MAX_ITER", "22", "SOLVER.CHECKPOINT_PERIOD", "5", "STYLE_MINING.IMS_PER_BATCH", "1")


def run_with_fault(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, iteration: int, fault: Callable[[], Any], *options: str
) -> int:
    """Run train_net's `main` with a fault in mid-training; returns its exit status."""
    with monkeypatch.context() as patch, workspace.registered():
        module = train_net_with(CallBeforeStep(iteration, fault), patch)
        with pytest.raises(SystemExit) as stop:
            module.main(workspace.parse("faulty", *OPTIONS, *options))
    return stop.value.code


def fill_log(path: Path) -> None:
    """Redirect the open streams of a log file to a device that is always full."""
    streams = {
        handler.stream
        for name in ("detectron2", "fvcore", "famix")
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "name", "") == str(path)
    }
    assert streams
    with open("/dev/full", "w") as full:
        for stream in streams:
            os.dup2(full.fileno(), stream.fileno())


@pytest.mark.parametrize(
    ("writer", "number"),
    [
        ("metrics", errno.ENOSPC), ("TensorBoard", errno.ENOSPC), ("log", errno.ENOSPC), ("checkpoint", errno.EROFS),
    ],
)  # fmt: skip
def test_full_disk_while_training(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: Output, writer: str, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "the file")

    def fill_up() -> None:
        if writer == "metrics":
            monkeypatch.setattr(JSONWriter, "write", fail)
        elif writer == "TensorBoard":
            monkeypatch.setattr(RecordWriter, "write", fail)  # in a thread of its own
        elif writer == "log":
            fill_log(workspace.folder / "faulty/log.txt")
        else:
            monkeypatch.setattr(torch, "save", fail)

    assert run_with_fault(workspace, monkeypatch, 7, fill_up) == 2
    explains(error_line(capfd), os.strerror(number), remedy="--resume")
    monkeypatch.undo()
    last = (workspace.folder / "faulty/last_checkpoint").read_text()
    assert last == ("model_0000019.pth" if writer in ("metrics", "TensorBoard") else "model_0000004.pth")
    workspace.run("faulty", *OPTIONS, flags=("--resume",))
    assert_equal_state(workspace.training_state("faulty"), workspace.training_state("whole"))


def test_full_disk_while_mining(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: Output) -> None:
    write, mined = PartialResults.write, []

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_two(results: PartialResults, batch: MinedBatch) -> None:
        mined.append(batch.index)
        if len(mined) > 2:
            monkeypatch.setattr(os, "fsync", full)
        write(results, batch)

    monkeypatch.setattr(PartialResults, "write", write_two)
    with workspace.registered(), pytest.raises(SystemExit) as stop:
        train_net().main(workspace.parse("faulty", *OPTIONS))
    assert stop.value.code == 2
    explains(error_line(capfd), "mined batch", "No space left on device", "MODEL.STYLE.BANK")
    monkeypatch.undo()
    again, mine_batch = [], StyleMiner.mine_batch
    monkeypatch.setattr(StyleMiner, "mine_batch", lambda *args: again.append(args[1]) or mine_batch(*args))
    workspace.run("faulty", *OPTIONS, flags=("--mine-styles-only",))
    assert not set(again) & set(mined[:2])
    banks = [StyleBank.load(workspace.folder / name / "style_bank.safetensors") for name in ("faulty", "whole")]
    assert torch.equal(banks[0].mean, banks[1].mean)


@pytest.mark.parametrize("fault", ["torn", "killed before it was written"])
def test_resume_writes_a_lost_final_checkpoint(workspace: Workspace, fault: str) -> None:
    options = ("MODEL.STYLE.STRATEGY", "noise", "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "2")
    options += ("MODEL_SELECTION.EMA_DECAY", "0.9", "MODEL_SELECTION.USE", "ema")
    workspace.run("ends", *options)
    folder = workspace.folder / "ends"
    whole = [workspace.checkpoint("ends", name) for name in ("model_final", "model_ema")]
    final = folder / "model_final.pth"
    if fault == "torn":
        final.write_bytes(final.read_bytes()[:1000])
    else:
        final.unlink()
        (folder / "last_checkpoint").write_text("model_0000001.pth")
    workspace.run("ends", *options, flags=("--resume",))
    assert_equal_state([workspace.checkpoint("ends", name) for name in ("model_final", "model_ema")], whole)
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_dataset_removed_while_training(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: Output, workers: str
) -> None:
    data, gone = workspace.folder / "data/images", workspace.folder / "gone"
    options = ("DATALOADER.NUM_WORKERS", workers)
    assert run_with_fault(workspace, monkeypatch, 2, lambda: data.rename(gone), *options) == 2
    assert re.search("not found.*data/images/train/", error_line(capfd))
    last = (workspace.folder / "faulty/last_checkpoint").read_text()
    assert last == "model_0000001.pth" or workers == "1"  # a worker has loaded more samples
    gone.rename(data)
    workspace.run("faulty", *OPTIONS, *options, flags=("--resume",))
    assert_equal_state(workspace.training_state("faulty"), workspace.training_state("whole"))


def leave_with_workers(folder: Path) -> None:
    cfg = data_config()
    cfg.DATALOADER.NUM_WORKERS = 1
    with registered(folder / "definition.yaml"):
        batches = iter(build_train_loader(cfg))
        assert len(next(batches)) == 2
        globals()["kept"] = batches  # beyond the end of the process


def test_processes_do_not_wait_for_their_workers(tmp_path: Path) -> None:
    """Workers ignore SIGTERM, which clusters send to all processes of a job, and with which Python ends its own."""
    make_dataset(tmp_path, count=3)
    process = multiprocessing.get_context("fork").Process(target=leave_with_workers, args=(tmp_path,))
    process.start()
    process.join(timeout=30)
    alive = process.is_alive()
    process.kill()
    assert not alive and process.exitcode == 0


def test_errors_keep_both_ends_of_a_long_message() -> None:
    message = str(FAMixError("begin " + "x" * 5000 + " end"))
    assert len(message) < 2000 and message.startswith("begin") and message.endswith("end")
    assert str(FAMixError("Traceback (most recent call last)" + "x" * 5000)).count("x") == 5000
    assert all(str(FAMixError(text)) == text for text in ("", "short", "x" * 1800))
