"""The command that trains a CLIP: arguments that make no sense, files that cannot be written, and being stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from clip_factory import save_tiny_clip
from data_factory import make_dataset, registered, write_label
from famix_minitown.datasets import CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED
from run_factory import ROOT, load_tool

SCRIPT = ROOT / "projects/FAMix/tools/train_mini_clip.py"
SMALL = ("--scenes", "1", "--steps", "2", "--batch", "2", "--width", "4", "--workers", "1")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_mini_clip")


def _last_line(tool: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments)
    assert stop.value.code == status
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--warmup", "-1"), ("--batch", "0"), ("--batch", "-3"), ("--batch", "1"), ("--steps", "-1"),
        ("--steps", "2.5"), ("--seed", "-1"), ("--learning-rate", "-1"), ("--learning-rate", "nan"),
        ("--learning-rate", "0"), ("--learning-rate", "inf"), ("--style-noise", "nan"), ("--style-noise", "-1"),
        ("--style-noise", "much"), ("--threads", "0"), ("--scenes", "0"), ("--scenes", "100001"), ("--workers", "0"),
        ("--width", "0"), ("--width", "5"), ("--dtype", "float16"), ("--output", "."), ("--crops-cache", ""),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str, tmp_path: Path
) -> None:
    said = _last_line(tool, capsys, "--output", str(tmp_path / "clip.safetensors"), f"{option}={value}")
    assert f"error: argument {option}: " in said and repr(value) in said
    assert not list(tmp_path.iterdir())


def test_arguments_at_the_limits(tool: ModuleType) -> None:
    least = [f"--{name}=0" for name in ("steps", "warmup", "style-noise", "seed")]
    arguments = tool.make_parser().parse_args(["--output=x", *least, "--batch=2", "--width=2", "--scenes=100000"])
    assert (arguments.steps, arguments.warmup, arguments.width) == (0, 0, 2)
    sources = tool.sources_of(arguments)
    assert (sources.train.first, sources.validation.first) == (CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED)
    assert sources.train.first + sources.train.count <= sources.validation.first


def test_help_says_how_large_the_crops_are(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "0.25 MB a scene, 1.0 GB for 4000 scenes" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("device", ["meta", "cuda:98", "no_such_device"])
def test_devices_that_cannot_be_used(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, device: str
) -> None:
    said = _last_line(tool, capsys, "--output", str(tmp_path / "clip"), *SMALL, "--device", device)
    assert f"--device must be usable here, got '{device}'" in said
    assert not list(tmp_path.iterdir()), "it must be said before crops are made"


def test_a_log_that_cannot_be_written(tool: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = _last_line(
        tool, capsys, "--output", str(tmp_path / "clip"), *SMALL, "--log", str(tmp_path / "file" / "log.txt")
    )
    assert "error: " in said and str(tmp_path / "file") in said


@pytest.mark.parametrize("option", ["--output", "--crops-cache"])
def test_folders_that_cannot_be_written_to(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(tool, "load_or_make_crops", lambda *_: pytest.fail("it must be said before crops are made"))
    said = _last_line(tool, capsys, "--output", str(tmp_path / "clip"), *SMALL, option, "/proc/file")
    assert "error: " in said and "/proc" in said


def test_a_start_of_another_architecture(tool: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = str(save_tiny_clip(tmp_path / "clip.pt"))
    (tmp_path / "out").mkdir()
    for start, sizes in ((other, "width "), ("minitown", "width 16 with (2, 2, 2, 2) blocks")):
        said = _last_line(tool, capsys, "--output", str(tmp_path / "out/clip"), *SMALL, "--initial", start)
        assert f"got {sizes}" in said and "must have width 4 with (2, 2, 2, 2) blocks" in said
    assert not list((tmp_path / "out").iterdir()), "it must be said before crops are made"


def test_the_packaged_clip_is_a_start(tool: ModuleType, tmp_path: Path) -> None:
    path, log = tmp_path / "clip.safetensors", tmp_path / "logs/log.txt"
    sizes = ["--scenes", "1", "--steps", "0", "--workers", "1"]
    tool.main(["--output", str(path), *sizes, "--initial", "minitown", "--device", "cpu", "--log", str(log)])
    assert path.exists() and log.exists()


def test_datasets_that_cannot_be_learnt_from(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = make_dataset(tmp_path, count=2)
    words = ["--output", str(tmp_path / "clip"), *SMALL, "--dataset", "tiny_train", "--definition", str(file)]
    assert "no_such_set" in _last_line(tool, capsys, *words[:2], "--dataset", "no_such_set")
    write_label(tmp_path / "labels/train/a/1.png", np.full((24, 32), 9, np.uint8))
    with registered():
        assert "a/1.png must show a class" in _last_line(tool, capsys, *words)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train/a/1.png").unlink()
    with registered():
        assert "tiny_train must have at least 2 images, for training and validation, got 1" in _last_line(
            tool, capsys, *words
        )
    assert not list(tmp_path.glob("*.npy"))


def test_interruption_says_how_to_go_on(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "run", stop)
    said = _last_line(tool, capsys, "--output", "clip", status=130)
    assert said == "stopped; the same command continues the training"


def test_a_signal_ends_the_command_in_order(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--output", str(tmp_path / "clip"), "--scenes", "500", "--workers", "1"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    with process:
        said = [process.stderr.readline()]
        time.sleep(1)  # some scenes later
        process.send_signal(signal.SIGTERM)
        said += process.stderr.read().splitlines()
    assert process.returncode == 143, said
    assert said[-1] == "stopped; the same command continues the training" and "Traceback" not in "".join(said)
    assert "Making crops of 500 scenes" in said[0] and "123 MB" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["clip.crops.npy.json"]
