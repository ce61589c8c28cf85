"""Whole panoptic runs through train_net with both heads: mine, train, evaluate, stop and continue."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from error_matching import expect_error
from famix.style import StyleBank
from famix.utils.errors import DatasetError
from panoptic_factory import PanopticWorkspace
from run_factory import assert_equal_state

DATASETS = ("tiny_val_panoptic", "tiny_night_panoptic")


@pytest.fixture(scope="module", params=["deeplab", "fpn", "maskformer"])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PanopticWorkspace:
    """A dataset, a CLIP and one whole run of a head, in "finished"."""
    workspace = PanopticWorkspace(tmp_path_factory.mktemp("workspace"), f"famix_panoptic_{request.param}.yaml")
    workspace.run("finished")
    return workspace


def test_run_mines_and_scores_all_targets(workspace: PanopticWorkspace) -> None:
    output = workspace.folder / "finished"
    bank = StyleBank.load(output / "style_bank.safetensors")
    assert set(bank.class_ids.tolist()) <= {0, 10, 11, 13, 255} and len(bank.counts()) >= 2
    results = json.loads((output / "results.json").read_text())
    for name in DATASETS:
        assert results[name].keys() == {"sem_seg", "calibration", "panoptic_seg", "segm"}
        assert len(results[name]["panoptic_seg"]) == 9
        assert all(0 <= value <= 100 for value in results[name]["panoptic_seg"].values())
    log, page = (output / "log.txt").read_text(), (output / "results.md").read_text()
    for text in (log.rsplit("Results in percent:", 1)[1], page.split("Evaluation of each dataset:", 1)[1]):
        head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
        scored = {row[0]: row for row in rows[: len(DATASETS)]}
        shown = [name for name in head if name != "mIoU-zero"]  # shown if a class is predicted that does not occur
        assert shown[:8] == ["dataset", "role", "protocol", "classes", "mIoU", "fwIoU", "mACC", "pACC"]
        assert shown[8:12] == ["PQ", "SQ", "RQ", "PQ things"] and shown[-1] == "mask AP"
        for name in DATASETS:
            assert float(scored[name][head.index("PQ")]) == pytest.approx(results[name]["panoptic_seg"]["PQ"], abs=0.06)
    with (output / "results.csv").open() as file:
        table = {row["data_set"]: row for row in csv.DictReader(file)}
    for name in DATASETS:
        assert float(table[name]["PQ things"]) == results[name]["panoptic_seg"]["PQ_th"]
        assert float(table[name]["mask AP"]) == results[name]["segm"]["AP"]


def test_frozen_weights_do_not_change(workspace: PanopticWorkspace) -> None:
    start, after = torch.load(workspace.clip, weights_only=True), workspace.checkpoint("finished")["model"]
    clip = "backbone.bottom_up." if any("bottom_up" in name for name in after) else "backbone."
    own = {name.removeprefix(clip): value for name, value in after.items() if name.startswith(clip)}
    frozen = {name: value for name, value in own.items() if not name.startswith("layer4.")}
    assert {name.split(".")[0] for name in frozen} >= {"conv1", "bn1", "layer1", "layer2", "layer3"}
    for name, value in frozen.items():
        assert torch.equal(value, start[f"visual.{name}"].to(value.dtype)), name
    trained = [name for name in own if name.startswith("layer4.") and name.endswith(("weight", "running_mean"))]
    assert trained and not any(torch.equal(own[name], start[f"visual.{name}"].to(own[name].dtype)) for name in trained)


def test_resumed_run_equals_an_undisturbed_one(workspace: PanopticWorkspace) -> None:
    output = workspace.folder / "resumed"
    output.mkdir()
    for name in ("model_0000001.pth", "style_bank.safetensors"):
        shutil.copy(workspace.folder / "finished" / name, output)
    (output / "last_checkpoint").write_text("model_0000001.pth")
    workspace.run("resumed", flags=("--resume",))
    assert_equal_state(workspace.checkpoint("resumed"), workspace.checkpoint("finished"))


def test_damaged_dataset_stops_the_run_at_the_start(workspace: PanopticWorkspace, tmp_path: Path) -> None:
    file = workspace.folder / "data/panoptic/train/3.png"
    file.rename(tmp_path / "aside.png")
    try:
        with expect_error(DatasetError, key="tiny_train_panoptic", value="3.png", remedy="re-extract"):
            workspace.run("bad")
    finally:
        (tmp_path / "aside.png").rename(file)
    assert not list((workspace.folder / "bad").glob("*.safetensors"))
