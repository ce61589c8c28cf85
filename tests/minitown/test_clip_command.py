"""The command that trains a CLIP: arguments, files that cannot be written, and stops."""

import logging
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from clip_factory import save_tiny_clip
from data_factory import make_dataset, registered, write_label
from famix_minitown.datasets import CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED
from robustness.faults import start_fork, status_of, wait_for
from run_factory import ROOT, load_tool

SMALL = ("--scenes", "1", "--steps", "2", "--batch", "2", "--width", "4", "--workers", "1")
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_mini_clip")


def last_line(tool: ModuleType, capsys: Output, *arguments: object, status: int = 2) -> str:
    with pytest.raises(SystemExit) as stop:
        tool.main(list(map(str, arguments)))
    assert stop.value.code == status
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--warmup", ["-1"]), ("--batch", ["0", "-3", "1"]), ("--steps", ["-1", "2.5"]), ("--seed", ["-1"]),
        ("--learning-rate", ["-1", "nan", "0", "inf"]), ("--style-noise", ["nan", "-1", "much"]), ("--threads", ["0"]),
        ("--scenes", ["0", "100001"]), ("--workers", ["0"]), ("--width", ["0", "5"]), ("--dtype", ["float16"]),
        ("--output", ["."]), ("--crops-cache", [""]),
    ],
)  # fmt: skip
def test_arguments_out_of_range(
    tool: ModuleType, capsys: Output, option: str, values: list[str], tmp_path: Path
) -> None:
    for value in values:
        line = last_line(tool, capsys, "--output", tmp_path / "clip.safetensors", f"{option}={value}")
        assert f"error: argument {option}: " in line and repr(value) in line
    assert not list(tmp_path.iterdir())


def test_arguments_at_the_limits(tool: ModuleType, capsys: Output) -> None:
    least = [f"--{name}=0" for name in ("steps", "warmup", "style-noise", "seed")]
    arguments = tool.make_parser().parse_args(["--output=x", *least, "--batch=2", "--width=2", "--scenes=100000"])
    assert (arguments.steps, arguments.warmup, arguments.width) == (0, 0, 2)
    train, validation = tool.sources_of(arguments)
    assert (train.first, validation.first) == (CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED)
    assert train.first + train.count <= validation.first
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "0.25 MB per scene, 1.0 GB for 4000 scenes" in " ".join(capsys.readouterr().out.split())


def test_mistakes_are_found_before_crops_are_made(
    tool: ModuleType, capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "load_or_make_crops", lambda *_: pytest.fail("crops are made"))
    (tmp_path / "file").touch()
    other, output = save_tiny_clip(tmp_path / "clip.pt"), tmp_path / "out/clip"
    blocks = "with (2, 2, 2, 2) blocks"
    for option, value, words in (
        ("--device", "meta", ["--device must be usable here, got 'meta'"]),
        ("--device", "cuda:98", ["got 'cuda:98'"]),
        ("--device", "no_such_device", ["got 'no_such_device'"]),
        ("--log", tmp_path / "file/log.txt", ["error: ", str(tmp_path / "file")]),
        ("--output", "/proc/file", ["error: ", "/proc"]),
        ("--crops-cache", "/proc/file", ["error: ", "/proc"]),
        ("--initial", other, ["got width ", f"must have width 4 {blocks}"]),
        ("--initial", "minitown", [f"got width 16 {blocks}", f"must have width 4 {blocks}"]),
        ("--dataset", "no_such_set", ["no_such_set"]),
    ):
        line = last_line(tool, capsys, "--output", output, *SMALL, option, value)
        assert all(word in line for word in words), line
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_datasets_without_labels_or_images(tool: ModuleType, capsys: Output, tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=2)
    words = ["--output", tmp_path / "clip", *SMALL, "--dataset", "tiny_train", "--definition", file]
    write_label(tmp_path / "labels/train/a/1.png", np.full((24, 32), 9, np.uint8))
    with registered():
        assert "a/1.png' contains only ignored pixels" in last_line(tool, capsys, *words)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train/a/1.png").unlink()
    with registered():
        line = last_line(tool, capsys, *words)
    assert "tiny_train must have at least 2 images, for training and validation, got 1" in line
    assert not list(tmp_path.glob("*.npy"))


def test_interruption_names_the_way_to_continue(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "run", stop)
    line = last_line(tool, capsys, "--output", "clip", status=130)
    assert line == "stopped; run the same command again to resume"


def test_sigterm_ends_the_command_in_order(tmp_path: Path) -> None:
    script, log, folder = ROOT / "projects/FAMix/tools/train_mini_clip.py", tmp_path / "log", tmp_path / "new"

    def train() -> None:
        logging.root.handlers.clear()  # those of pytest
        sys.argv = ["", "--output", str(folder / "clip"), "--scenes", "500", "--workers", "1"]
        runpy.run_path(str(script), run_name="__main__")

    pid = start_fork(train, log)
    wait_for(lambda: log.exists() and "\n" in log.read_text(), log)
    time.sleep(1)  # some scenes later
    os.kill(pid, signal.SIGTERM)
    status, lines = status_of(pid), log.read_text().splitlines()
    assert status == 143, lines
    assert lines[-1] == "stopped; run the same command again to resume" and "Traceback" not in "".join(lines)
    assert "crops of 500 scenes" in lines[0] and "123 MB" in lines[0]
    assert [path.name for path in folder.iterdir()] == ["clip.crops.npy.json"]
