"""Whole runs through train_net on a miniature dataset: mine, train, evaluate, stop and continue."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix import Predictor
from famix.data import LabelReader
from famix.modeling import FAMixSemanticSegmentor
from famix.style import STYLE_STRATEGY_REGISTRY, StyleBank
from famix.utils.errors import BankError, ConfigError, DatasetError
from run_factory import Workspace, assert_equal_state, load_tool

BACKBONE = "backbone."


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A dataset and a CLIP for all tests of this file."""
    return Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def finished(workspace: Workspace) -> Path:
    """Output folder of one whole run of 4 iterations, with evaluation in the middle."""
    workspace.run("finished", "TEST.EVAL_PERIOD", "2")
    return workspace.folder / "finished"


def load_bank(output: Path) -> StyleBank:
    return StyleBank.load(output / "style_bank.safetensors")


def continue_from(finished: Path, output: Path, checkpoint: str = "model_0000001.pth") -> None:
    """Make a folder that looks as if the run had been stopped after a checkpoint."""
    output.mkdir()
    shutil.copy(finished / checkpoint, output)
    for bank in finished.glob("*.safetensors"):
        shutil.copy(bank, output)
    (output / "last_checkpoint").write_text(checkpoint)


def test_run_writes_all_files(finished: Path) -> None:
    files = {path.name for path in finished.iterdir()}
    assert {"style_bank.safetensors", "model_final.pth", "config.yaml", "metrics.json", "log.txt"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    metrics = [json.loads(line) for line in (finished / "metrics.json").read_text().splitlines()]
    scores = [m for m in metrics if "tiny_val/sem_seg/mIoU" in m]
    assert len(scores) == 2
    assert all(0 <= m[f"tiny_{split}/sem_seg/mIoU"] <= 100 for m in scores for split in ("val", "night"))
    table = (finished / "log.txt").read_text().rsplit("Results in percent:", 1)[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows] == [
        ["dataset", "role"], [":-----------", ":-------"], ["tiny_night", "target"], ["tiny_val", "source"],
    ]  # fmt: skip


def test_bank_describes_its_styles(finished: Path) -> None:
    bank = load_bank(finished)
    classes, batches = bank.class_ids.tolist(), bank.annotations["batch_id"].tolist()
    assert len(set(zip(batches, classes, strict=True))) == len(batches), "at most one style per class and batch"
    assert set(batches) == {0, 1, 2}  # 6 images, 2 in a batch
    assert set(classes) <= {0, 10, 13, 255} and len(bank.counts()) >= 2  # road, sky, car, unlabeled
    metadata = bank.metadata
    assert (metadata["grid"], metadata["stage"], metadata["source"]) == ("[2, 3]", "res2", '["tiny_train"]')
    assert json.loads(metadata["templates"]) == ["a photo of a {}."] and len(metadata["clip_hash"]) == 64
    prompts, names = json.loads(metadata["prompts"]), json.loads(metadata["class_names"])
    for class_id, prompt_id in zip(classes, bank.annotations["prompt_id"].tolist(), strict=True):
        assert prompts[prompt_id].endswith("photo" if class_id == 255 else f" style {names[class_id]}")


def test_checkpoint_contains_the_network_with_frozen_parts_unchanged(finished: Path, workspace: Workspace) -> None:
    start = torch.load(workspace.clip, weights_only=True)
    after = workspace.checkpoint("finished")["model"]
    unchanged = {
        name for name, value in after.items()
        if name.startswith(BACKBONE)
        and torch.equal(value, start["visual." + name.removeprefix(BACKBONE)].to(value.dtype))
    }  # fmt: skip
    trained = {name for name in after if name.startswith(BACKBONE + "layer4.")}
    frozen = {name for name in after if name.startswith(BACKBONE)} - trained
    assert frozen <= unchanged  # bit-identical over train, evaluate, train, batch norm's statistics included
    assert not {name for name in trained if name.endswith(("weight", "running_mean"))} & unchanged
    assert {name.split(".")[0] for name in after} == {"backbone", "sem_seg_head"}
    assert not [name for name in after if "attnpool" in name or "bank" in name]


def test_resumed_run_equals_an_undisturbed_one(finished: Path, workspace: Workspace) -> None:
    continue_from(finished, workspace.folder / "resumed")
    workspace.run("resumed", "TEST.EVAL_PERIOD", "2", flags=("--resume",))
    assert_equal_state(workspace.checkpoint("resumed"), workspace.checkpoint("finished"))


def test_resumed_run_equals_an_undisturbed_one_with_adamw_bfloat16_and_rare_classes(
    finished: Path, workspace: Workspace
) -> None:
    options = [
        "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.001", "SOLVER.AMP.ENABLED", "True",
        "SOLVER.AMP.DTYPE", "bfloat16", "DATALOADER.NUM_WORKERS", "2",
        "DATALOADER.SAMPLER_TRAIN", "RareClassSampler", "DATALOADER.RARE_CLASS.MIN_PIXELS", "100",
        "MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS", "['frequency']",
        "MODEL.STYLE.BANK", str(finished / "style_bank.safetensors"),
    ]  # fmt: skip
    workspace.run("adamw", *options)
    continue_from(workspace.folder / "adamw", workspace.folder / "adamw_resumed")
    workspace.run("adamw_resumed", *options, flags=("--resume",))
    assert_equal_state(workspace.checkpoint("adamw_resumed"), workspace.checkpoint("adamw"))
    weights = workspace.checkpoint("adamw")["model"]
    assert all(value.dtype == torch.float32 for name, value in weights.items() if name.endswith("weight"))
    assert all(value.isfinite().all() for value in weights.values())


def test_training_without_evaluation(finished: Path, workspace: Workspace) -> None:
    assert workspace.run("unscored", "DATASETS.TEST", "()") == {}
    folder = workspace.folder / "unscored"
    assert not (folder / "results.json").exists()
    assert_equal_state(workspace.checkpoint("unscored")["model"], workspace.checkpoint("finished")["model"])


def test_same_seed_gives_the_same_run(finished: Path, workspace: Workspace) -> None:
    workspace.run("again", "TEST.EVAL_PERIOD", "2", "DATALOADER.NUM_WORKERS", "2")
    one, other = workspace.checkpoint("again"), workspace.checkpoint("finished")
    assert one["settings"].pop("DATALOADER.NUM_WORKERS") != other["settings"].pop("DATALOADER.NUM_WORKERS")
    assert_equal_state(one, other)
    assert torch.equal(load_bank(workspace.folder / "again").mean, load_bank(finished).mean)


def test_eval_only_reproduces_the_scores(finished: Path, workspace: Workspace) -> None:
    weights = str(finished / "model_final.pth")
    results = workspace.run("scores", "MODEL.WEIGHTS", weights, flags=("--eval-only",))
    last = json.loads((finished / "metrics.json").read_text().splitlines()[-1])
    for split in ("val", "night"):
        score = results[f"tiny_{split}"]["sem_seg"]["mIoU"]
        assert score == pytest.approx(last[f"tiny_{split}/sem_seg/mIoU"])
    assert not (workspace.folder / "scores/style_bank.safetensors").exists()


def test_windows_are_batched(finished: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, batches = FAMixSemanticSegmentor.forward, []

    def watched(model: FAMixSemanticSegmentor, inputs: list[Any]) -> Any:
        batches.append(len(inputs))
        return forward(model, inputs)

    monkeypatch.setattr(FAMixSemanticSegmentor, "forward", watched)
    scores = []
    for windows in (1, 4):
        batches.clear()
        options = ("MODEL.WEIGHTS", str(finished / "model_final.pth"), "TEST.PROTOCOL", "slide48/32")
        results = workspace.run("windows", *options, "TEST.WINDOW_BATCH", str(windows), flags=("--eval-only",))
        scores.append(results["tiny_night"]["sem_seg"]["mIoU"])
        assert max(batches) == windows
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


def test_mine_styles_only_writes_the_same_bank(finished: Path, workspace: Workspace) -> None:
    workspace.run("mined", flags=("--mine-styles-only",))
    assert torch.equal(load_bank(workspace.folder / "mined").mean, load_bank(finished).mean)
    assert not (workspace.folder / "mined/model_final.pth").exists()


@pytest.mark.parametrize(
    "options",
    [*(("MODEL.STYLE.STRATEGY", strategy) for strategy in ("noise", "mixstyle", "none")), ("SEED", "2")],
    ids=lambda options: options[1],
)
def test_seed_and_strategy_change_the_training(options: tuple[str, str], finished: Path, workspace: Workspace) -> None:
    bank = ("MODEL.STYLE.BANK", str(finished / "style_bank.safetensors")) if options[0] == "SEED" else ()
    workspace.run(options[1], *options, *bank)
    one, other = (workspace.checkpoint(run)["model"] for run in ("finished", options[1]))
    assert not torch.equal(one["sem_seg_head.classifier.0.weight"], other["sem_seg_head.classifier.0.weight"])
    assert not (workspace.folder / options[1] / "style_bank.safetensors").exists()


def test_registered_strategy_trains(finished: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/EXTENDING.md."""
    monkeypatch.setattr(STYLE_STRATEGY_REGISTRY, "_obj_map", dict(STYLE_STRATEGY_REGISTRY._obj_map))
    load_tool("style_strategy", "examples/extending")

    def train(strategy: str, scale: str) -> torch.Tensor:
        options = ("MODEL.STYLE.STRATEGY", strategy, "MODEL.STYLE.DSU.SCALE", scale, "SOLVER.MAX_ITER", "2")
        bank = ("MODEL.STYLE.BANK", str(finished / "style_bank.safetensors"))
        workspace.run("outside", *options, *bank, flags=("--overwrite",))
        weights: torch.Tensor = workspace.checkpoint("outside")["model"]["sem_seg_head.classifier.0.weight"]
        return weights

    still, strong, after_bank = train("DSU", "0.0"), train("DSU", "2.0"), train("[bank, DSU]", "2.0")
    assert not torch.equal(still, strong) and not torch.equal(strong, after_bank)
    with expect_error(ConfigError, "MODEL.STYLE.DSU.SCALE", -1.0):
        train("DSU", "-1.0")
    del STYLE_STRATEGY_REGISTRY._obj_map["DSU"]
    with workspace.registered():
        Predictor.from_checkpoint(workspace.folder / "outside")  # needs no strategy
        with expect_error(ConfigError, "MODEL.STYLE.STRATEGY", "DSU", "Import"):
            train("DSU", "1.0")


@pytest.mark.parametrize(("split", "successes"), [("train", 6), ("val", 1)])
def test_damaged_sample_saves_a_checkpoint_first(
    split: str, successes: int, finished: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth iteration of two images fails, or the evaluation after the second iteration."""
    output, read, reads = f"damaged_{split}", LabelReader.read, {"train": 0, "val": 0}

    def failing_read(label_reader: LabelReader, path: str) -> np.ndarray:
        if inspect.stack()[1].filename.endswith("mapper.py"):
            reads["train"] += 1
        elif "/val/" in path and reads["train"]:  # other reads check the dataset before the training
            reads["val"] += 1
        if reads[split] > successes:
            raise DatasetError(f"{path} is damaged")
        return read(label_reader, path)

    options = ("MODEL.STYLE.BANK", str(finished / "style_bank.safetensors"), "TEST.EVAL_PERIOD", "2")
    with monkeypatch.context() as patch:
        patch.setattr(LabelReader, "read", failing_read)
        with pytest.raises(DatasetError, match="is damaged"):
            workspace.run(output, *options)
    done = "model_0000002.pth" if split == "train" else "model_0000001.pth"
    assert (workspace.folder / output / "last_checkpoint").read_text() == done
    workspace.run(output, *options, flags=("--resume",))
    assert_equal_state(workspace.checkpoint(output)["model"], workspace.checkpoint("finished")["model"])


def test_resume_checks_the_bank_before_evaluating(
    finished: Path, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    output = workspace.folder / "finished_again"
    continue_from(finished, output, "model_final.pth")
    whole = load_bank(finished)
    other = StyleBank({**whole.metadata, "grid": "[1, 1]"})
    other.add(whole.class_ids, whole.mean, whole.std, whole.annotations)
    other.save(output / "style_bank.safetensors")
    with pytest.raises(BankError, match="grid"):
        workspace.run("finished_again", flags=("--resume",))
    assert "scoring" not in capfd.readouterr().out


def test_reference_world_size_rescales_the_schedule(finished: Path, workspace: Workspace) -> None:
    bank = str(finished / "style_bank.safetensors")
    workspace.run("rescaled", "SOLVER.REFERENCE_WORLD_SIZE", "2", "MODEL.STYLE.BANK", bank)
    # The schedule is for two processes of one image each; one process needs twice as many iterations.
    assert workspace.checkpoint("rescaled")["iteration"] == 7


def test_warns_about_a_frozen_random_backbone(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("MODEL.STYLE.STRATEGY", "none", "SOLVER.MAX_ITER", "1", "INPUT.CROP.SIZE", "[32, 32]")
    for weights, expected in (("", 1), (str(workspace.clip), 0)):
        workspace.run(f"random_{expected}", *options, "MODEL.CLIP.WEIGHTS", weights)
        assert capfd.readouterr().out.count("frozen part of the backbone has random weights") == expected
