"""datasets/minitown.py: the tree that it writes, and its errors."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from data_factory import registered
from error_matching import explains
from famix.data import get_dataset_dicts, get_label_readers, verify_datasets
from famix_minitown.rendering.scene import render_scene
from run_factory import ROOT, load_script

Output = pytest.CaptureFixture[str]


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script(ROOT / "datasets/minitown.py")


def error_of(tool: ModuleType, capsys: Output, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        tool.main(list(map(str, arguments)))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_export_is_readable_as_cityscapes(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = "--count 2 --seed 7 --size 64 128 --split val --condition clear snow"
    tool.main(["--out", str(tmp_path / "cityscapes"), *options.split()])
    with registered():
        records = get_dataset_dicts(["cityscapes_val"])
        verify_datasets(["cityscapes_val"])
        reader = get_label_readers(["cityscapes_val"])["cityscapes_val"]
    assert [record["image_id"] for record in records] == [
        f"minitown{name}/minitown{name}_000000_{seed:06d}" for name in ("clear", "snow") for seed in (7, 8)
    ]
    for record, seed in zip(records, (7, 8, 7, 8), strict=True):
        np.testing.assert_array_equal(reader.read(record["label_file_name"]), render_scene(seed, (64, 128)).labels)


def test_full_disk_leaves_whole_files(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    save, saved = Image.Image.save, []

    def fill_the_disk(self: Image.Image, path: Path, **options: object) -> None:
        save(self, path, **options)
        saved.append(path)
        if len(saved) == 2:  # the labels, which follow the image
            path.write_bytes(path.read_bytes()[:20])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    assert "No space left" in error_of(tool, capsys, "--out", tmp_path, "--count", 1, "--size", 32, 32)
    assert files(tmp_path) == ["minitownclear_000000_000000_leftImg8bit.png"]


def test_other_files_stay(tool: ModuleType, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["--out", str(tmp_path), "--count", "1", "--size", "32", "32"]
    explains(error_of(tool, capsys, *arguments), "--out", tmp_path, "--overwrite")
    assert files(tmp_path) == ["notes.txt"]
    tool.main([*arguments, "--overwrite"])
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(files(tmp_path)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--count 0", "argument --count: must be an integer in [1, "),
        ("--count many", "argument --count: must be an integer"),
        ("--seed -1", "argument --seed: must be an integer in [0, "),
        ("--seed 999999999999", "--seed plus --count must be at most 1000000000000, got 999999999999 and 2"),
        ("--size 16 64", "argument --size: must be an integer in [32, 4096], got '16'"),
        ("--size 64", "argument --size: expected 2 arguments"),
        ("--condition hail", "argument --condition: invalid choice: 'hail'"),
        ("--split ../val", "argument --split: must consist of letters, digits and '_', got '../val'"),
        (f"--out {__file__}", "--out must be a folder, got the file"),
        (f"--out {__file__}/below", "Not a directory"),
    ],
)
def test_mistakes(tool: ModuleType, tmp_path: Path, capsys: Output, arguments: str, message: str) -> None:
    assert message in error_of(tool, capsys, "--out", tmp_path / "new", "--count", 2, *arguments.split())
    assert not (tmp_path / "new").exists()
