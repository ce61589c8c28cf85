"""Full disks: writers of videos, images, networks and exports keep the old file and report one error."""

import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torch.export import Dim

from clip_factory import tiny_clip
from data_factory import forgotten_datasets
from error_matching import error_line, explains
from famix.clip.export import save_clip
from famix.data.classes import ClassTable
from famix.engine.model_selection import save_weights
from famix.inference import LoadedModel, strip_checkpoint
from famix.inference.export import SemanticGraph, write_onnx, write_torch_export
from famix.inference.video import video_writer
from famix.inference.views import write_image
from famix.io.atomic import is_disk_error, whole_file
from famix.io.released_checkpoint import save_weights as write_released
from famix.utils.errors import FAMixError
from famix_minitown.clip import crops
from famix_minitown.clip.crops import RECORD, CropPlan, TownSource, make_crops
from inference.inference_factory import make_run
from robustness.faults import small_disk
from run_factory import CONFIG, load_program, load_tool

Output = pytest.CaptureFixture[str]
PLAN = CropPlan(seed=0, looks=2, crops=2)
CLASSES = ClassTable(("a",), ((0, 0, 0),))
NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


def write_video(path: Path) -> None:
    with video_writer(path, 25.0, NOISE.shape[:2]) as write:
        for number in range(20):
            write(np.roll(NOISE, number, 0))


@cache
def tiny_program() -> Any:
    model = torch.nn.Conv2d(3, 100, 5).eval()
    sizes = {0: Dim("batch", min=1, max=64), 2: Dim("height", min=8, max=64), 3: Dim("width", min=8, max=64)}
    return torch.export.export(model, (torch.zeros(2, 3, 16, 24),), dynamic_shapes={"input": sizes})


def write_graph(path: Path, write: Callable[..., None], *arguments: Any) -> None:
    with whole_file(path) as part:
        write(tiny_program(), part, *arguments)


LINEAR = torch.nn.Linear(200, 200)
WRITERS: dict[str, Callable[[Path], None]] = {
    "video.mp4": write_video,
    "video.avi": write_video,
    "image.png": lambda path: write_image(path, NOISE),
    "image.jpg": lambda path: write_image(path, NOISE),
    "network.pt2": lambda path: write_graph(path, write_torch_export),
    "network.onnx": lambda path: write_graph(path, write_onnx, SemanticGraph, CLASSES),
    "stripped.pth": lambda path: strip_checkpoint(LoadedModel(LINEAR, get_cfg(), CLASSES, path, {}, {}), path),
    "released.pth": lambda path: write_released(LINEAR.state_dict(), path),
    "model_ema.pth": lambda path: save_weights(LINEAR, path, iterations=1),
    "clip.pt": lambda path: save_clip(tiny_clip(), path),
    "clip.jit.pt": lambda path: save_clip(tiny_clip(), path, "torchscript"),
    "clip.safetensors": lambda path: save_clip(tiny_clip(), path, "safetensors"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_keeps_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with small_disk(20_000), pytest.raises((FAMixError, OSError)) as error:
        WRITERS[name](path)
    assert isinstance(error.value, FAMixError) or is_disk_error(error.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("full"), CONFIG)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_demo_keeps_the_old_video(run: Path, tmp_path: Path, capfd: Output, suffix: str) -> None:
    drive, seen = tmp_path / f"drive{suffix}", tmp_path / f"seen{suffix}"
    write_video(drive)
    seen.write_bytes(b"good")
    words = ["--weights", str(run), "--video-input", str(drive), "--output", str(seen), "--device", "cpu"]
    with small_disk(20_000), forgotten_datasets():
        assert load_tool("demo", "").main(words) == 2
    explains(error_line(capfd), str(seen), 20, "--output")
    assert seen.read_bytes() == b"good" and {file.name for file in tmp_path.iterdir()} == {drive.name, seen.name}


@pytest.mark.parametrize("form", ["torch_export", "stripped"])
def test_export_reports_a_full_disk(
    run: Path, tmp_path: Path, capfd: Output, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(load_program("export"), "export_graph", lambda *_, **__: tiny_program())
    words = [str(run), "--format", form, "--output", str(tmp_path), "--runs", "0", "--sizes", "32x40"]
    with small_disk(20_000), forgotten_datasets():
        assert load_tool("export").main(words) == 2
    assert "File too large" in error_line(capfd) and not list(tmp_path.iterdir())


def test_crops_reserve_their_space_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory map that runs out of space ends the process."""
    claimed: list[int] = []

    def full(descriptor: int, offset: int, size: int) -> None:
        claimed.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(crops, "DataLoader", lambda *_, **__: pytest.fail("made crops"))
    with pytest.raises(OSError, match="No space left"):
        make_crops(TownSource(0, 3), PLAN, tmp_path / "crops.npy")
    assert claimed[0] >= 3 * PLAN.looks * PLAN.crops * RECORD.itemsize and not list(tmp_path.iterdir())
