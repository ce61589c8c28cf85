"""Loading of a checkpoint with its config: found, or one clear error."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from data_factory import write_definition
from error_matching import expect_error, explains
from famix.engine import load_config
from famix.inference.loading import load_model
from famix.io import checkpointer
from famix.utils.errors import FAMixError, WeightsError


def edit_config(run, *options):
    cfg = load_config(str(run / "config.yaml"), options)
    (run / "config.yaml").write_text(cfg.dump())


def test_network_needs_no_clip_and_no_bank(run, monkeypatch):
    cfg = load_config(str(run / "config.yaml"))
    assert not Path(cfg.MODEL.CLIP.WEIGHTS).exists()  # the CLIP of 8 channels that it started from
    assert cfg.MODEL.STYLE.STRATEGY == "bank"
    reads, load = [], checkpointer.load_tensors
    monkeypatch.setattr(checkpointer, "load_tensors", lambda file: reads.append(file.name) or load(file))
    loaded = load_model(run, device="cpu")
    assert (loaded.facts, reads) == ({"iteration": 3}, [str(run / "model_final.pth")])
    expected = torch.load(run / "model_final.pth", weights_only=True)["model"]
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize(("use", "name"), [("last", "model_final"), ("best", "model_best"), ("ema", "model_ema")])
def test_run_directory_selects_its_weights(run, use, name):
    for other in ("model_best.pth", "model_ema.pth"):
        shutil.copy(run / "model_final.pth", run / other)
    assert load_model(run, opts=["MODEL_SELECTION.USE", use], device="cpu").checkpoint == run / f"{name}.pth"


def test_config_and_options_can_be_given(run, tmp_path):
    shutil.move(run / "config.yaml", tmp_path / "other.yaml")
    loaded = load_model(run / "model_final.pth", tmp_path / "other.yaml", ["INPUT.FORMAT", "BGR"], "cpu")
    assert loaded.cfg.INPUT.FORMAT == "BGR"


def spoil(run, problem):
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
            torch.save({"model": {k: value for k, value in content["model"].items() if "layer3" not in k}}, file)
        case "no table":
            torch.save({**content, "classes": {"names": 3}}, file)
        case ".onnx" | ".pt2":
            return file.rename(run / f"model{problem}")
        case _:
            edit_config(run, *problem.split(" ", 1))
    return run


@pytest.mark.parametrize(
    ("problem", "key", "remedy"),
    [
        ("no config", "--config-file", "Pass"),
        ("no checkpoint", "model_final.pth", "model_0000999.pth"),
        ("mistyped", "modle_final.pth", "model_final.pth"),
        ("cut", "model_final.pth", ""),
        ("code", "model_final.pth", ""),
        ("no layer3", "does not fit its config", "config"),
        ("no table", "classes", ""),
        (".onnx", "--weights", "onnx_runtime_example.py"),
        (".pt2", "--weights", "torch.export.load"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM 16", "does not fit its config", "config"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES 20", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "config"),
        ("DATASETS.FILES ['gone.yaml']", "DATASETS.FILES", "stripped"),
        ("DATASETS.FILES []", "tiny_train", "stripped"),
    ],
)
def test_mistakes_are_one_error(run, problem, key, remedy):
    path = spoil(run, problem)
    with pytest.raises(FAMixError) as caught:
        load_model(path, device="cpu")
    message = str(caught.value)
    assert key in message and remedy in message[message.index(key) + len(key) :], message


@pytest.mark.parametrize("end", ["", "/model_final.pth"])
def test_missing_path_is_no_unfinished_run(run, end):
    missing = Path(f"{str(run)[:-1]}{end}")
    with expect_error(WeightsError, str(missing), remedy=run.name) as caught:
        load_model(missing, device="cpu")
    assert "training" not in str(caught.value)
    (run / "model_final.pth").unlink()
    with expect_error(WeightsError, str(run), remedy="training"):
        load_model(run, device="cpu")


def test_paths_with_home_and_variables(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    monkeypatch.setenv("RUNS", str(run.parent))
    for place in ("~", "$RUNS"):
        assert load_model(f"{place}/{run.name}", device="cpu").checkpoint.parent == run
    with expect_error(WeightsError, key="the checkpoint", value="https://localhost:1/model.pth", remedy="Copy"):
        load_model("https://localhost:1/model.pth", device="cpu")


@pytest.mark.parametrize("device", ["cuda:77", "no device"])
def test_missing_devices_are_refused(run, device):
    with pytest.raises(FAMixError) as caught:
        load_model(run, device=device)
    explains(str(caught.value), key="Device", value=device, remedy="cpu")


def test_classes_of_own_and_foreign_datasets(run, tmp_path):
    classes = [{"name": f"class {index}", "color": [index, 2, 3]} for index in range(19)]
    definition = write_definition(tmp_path / "own", name="own", classes=classes, label_ids={0: "class 0"})
    edit_config(run, "DATASETS.FILES", f"['{definition}']", "DATASETS.TRAIN", "['own_train']", "DATASETS.TEST", "[]")
    loaded = load_model(run, device="cpu")
    assert (loaded.classes.names[0], loaded.classes.colors[1]) == ("class 0", (1, 2, 3))

    DatasetCatalog.register("foreign", list)  # registered by other code, without colors
    MetadataCatalog.get("foreign").set(stuff_classes=[f"c{index}" for index in range(19)])
    edit_config(run, "DATASETS.TRAIN", "['foreign']")
    table = load_model(run, device="cpu").classes
    assert table.names[18] == "c18" and len(set(table.colors)) == 19 and np.array(table.colors).max() <= 255
