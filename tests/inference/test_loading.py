"""Which checkpoint, which config: found, or one clear error."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from data_factory import write_definition
from error_matching import expect_error
from famix.engine import load_config
from famix.inference.loading import load_model
from famix.io import checkpointer
from famix.utils.errors import ConfigError, FAMixError, WeightsError


def edit_config(run: Path, *options: str) -> CfgNode:
    cfg = load_config(str(run / "config.yaml"), options)
    (run / "config.yaml").write_text(cfg.dump())
    return cfg


def save_other_weights(run: Path, name: str) -> None:
    content = torch.load(run / "model_final.pth", weights_only=True)
    torch.save({"model": {key: value + 1 for key, value in content["model"].items()}, "iteration": 1}, run / name)


def test_network_is_built_without_clip_and_bank(run: Path) -> None:
    cfg = load_config(str(run / "config.yaml"))
    assert not Path(cfg.MODEL.CLIP.WEIGHTS).exists()  # the CLIP of 8 channels that it started from
    assert cfg.MODEL.STYLE.STRATEGY == "bank"
    loaded = load_model(run / "model_final.pth", device="cpu")
    expected = torch.load(run / "model_final.pth", weights_only=True)["model"]
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_checkpoint_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    load = checkpointer.load_tensors
    monkeypatch.setattr(checkpointer, "load_tensors", lambda file: reads.append(file.name) or load(file))  # type: ignore[func-returns-value]
    assert load_model(run, device="cpu").facts == {"iteration": 3}
    assert reads == [str(run / "model_final.pth")]


@pytest.mark.parametrize(("use", "name"), [("last", "model_final"), ("best", "model_best"), ("ema", "model_ema")])
def test_folder_of_a_run_stands_for_the_weights_that_it_selects(run: Path, use: str, name: str) -> None:
    for other in ("model_best.pth", "model_ema.pth"):
        save_other_weights(run, other)
    assert load_model(run, opts=["MODEL_SELECTION.USE", use], device="cpu").checkpoint == run / f"{name}.pth"


def test_config_and_options_can_be_given(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "config.yaml", tmp_path / "other.yaml")
    loaded = load_model(run / "model_final.pth", tmp_path / "other.yaml", ["INPUT.FORMAT", "BGR"], "cpu")
    assert loaded.cfg.INPUT.FORMAT == "BGR"


def spoil(run: Path, problem: str) -> Path:
    """Spoil a run, and return the path to load."""
    file = run / "model_final.pth"
    content = torch.load(file, weights_only=True)
    match problem:
        case "no config":
            (run / "config.yaml").unlink()
            return file
        case "no checkpoint":
            file.rename(run / "model_0000999.pth")
        case "mistyped":
            return run / "modle_final.pth"
        case "cut":
            file.write_bytes(file.read_bytes()[:3000])
        case "code":
            torch.save({"model": Path}, file)
        case "no layer3":
            state = {name: value for name, value in content["model"].items() if "layer3" not in name}
            torch.save({"model": state}, file)
        case _:
            edit_config(run, *problem.split(" ", 1))
    return run


@pytest.mark.parametrize(
    ("problem", "key", "remedy"),
    [
        ("no config", "--config-file", "Set"),
        ("no checkpoint", "model_final.pth", "model_0000999.pth"),
        ("mistyped", "modle_final.pth", "model_final.pth"),
        ("cut", "model_final.pth", ""),
        ("code", "model_final.pth", ""),
        ("no layer3", "does not fit its config", "config"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM 16", "does not fit its config", "config"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES 20", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "config"),
        ("DATASETS.FILES ['gone.yaml']", "DATASETS.FILES", "stripped"),
        ("DATASETS.FILES []", "tiny_train", "stripped"),
    ],
)
def test_mistake_is_one_error(run: Path, problem: str, key: str, remedy: str) -> None:
    path = spoil(run, problem)
    with pytest.raises(FAMixError) as caught:
        load_model(path, device="cpu")
    message = str(caught.value)
    assert key in message and remedy in message[message.index(key) + len(key) :], message


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_an_export_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x08\x12\x07pytorch")
    with expect_error(WeightsError, key="--weights", value=tmp_path / name, remedy=".pth"):
        load_model(tmp_path / name, device="cpu")


def test_home_and_variables_in_the_place_of_the_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    monkeypatch.setenv("RUNS", str(run.parent))
    for place in ("~", "$RUNS"):
        assert load_model(f"{place}/{run.name}", device="cpu").checkpoint.parent == run
    with expect_error(WeightsError, key="the checkpoint", value="https://localhost:1/model.pth", remedy="Copy"):
        load_model("https://localhost:1/model.pth", device="cpu")


@pytest.mark.parametrize("device", ["cuda:77", "no device"])
def test_device_that_is_not_there_is_one_error(run: Path, device: str) -> None:
    with expect_error(ConfigError, key="device", value=device, remedy="cpu"):
        load_model(run, device=device)


def test_classes_of_own_data_are_those_of_its_file(run: Path, tmp_path: Path) -> None:
    colors = [[1, 2, 3]] + [[0, 0, index] for index in range(18)]
    classes = [{"name": f"class {index}", "color": color} for index, color in enumerate(colors)]
    changes = {"name": "own", "classes": classes, "label_ids": {0: "class 0"}}
    definition = write_definition(tmp_path / "own", **changes)
    edit_config(run, "DATASETS.FILES", f"['{definition}']", "DATASETS.TRAIN", "['own_train']", "DATASETS.TEST", "[]")
    loaded = load_model(run, device="cpu")
    assert loaded.classes.names[0] == "class 0"
    assert loaded.classes.colors[0] == (1, 2, 3)


def test_data_set_of_other_code_needs_no_colours(run: Path) -> None:
    DatasetCatalog.register("foreign", list)
    MetadataCatalog.get("foreign").set(stuff_classes=[f"c{index}" for index in range(19)])
    edit_config(run, "DATASETS.TRAIN", "['foreign']")
    classes = load_model(run, device="cpu").classes
    assert classes.names[18] == "c18"
    assert len(set(classes.colors)) == 19
    assert np.array(classes.colors).max() <= 255
