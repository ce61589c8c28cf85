"""Files of the reference implementation, imported and used by train_net, in miniature and at RN50's size."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from clip_factory import save_tiny_clip
from data_factory import registered, write_definition
from error_matching import explains
from famix.engine import SafeCheckpointer, load_config
from famix.io.released_checkpoint import ReleasedCheckpoint, load_released_checkpoint, require_fit
from famix.mining import StyleMiner
from famix.style import StyleBank
from famix_cli.import_released import main
from famix_cli.programs.import_released import describe_checkpoint
from model_factory import make_batch
from released_factory import (
    RN101_LAYERS,
    SMALL,
    released_logits,
    released_shapes,
    released_state,
    released_styles,
    write_bank,
    write_checkpoint,
)
from robustness.hostile_files import Calls
from run_factory import CONFIG, ROOT, Workspace

RN50, RN101 = (str(ROOT / f"projects/FAMix/configs/GTA5/famix_{name}.yaml") for name in ("RN50", "RN101"))
TRAIN_IDS = {0: 0, 1: 10, 2: 13}  # of road, sky and car in the miniature dataset's files


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return released_state(seed=3, **SMALL)


def run_tool(*arguments: object) -> int | None:
    with registered():
        return main([str(argument) for argument in arguments])


def tiny_config(workspace: Workspace) -> list[str]:
    """Arguments that name the miniature network and data, with the grid of released banks."""
    return [
        "--config-file", str(CONFIG), "DATASETS.FILES", f"['{workspace.definition}']",
        "MODEL.CLIP.WEIGHTS", str(workspace.clip), "MODEL.STYLE.GRID", "[3, 3]",
    ]  # fmt: skip


def test_evaluation_scores_an_imported_checkpoint(workspace: Workspace, tmp_path: Path, state: dict[str, Any]) -> None:
    released, model = write_checkpoint(tmp_path / "released.pth", state), tmp_path / "new/model.pth"
    assert run_tool(released, "--output", model, *tiny_config(workspace)) == 0
    results = workspace.run("scores", "MODEL.WEIGHTS", str(model), flags=("--eval-only",))
    expected = reference_ious(state, workspace)
    assert len(expected) == 3
    got = {train_id: results["tiny_val"]["sem_seg"][f"IoU-{name}"] for train_id, name in
           [(0, "road"), (10, "sky"), (13, "car")]}  # fmt: skip
    assert got == pytest.approx(expected, abs=0.05)
    assert max(got.values()) > 5


def reference_ious(state: dict[str, torch.Tensor], workspace: Workspace) -> dict[int, float]:
    """IoU of every class in tiny_val in percent, from the released network as plain formulas."""
    confusion = np.zeros((19, 20), dtype=np.int64)  # prediction x truth, 19 = ignored
    for image in sorted((workspace.folder / "data/images/val").iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)
        predicted = released_logits(state, pixels, SMALL["layers"]).argmax(0).numpy()
        ids = np.array(Image.open(workspace.folder / "data/labels/val" / image.name))
        truth = np.select([ids == label for label in TRAIN_IDS], list(TRAIN_IDS.values()), 19)
        np.add.at(confusion, (predicted, truth), 1)
    confusion = confusion[:, :19]
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return {train_id: 100 * confusion[train_id, train_id] / union[train_id] for train_id in TRAIN_IDS.values()}


def test_training_uses_imported_weights_and_styles(
    workspace: Workspace, tmp_path: Path, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    styles = write_bank(tmp_path / "saved_params.pkl", released_styles(channels=32))
    released = write_checkpoint(tmp_path / "released.pth", state)
    model, bank = tmp_path / "model.pth", tmp_path / "bank.safetensors"
    assert run_tool(released, "--output", model) == run_tool(styles, "--output", bank, *tiny_config(workspace)) == 0
    monkeypatch.setattr(StyleMiner, "mine_batches", None)
    options = ["MODEL.WEIGHTS", str(model), "MODEL.STYLE.GRID", "[3, 3]", "SOLVER.MAX_ITER", "2"]
    workspace.run("styled", *options, "MODEL.STYLE.BANK", str(bank))
    workspace.run("plain", *options, "MODEL.STYLE.STRATEGY", "none")
    styled, plain = (workspace.checkpoint(run)["model"] for run in ("styled", "plain"))
    for name, value in load_released_checkpoint(released).items():
        if name.startswith("backbone.") and not name.startswith("backbone.layer4"):
            assert torch.equal(styled[name], value), name
    assert not torch.equal(styled["sem_seg_head.project.0.weight"], plain["sem_seg_head.project.0.weight"])
    assert StyleBank.load(bank).metadata["imported_from"] == "saved_params.pkl"


def test_rn50_checkpoint_gives_the_released_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = released_state()
    released = write_checkpoint(tmp_path / "released.pth", state)
    assert run_tool(released, "--output", tmp_path / "model.pth", "--config-file", RN50) == 0
    output = capsys.readouterr().out
    assert "CLIP RN50" in output and "40,000 iterations" in output and "48.51 %" in output and "classes: 19" in output
    assert "Fits the config" in output
    model = build_model(load_config(RN50, ["MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", "cpu"])).eval()
    incompatible = SafeCheckpointer(model, strict=True)._load_model(torch.load(tmp_path / "model.pth"))
    assert not (incompatible.missing_keys or incompatible.unexpected_keys or incompatible.incorrect_shapes)
    batch = make_batch((64, 96), labels=False)
    with torch.no_grad():
        got, expected = model(batch)[0]["sem_seg"], released_logits(state, batch[0]["image"])
    assert got.shape == (19, 64, 96) and expected.std() > 0.1
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert run_tool(released, "--output", tmp_path / "other.pth", "--config-file", RN101) == 2
    error = capsys.readouterr().err
    assert "missing: backbone.layer3.6.conv1.weight" in error and not (tmp_path / "other.pth").exists()


def test_bank_is_described_and_fits_rn50(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    styles = write_bank(tmp_path / "saved_params.pkl", released_styles(3) | {"train_mu": [], "train_std": []})
    assert run_tool(styles, "--output", tmp_path / "bank.safetensors", "--config-file", RN50) == 0
    output = capsys.readouterr().out
    assert "57 styles with 256 channels" in output
    rows = dict(reversed(row) for row in re.findall(r"^ +(\d+) ([^\d\n]+)$", output, flags=re.MULTILINE))
    assert len(rows) == 20 and (rows["road"], rows["train"], rows["unlabelled"]) == ("3", "0", "3")
    assert len(StyleBank.load(tmp_path / "bank.safetensors")) == 57


def test_rn101_has_the_released_names_and_shapes() -> None:
    shapes = released_shapes(layers=RN101_LAYERS)
    weights = {name.replace("classifier.", "sem_seg_head.", 1): torch.empty(shape, device="meta")
               for name, shape in shapes.items()}  # fmt: skip
    options = ["MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP.ARCHITECTURE", "RN101", "MODEL.DEVICE", "meta"]
    with torch.device("meta"):
        require_fit(weights, build_model(load_config(RN101, options)).state_dict())
    description = describe_checkpoint(ReleasedCheckpoint(weights, None, None))
    assert "CLIP RN101" in description and "best" not in description


def hostile_bank(folder: Path) -> Path:
    return write_bank(folder / "s.pkl", {"road_mu": [Calls(os.mkdir, str(folder / "executed"))]})


def hostile_checkpoint(folder: Path) -> Path:
    torch.save({"model_state": Calls(os.mkdir, str(folder / "executed"))}, folder / "r.pth")
    return folder / "r.pth"


def bank(folder: Path) -> Path:
    return write_bank(folder / "s.pkl", released_styles())


def checkpoint(folder: Path) -> Path:
    return write_checkpoint(folder / "r.pth", released_state(**SMALL))


def checkpoint_and_folder(folder: Path) -> Path:
    (folder / "out.pth").mkdir()
    return checkpoint(folder)


def checkpoint_for_other_classes(folder: Path) -> Path:
    classes = [{"name": name, "color": [0, 0, index]} for index, name in enumerate(("sky", "road", "car"))]
    write_definition(folder / "data", classes=classes)
    save_tiny_clip(folder / "clip.pt")
    return write_checkpoint(folder / "r.pth", released_state(**SMALL, classes=3))


OUT, BANK = "--output {tmp}/out.pth", "--output {tmp}/out.safetensors"
FOR_RN50 = f"{BANK} --config-file {RN50}"
OTHER_CLASSES = (
    f"{OUT} --config-file {CONFIG} DATASETS.FILES ['{{tmp}}/data/definition.yaml'] DATASETS.TRAIN ['tiny_train'] "
    "DATASETS.TEST ['tiny_val'] MODEL.CLIP.WEIGHTS {tmp}/clip.pt MODEL.SEM_SEG_HEAD.NUM_CLASSES 3"
)
# Maker of the file, other words of the command -> key, value and remedy of the error.
MISTAKES: dict[str, tuple[Callable[[Path], Path], str, str, str | None, str]] = {
    "hostile checkpoint": (hostile_checkpoint, OUT, "r.pth", "posix.mkdir", "nothing was executed"),
    "hostile bank": (hostile_bank, BANK, "s.pkl", "posix.mkdir", "nothing was executed"),
    "checkpoint to .safetensors": (checkpoint, BANK, "--output", ".pth", "Rename"),
    "bank to .pth": (bank, OUT, "--output", ".safetensors", "Rename"),
    "missing file": (lambda folder: folder / "r.pth", OUT, "r.pth", None, "saved_params.pkl"),
    "output over input": (checkpoint, "--output {tmp}/r.pth", "--output", "the input", "another file"),
    "output is a folder": (checkpoint_and_folder, OUT, "--output", "a folder", "another file"),
    "a folder": (lambda folder: folder, OUT, "FILE", "folder", "saved_params.pkl"),
    "output below a file": (checkpoint, "--output {tmp}/r.pth/out.pth", "out.pth", None, ""),
    "no config": (bank, f"{OUT} MODEL.STYLE.GRID [1,1]", "Settings", "MODEL.STYLE.GRID", "--config-file"),
    "misspelt setting": (bank, f"{FOR_RN50} MODEL.STYLE.GIRD [1,1]", "MODEL.STYLE.GIRD", None, "MODEL.STYLE.GRID"),
    "missing config": (bank, f"{OUT} --config-file {{tmp}}/c.yaml", "c.yaml", None, ""),
    "bank for another grid": (bank, f"{FOR_RN50} MODEL.STYLE.GRID [2,2]", "grid", "[3, 3]", "MODEL.STYLE.GRID"),
    "bank for another stage": (bank, f"{FOR_RN50} MODEL.STYLE.STAGE res3", "stage", "res2", "MODEL.STYLE.STAGE"),
    "bank of another width": (bank, f"{FOR_RN50} MODEL.CLIP.WEIGHTS RN50x4", "320", "256", "MODEL.CLIP.WEIGHTS"),
    "no datasets": (bank, f"{FOR_RN50} DATASETS.TEST () DATASETS.TRAIN ()", "DATASETS.TRAIN", "empty", "Set one"),
    "other classes": (checkpoint_for_other_classes, OTHER_CLASSES, "classes", "sky, road, car", "same order"),
}


@pytest.mark.parametrize(("make", "words", "key", "value", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_with_one_line_and_write_nothing(
    make: Any, words: str, key: str, value: str | None, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run_tool(file, *words.format(tmp=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    explains(error, key, value, remedy)
    assert sorted(tmp_path.rglob("*")) == before
