"""train_net.py as users run it: exit status and message of every mistake, and runs of several processes."""

import json
import logging
import os
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from clip_factory import save_tiny_clip
from data_factory import write_label
from error_matching import error_line, explains
from famix.style import StyleBank
from famix_cli import execute
from robustness.faults import start_command, status_of
from run_factory import SIZE, Workspace, call_train_net, train_net

BANK = "bank/style_bank.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a mined bank, to be copied."""
    workspace = Workspace(tmp_path_factory.mktemp("pristine") / "space")
    workspace.run("bank", flags=("--mine-styles-only",))
    return workspace.folder


@pytest.fixture
def workspace(pristine: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may break."""
    shutil.copytree(pristine, tmp_path / "space")
    return Workspace.existing(tmp_path / "space")


def first_label(workspace: Workspace) -> Path:
    return workspace.folder / "data/labels/train/0.png"


def shrink_label(workspace: Workspace) -> None:
    write_label(first_label(workspace), np.zeros((SIZE[0] - 1, SIZE[1]), dtype=np.uint8))


# Name -> a function that breaks the workspace, options, and a pattern of the error.
MISTAKES: dict[str, tuple[Callable[[Workspace], object], tuple[str, ...], str]] = {
    "unknown key": (lambda space: None, ("MODEL.STYLE.GIRD", "[2, 2]"), "MODEL.STYLE.GIRD.*MODEL.STYLE.GRID"),
    "missing folder": (lambda space: shutil.rmtree(space.folder / "data/images"), (), "data/images"),
    "label of wrong size": (shrink_label, (), r"0\.png.*71"),
    "corrupt image": (
        lambda space: os.truncate(space.folder / "data/images/train/0.png", 9000), (), r"images/train/0\.png"
    ),
    "truncated CLIP": (lambda space: os.truncate(space.clip, 10_000), (), r"clip\.pt"),
    "bank of different CLIP": (
        lambda space: save_tiny_clip(space.clip, seed=1), ("MODEL.STYLE.BANK", f"{{space}}/{BANK}"),
        "clip_hash .*[0-9a-f]{64}.*[0-9a-f]{64}.*MODEL.CLIP.WEIGHTS",
    ),
    "unwritable output": (
        lambda space: None, ("OUTPUT_DIR", "{space}/clip.pt/output"), "OUTPUT_DIR .*clip.pt/output"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_with_one_clear_error(
    mistake: str, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    break_workspace, options, message = MISTAKES[mistake]
    break_workspace(workspace)
    options = tuple(option.replace("{space}", str(workspace.folder)) for option in options)
    with pytest.raises(SystemExit) as exit_info, workspace.registered():
        train_net().main(workspace.parse("run", *options))
    assert exit_info.value.code == 2
    assert re.search(message, line := error_line(capfd)), line
    assert not (workspace.folder / "run/model_final.pth").exists()
    assert not list(workspace.folder.glob("run/*.safetensors"))  # not even a part of a bank


def test_separate_process_reports_mistake_in_one_line(workspace: Workspace) -> None:
    process = call_train_net(*workspace.arguments("run", "SOLVER.BASE_LRR", "1"))
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    explains(line, "error: ", remedy="SOLVER.BASE_LR")


def test_two_processes_mine_the_bank_of_one_and_train(workspace: Workspace, tmp_path: Path) -> None:
    arguments = workspace.arguments("two", "SOLVER.MAX_ITER", "2", flags=("--num-gpus", "2"))
    status = status_of(start_command(arguments, log := tmp_path / "log"))
    assert status == 0, log.read_text()[-2000:]
    one = StyleBank.load(workspace.folder / "bank/style_bank.safetensors")
    two = StyleBank.load(workspace.folder / "two/style_bank.safetensors")
    assert torch.equal(one.class_ids, two.class_ids)
    for name in ("batch_id", "prompt_id"):
        assert torch.equal(one.annotations[name], two.annotations[name])
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-4, atol=1e-5)
    weights = workspace.checkpoint("two")["model"]
    assert not [name for name in weights if name.startswith("module.")]
    # What two processes scored together is what their checkpoint scores.
    last = json.loads((workspace.folder / "two/metrics.json").read_text().splitlines()[-1])
    weights_file = str(workspace.folder / "two/model_final.pth")
    scores = workspace.run("scores", "MODEL.WEIGHTS", weights_file, flags=("--eval-only",))
    assert scores["tiny_val"]["sem_seg"]["mIoU"] == pytest.approx(last["tiny_val/sem_seg/mIoU"])


def test_two_processes_report_one_mistake(workspace: Workspace, tmp_path: Path) -> None:
    first_label(workspace).unlink()
    status = status_of(start_command(workspace.arguments("two", flags=("--num-gpus", "2")), log := tmp_path / "log"))
    assert status == 2 and "Traceback" not in log.read_text()
    assert "error: " in log.read_text()


def test_interrupted_run_says_how_to_continue(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = train_net()

    def interrupt(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        script.main(workspace.parse("run"))
    assert exit_info.value.code == 130
    assert "--resume" in capfd.readouterr().err


def test_programs_hide_that_a_cpu_has_no_cuda_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    program, logger = ModuleType("program"), logging.getLogger("torch.utils.cpp_extension")
    program.execute = lambda arguments: logger.isEnabledFor(logging.WARNING)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "program", program)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    assert not execute("program", Namespace())
