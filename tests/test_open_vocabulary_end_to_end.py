"""Runs in which a class is unlabeled in training and named at test time: train, evaluate, report, continue and predict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from error_matching import expect_error
from famix import Predictor
from famix.data import CITYSCAPES_CLASSES
from famix.evaluation.counting.confusion import read_confusion
from famix.inference import ClassTable
from famix.inference.loading import load_model, strip_checkpoint
from famix.inference.query_graph import QueryGraph
from famix.modeling.query.regions import UnclaimedRegions
from famix.reports.runs import predict_examples, read_runs
from famix.utils.errors import ConfigError
from panoptic_factory import PanopticWorkspace
from run_factory import CONFIG, Workspace, load_program, load_tool

NAMES = "car, automobile; lamp; road; sky"
TRAINING = (
    "MODEL.MASK_FORMER.CLASSIFIER", "text", "DATASETS.UNLABELED", "['car']", "MODEL.STYLE.STRATEGY", "none",
    "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "['tiny_val']",
)  # fmt: skip


class OpenWorkspace(Workspace):
    """A folder with a run that was trained without labels for cars, and evaluated with their name."""

    def arguments(self, output: str, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
        arguments = super().arguments(output, *TRAINING, *options, flags=flags)
        arguments[arguments.index("--config-file") + 1] = str(CONFIG.with_name("famix_maskformer.yaml"))
        return arguments

    def evaluate(self, output: str, *options: str) -> Any:
        weights = str(self.folder / "run/model_final.pth")
        return self.run(output, "MODEL.WEIGHTS", weights, *options, flags=("--eval-only",))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> OpenWorkspace:
    workspace = OpenWorkspace(tmp_path_factory.mktemp("open"))
    workspace.run("run")
    return workspace


@pytest.fixture(scope="module")
def scored(workspace: OpenWorkspace) -> Path:
    """The folder of an evaluation with names from a file."""
    (workspace.folder / "names.txt").write_text(NAMES.replace("; ", "\n"))
    workspace.evaluate("scored", "TEST.CLASSES", str(workspace.folder / "names.txt"))
    return workspace.folder / "scored"


@pytest.fixture(scope="module")
def image(workspace: OpenWorkspace) -> np.ndarray:
    return np.asarray(Image.open(workspace.folder / "data/images/val/0.png"))


def test_unlabeled_class_is_never_predicted_without_its_name(workspace: OpenWorkspace, image: np.ndarray) -> None:
    results = json.loads((workspace.folder / "run/results.json").read_text())
    scores, facts = results["tiny_val"]["sem_seg"], results["report"]["data_sets"]["tiny_val"]
    assert scores["IoU-car"] == 0 == scores["mIoU-unseen"] and facts["unseen"] == ["car"]
    assert not workspace.checkpoint("run")["model"]["classifier.text_embeddings"][13].any()
    prediction = Predictor.from_checkpoint(workspace.folder / "run", device="cpu")(image)
    assert not prediction.probabilities[13].any() and len(prediction.class_names) == 19


def test_evaluation_with_new_names(scored: Path) -> None:
    stored = json.loads((scored / "results.json").read_text())
    scores = stored["tiny_val"]["sem_seg"]
    matrix = read_confusion(scored / "inference/tiny_val/confusion.json")
    assert matrix.class_names == ("car", "lamp", "road", "sky")
    counts = matrix.counts
    assert not counts[1].any() and (counts.sum(axis=1)[[0, 2, 3]] > 0).all()
    ious = [100 * counts[i, i] / (counts[i].sum() + counts[:, i].sum() - counts[i, i]) for i in (0, 2, 3)]
    assert scores["mIoU-unseen"] == pytest.approx(ious[0]) and scores["IoU-car"] == pytest.approx(ious[0])
    assert scores["mIoU-seen"] == pytest.approx((ious[1] + ious[2]) / 2)
    assert scores["mIoU"] == pytest.approx(sum(ious) / 3)
    assert stored["report"]["data_sets"]["tiny_val"]["unseen"] == ["car", "lamp"]
    text = (scored / "results.md").read_text()
    assert "mIoU-seen" in text and "mIoU-unseen" in text and "car (unseen)" in text


def test_report_page_of_new_names(workspace: OpenWorkspace, scored: Path) -> None:
    page = workspace.folder / "page.html"
    load_tool("report").main([str(scored), "--output", str(page), "--examples", "0"])
    html = page.read_text()
    assert "mIoU-seen" in html and "mIoU-unseen" in html and "car (unseen)" in html


def test_predictions_of_new_names(workspace: OpenWorkspace, image: np.ndarray) -> None:
    options = ["TEST.CLASSES", NAMES]
    prediction = Predictor.from_checkpoint(workspace.folder / "run", device="cpu", opts=options)(image)
    assert prediction.class_names == ("car", "lamp", "road", "sky") and prediction.labels.max() < 4
    model = load_model(workspace.folder / "run", opts=options, device="cpu").model
    with torch.inference_mode():
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
        (result,) = model([{"image": pixels, "height": image.shape[0], "width": image.shape[1]}])
    np.testing.assert_array_equal(result["sem_seg"].argmax(dim=0), prediction.labels)


def test_demo_with_new_names(workspace: OpenWorkspace) -> None:
    output = workspace.folder / "demo.png"
    words = ["--weights", str(workspace.folder / "run"), "--input", str(workspace.folder / "data/images/val/0.png")]
    words += ["--output", str(output), "--view", "labels", "--device", "cpu", "--opts", "TEST.CLASSES", NAMES]
    assert load_tool("../demo").main(words) == 0
    assert np.asarray(Image.open(output)).max() < 4


def test_stripped_checkpoints_have_the_classes_of_training(workspace: OpenWorkspace, image: np.ndarray) -> None:
    with workspace.registered():
        loaded = load_model(workspace.folder / "run", opts=["TEST.CLASSES", NAMES], device="cpu")
    stripped = workspace.folder / "stripped.pth"
    strip_checkpoint(loaded, stripped)
    own = Predictor.from_checkpoint(workspace.folder / "run", device="cpu")(image)
    found = Predictor.from_checkpoint(stripped, device="cpu")(image)
    assert found.class_names == own.class_names
    np.testing.assert_array_equal(found.probabilities, own.probabilities)
    with expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", "", "TEST.CLASSES"):
        Predictor.from_checkpoint(stripped, device="cpu", opts=["TEST.CLASSES", NAMES])
    options = ["TEST.CLASSES", NAMES, "MODEL.CLIP.WEIGHTS", str(workspace.clip)]
    assert Predictor.from_checkpoint(stripped, device="cpu", opts=options)(image).class_names[1] == "lamp"


@pytest.mark.parametrize("options", [(), ("TEST.CLASSES", NAMES)])
def test_exports_predict_the_classes_in_their_metadata(
    options: tuple[str, ...], workspace: OpenWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, written = load_program("export"), {}
    monkeypatch.setattr(UnclaimedRegions, "__call__", lambda *_: pytest.fail("exports have no regions"))

    def write(program: Any, part: Path, graph: QueryGraph, classes: ClassTable, **facts: str) -> None:
        written.update(graph=graph, names=classes.names)
        part.touch()

    monkeypatch.setattr(tool, "export_graph", lambda graph, **_: None)  # tracing takes long
    monkeypatch.setattr(tool, "write_onnx", write)
    monkeypatch.setattr(tool, "load_onnx", lambda *_: lambda images: written["graph"](images)["scores"])
    arguments = [str(workspace.folder / "run"), "--format", "onnx", "--sizes", "64x96", "--runs", "0"]
    arguments += ["--output", str(tmp_path / "network.onnx"), *(("--opts", *options) if options else ())]
    assert load_tool("export").main(arguments) == 0
    assert written["names"] == (
        ("car", "lamp", "road", "sky") if options else tuple(entry.name for entry in CITYSCAPES_CLASSES)
    )
    outputs = written["graph"](torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert outputs["scores"].shape[1] == outputs["class_logits"].shape[2] - 1 == len(written["names"])


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("TEST.CLASSES", "car; road"), "TEST.CLASSES", "sky"),
        (("TEST.CLASSES", NAMES, "TEST.EVALUATOR", "detectron2"), "TEST.EVALUATOR", "detectron2"),
        (("TEST.CLASSES", NAMES, "MODEL.MASK_FORMER.CLASSIFIER", "learned"), "TEST.CLASSES", "learned"),
        (("DATASETS.UNLABELED", "['cart']"), "DATASETS.UNLABELED", "cart"),
    ],
)
def test_invalid_settings(options: tuple[str, ...], key: str, value: object, workspace: OpenWorkspace) -> None:
    with expect_error(ConfigError, key, value):
        workspace.evaluate("bad", *options)


def test_examples_need_the_scored_classes(workspace: OpenWorkspace, scored: Path) -> None:
    (run,) = read_runs([scored])
    with workspace.registered():
        loaded = load_model(workspace.folder / "run", device="cpu")
        with expect_error(ConfigError, "TEST.CLASSES", None, "TEST.CLASSES"):
            predict_examples(run, loaded, 1)


def test_resuming_refuses_other_unlabeled_classes(workspace: OpenWorkspace) -> None:
    options = ("DATASETS.UNLABELED", "['car', 'sky']", "SOLVER.MAX_ITER", "2")
    with expect_error(ConfigError, "DATASETS.UNLABELED", ["car", "sky"], "--resume"):
        workspace.run("run", *options, flags=("--resume",))


def test_panoptic_run(tmp_path: Path) -> None:
    workspace = PanopticWorkspace(tmp_path, "famix_panoptic_maskformer.yaml")
    names = "car; road; sky; person; lamp"
    rest = [entry.name for entry in CITYSCAPES_CLASSES if entry.name not in names.split("; ")]
    options = [*TRAINING[:-1], "['tiny_val_panoptic']", "TEST.CLASSES", "; ".join([names, *rest])]
    results = workspace.run("run", *options)
    scores = results["tiny_val_panoptic"]
    assert {"PQ_seen", "PQ_unseen", "PQ_th", "PQ_st"} <= scores["panoptic_seg"].keys()
    assert 0 <= scores["sem_seg"]["mIoU-unseen"] <= 100
    with workspace.registered():
        (run,) = read_runs([tmp_path / "run"])
        (example,) = predict_examples(run, load_model(tmp_path / "run", device="cpu"), 1)
    assert set(np.unique(example.truth).tolist()) == {0, 1, 2, 255}  # the image shows no person
    prediction = Predictor.from_checkpoint(tmp_path / "run", device="cpu")(np.zeros((64, 64, 3), np.uint8))
    assert prediction.classes.things[:2] == (0, 3) and prediction.class_names[0] == "car"
