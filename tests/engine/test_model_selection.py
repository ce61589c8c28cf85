"""Whole runs whose scored weights are the last ones, the best on the source, or the moving average."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from data_factory import data_config, registered
from error_matching import expect_error
from famix.engine import Trainer, check_selection, load_for_scoring, setup
from famix.io import file_sha256
from famix.reports import read_report
from famix.utils.errors import ConfigError, WeightsError
from run_factory import Workspace, assert_equal_state

PLAIN = ("MODEL.STYLE.STRATEGY", "none", "INPUT.CROP.SIZE", "[32, 48]")
SELECTION = (
    *PLAIN, "SOLVER.CHECKPOINT_PERIOD", "1", "MODEL_SELECTION.EMA_DECAY", "0.15",
    "MODEL_SELECTION.SOURCE_VAL", "tiny_val", "MODEL_SELECTION.PERIOD", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def average(workspace):
    """A run of 4 iterations that keeps all checkpoints and scores the average; the source is scored after 2 and 4."""
    workspace.run("average", *SELECTION, "MODEL_SELECTION.USE", "ema")
    return workspace.folder / "average"


def report(folder):
    return read_report(folder / "results.json")


def scored_again(workspace, weights):
    """Evaluate a file and return the report."""
    name = f"again_{weights.stem}"
    workspace.run(name, *PLAIN, "MODEL.WEIGHTS", str(weights), flags=("--eval-only",))
    return report(workspace.folder / name)


def rounded(results):
    """Scores without their last digits, and NaN as text, so that they can be compared."""
    if isinstance(results, float):
        return f"{results:.6f}"
    return {key: rounded(value) for key, value in results.items()}


# The moving average


def test_average_of_checkpoints(average, workspace):
    steps = [workspace.checkpoint("average", f"model_{index:07d}") for index in range(4)]
    averages = [step["trainer"]["hooks"]["WeightAverageHook"]["tensors"] for step in steps]
    assert "backbone.layer4.0.bn1.running_mean" in averages[0] and "backbone.conv1.weight" not in averages[0]
    for index in range(1, 4):
        decay = min(0.15, (index + 1) / (10 + index))
        for name, value in averages[index].items():
            expected = decay * averages[index - 1][name] + (1 - decay) * steps[index]["model"][name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    saved = workspace.checkpoint("average", "model_ema")["model"]
    last = workspace.checkpoint("average")["model"]
    assert saved.keys() == last.keys()
    assert all(torch.equal(value, averages[3].get(name, last[name])) for name, value in saved.items())


def test_average_is_scored(average, workspace):
    weights = report(average).run.weights
    assert (weights.selection, weights.file, weights.iterations) == ("ema", "model_ema.pth", 4)
    assert weights.sha256 == file_sha256(average / "model_ema.pth")
    again = scored_again(workspace, average / "model_ema.pth")
    assert again.run.weights == weights
    assert rounded(again.results) == rounded(report(average).results)
    last = scored_again(workspace, average / "model_final.pth")
    assert (last.run.weights.selection, last.run.weights.iterations) == ("last", 4)
    assert last.score("tiny_night", "fwIoU") != again.score("tiny_night", "fwIoU")


def test_average_does_not_change_training(average, workspace):
    workspace.run("plain", *PLAIN)
    assert_equal_state(workspace.checkpoint("plain")["model"], workspace.checkpoint("average")["model"])
    assert not (workspace.folder / "plain/model_ema.pth").exists()
    weights = report(workspace.folder / "plain").run.weights
    assert (weights.selection, weights.file) == ("last", "model_final.pth")
    assert weights.sha256 == file_sha256(workspace.folder / "plain/model_final.pth")


def test_resumed_run_has_same_average_and_best(average, workspace):
    folder = workspace.folder / "resumed"
    folder.mkdir()
    shutil.copy(average / "model_0000001.pth", folder)
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    workspace.run("resumed", *SELECTION, "MODEL_SELECTION.USE", "ema", flags=("--resume",))
    for name in ("model_final", "model_ema", "model_best"):
        assert_equal_state(workspace.checkpoint("resumed", name), workspace.checkpoint("average", name), name)


# The best on the source


def test_best_on_source_is_kept(average, workspace):
    logged = re.findall(r"after (\d) iterations: mIoU ([\d.]+) on tiny_val", (average / "log.txt").read_text())
    scores = {int(done): float(score) for done, score in logged}
    again = scored_again(workspace, average / "model_best.pth")
    weights = again.run.weights
    assert (weights.selection, weights.source_val) == ("best", "tiny_val")
    assert scores.keys() == {2, 4} and weights.iterations == max(scores, key=scores.get)
    assert weights.source_score == pytest.approx(scores[weights.iterations], abs=0.006)
    assert "best on tiny_val" in (workspace.folder / "again_model_best/results.md").read_text()
    assert again.score("tiny_val") == pytest.approx(weights.source_score)


def test_best_is_scored(average, workspace, monkeypatch):
    scores = iter([50.0, 40.0])
    monkeypatch.setattr(Trainer, "_score_source", lambda trainer, name: next(scores))
    workspace.run("best", *SELECTION, "MODEL_SELECTION.USE", "best")
    folder = workspace.folder / "best"
    weights = report(folder).run.weights
    assert (weights.label, weights.file, weights.iterations, weights.source_score) == ("best", "model_best.pth", 2, 50)
    best, second, final = (workspace.checkpoint("best", f"model_{n}")["model"] for n in ("best", "0000001", "final"))
    assert_equal_state(best, second)
    assert_equal_state(final, workspace.checkpoint("average")["model"])
    halfway = scored_again(workspace, folder / "model_0000001.pth")
    assert (halfway.run.weights.label, halfway.run.weights.iterations) == ("model_0000001", 2)
    assert rounded(halfway.results) == rounded(report(folder).results)


def test_targets_are_opened_after_training(workspace):
    opened, watches = [], [True]

    def note(event, arguments):
        if event == "open" and watches and isinstance(arguments[0], (str, bytes, Path)):
            opened.append(str(arguments[0]))

    with workspace.registered():
        cfg = setup(workspace.parse("watched", *SELECTION, "MODEL_SELECTION.USE", "best"))
        sys.addaudithook(note)  # set-up has looked at all files, for damage
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    watches.clear()  # a hook cannot be removed
    end = min(index for index, path in enumerate(opened) if "model_final" in path)
    first = {split: min(i for i, path in enumerate(opened) if f"/{split}/" in path) for split in ("val", "night")}
    assert first["val"] < end < first["night"]
    assert len([path for path in opened[:end] if "/val/" in path]) >= 4  # two images and labels after two iterations


def test_missing_best_weights(average, workspace):
    shutil.copytree(average, workspace.folder / "gone")
    (workspace.folder / "gone/model_best.pth").unlink()
    checkpoint = workspace.checkpoint("gone")
    checkpoint["trainer"]["hooks"]["SourceValidation"] = {"scored": 4, "best": 99.0, "best_at": 2}
    torch.save(checkpoint, workspace.folder / "gone/model_final.pth")
    with expect_error(WeightsError, str(workspace.folder / "gone/model_best.pth")):
        workspace.run("gone", *SELECTION, "MODEL_SELECTION.USE", "best", flags=("--resume",))


# Scores during training, and invalid settings


def test_weights_scored_during_training(workspace, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model, weights: seen.append(weights) or {}))
    workspace.run("midway", *PLAIN, "TEST.EVAL_PERIOD", "2")
    found = [(weights.selection, weights.file, weights.iterations) for weights in seen]
    assert found == [("memory", None, 2), ("last", "model_final.pth", 4)]


@pytest.mark.parametrize(
    ("settings", "key", "value", "remedy"),
    [
        ({"USE": "first"}, "USE", "first", "last"),
        ({"USE": "ema"}, "USE", "ema", "MODEL_SELECTION.EMA_DECAY"),
        ({"USE": "best"}, "USE", "best", "MODEL_SELECTION.SOURCE_VAL"),
        ({"EMA_DECAY": 1.0}, "EMA_DECAY", 1.0, "0.999"),
        ({"EMA_DECAY": -0.5}, "EMA_DECAY", -0.5, "0.999"),
        ({"SOURCE_VAL": "gta5_train"}, "SOURCE_VAL", "gta5_train", "validation"),
        ({"SOURCE_VAL": "cityscapes_val"}, "SOURCE_VAL", "cityscapes_val", "TEST.SOURCE"),
        ({"SOURCE_VAL": "gta5_val", "PERIOD": -1}, "PERIOD", -1, "0"),
    ],
)
def test_invalid_selection(settings, key, value, remedy):
    cfg = data_config(train=("gta5_train",))
    cfg.MODEL_SELECTION.update(settings)
    with registered(), expect_error(ConfigError, f"MODEL_SELECTION.{key}", value, remedy):
        check_selection(cfg)


def test_valid_selection():
    cfg = data_config(train=("gta5_train",))
    cfg.MODEL_SELECTION.update({"SOURCE_VAL": "gta5_val", "USE": "best", "EMA_DECAY": 0.999})
    with registered():
        check_selection(cfg)
        cfg.MODEL_SELECTION.SOURCE_VAL, cfg.TEST.SOURCE = "synthia_val", ["synthia_val"]
        check_selection(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL_SELECTION.USE", "best"),
        ("MODEL_SELECTION.SOURCE_VAL", "tiny_night"),
        ("TEST.EVALUATOR", "other"),
        ("TEST.SOURCE", "['tiny_vall']"),
    ],
)
def test_mistakes_are_found_before_the_run(key, value, workspace):
    with expect_error(ConfigError, key, value.strip("[']")):
        workspace.run("mistake", *PLAIN, key, value)
    assert not (workspace.folder / "mistake/log.txt").exists()


def test_evaluation_requires_weights(workspace):
    with workspace.registered():
        cfg = setup(workspace.parse("nothing", *PLAIN, flags=("--eval-only",)))
        with expect_error(WeightsError, "MODEL.WEIGHTS", remedy="MODEL.WEIGHTS"):
            load_for_scoring(cfg, Trainer.build_model(cfg))
