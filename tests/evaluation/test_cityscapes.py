"""Cityscapes' own script on files of its format, against the streaming evaluator."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import CityscapesSemSegEvaluator
from PIL import Image

from data_factory import data_config, registered, write_definition, write_image, write_label
from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.evaluation import StreamingSemSegEvaluator, build_evaluator
from famix.evaluation.counting.semantic import CityscapesScriptEvaluator
from famix.evaluation.evaluators import absent_rule
from famix.utils.errors import ConfigError

SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
NAME = "town_val"
SIZE = (48, 96)
TRAIN_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # label ids by train id
NAMES_BY_ID = {label_id: entry.name for label_id, entry in zip(TRAIN_IDS, CITYSCAPES_CLASSES, strict=True)}


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Four images of two cities with every label id of Cityscapes; scores are those of `predict`."""
    folder = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    for index in range(4):
        city = ("aachen", "bochum")[index % 2]
        key = f"val/{city}/{city}_00000{index}_000019"
        write_label(folder / f"gtFine/{key}_gtFine_labelIds.png", rng.integers(0, 34, SIZE).astype(np.uint8))
        write_image(folder / f"leftImg8bit/{key}_leftImg8bit.png", np.zeros((*SIZE, 3), np.uint8))
    definition = write_definition(
        folder,
        name="town",
        images="leftImg8bit/{split}/{key}_leftImg8bit.png",
        labels="gtFine/{split}/{key}_gtFine_labelIds.png",
        label_ids=NAMES_BY_ID,
        other_ids="ignore",
        splits={"val": {}},
    )
    with registered(definition):
        yield


def predict(record: dict[str, str]) -> torch.Tensor:
    """Scores (19, H, W) that are right more often than not."""
    rng = np.random.default_rng(sum(map(ord, record["image_id"])))
    scores = torch.from_numpy(rng.random((19, *SIZE), dtype=np.float32))
    labels = torch.from_numpy(read_train_ids(record["label_file_name"]).astype(np.int64))
    known = labels < 19
    right = torch.from_numpy(rng.random(SIZE) < 0.6) & known
    scores[labels.clamp(max=18), *torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")] += right.float()
    return scores


def read_train_ids(path: str) -> np.ndarray:
    """Labels of the dataset, read without the project."""
    table = np.full(256, 255, np.uint8)
    table[TRAIN_IDS] = range(19)
    with Image.open(path) as image:
        return table[np.asarray(image)]


def feed(evaluator: StreamingSemSegEvaluator | CityscapesSemSegEvaluator) -> dict[str, float]:
    evaluator.reset()
    for record in DatasetCatalog.get(NAME):
        evaluator.process([record], [{"sem_seg": predict(record)}])
    return evaluator.evaluate()["sem_seg"]


def test_the_script_gives_the_streaming_evaluators_score(capsys: pytest.CaptureFixture[str]) -> None:
    scores, streamed = feed(CityscapesScriptEvaluator(NAME)), feed(StreamingSemSegEvaluator(NAME))
    assert scores["mIoU"] == pytest.approx(streamed["mIoU"], rel=0, abs=1e-9)
    assert scores.pop("mIoU-categories") > scores["mIoU"]
    assert scores.keys() < streamed.keys()
    assert scores == pytest.approx({name: streamed[name] for name in scores}, rel=0, abs=1e-9)
    assert scores["mIoU"] > 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("labels", "skip"),
    [("labels/{split}/{key}.png", []), ("gtFine/{split}/{key}_gtFine_labelIds.png", ["x/x_000000_000019"])],
)
def test_labels_that_the_script_cannot_find_are_refused(labels: str, skip: list[str], tmp_path: Path) -> None:
    """Labels of other names, and a dataset of one of two labels in its folder."""
    for key in ("x/x_000000_000019", "x/x_000001_000019"):
        write_label(tmp_path / labels.format(split="val", key=key), np.zeros(SIZE, np.uint8))
        write_image(tmp_path / f"images/val/{key}.png", np.zeros((*SIZE, 3), np.uint8))
    definition = write_definition(tmp_path, name="other", labels=labels, splits={"val": {"skip": skip}})
    with registered(definition), expect_error(ConfigError, "TEST.EVALUATOR", "other_val", "streaming"):
        CityscapesScriptEvaluator("other_val")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, SCRIPT, None)
    with expect_error(ConfigError, "TEST.EVALUATOR", "cityscapesscripts", "pip install"):
        CityscapesScriptEvaluator(NAME)


def test_a_class_that_is_only_predicted_counts_as_zero_in_the_script(tmp_path: Path) -> None:
    """A train is predicted and nowhere labelled, a bus neither."""
    key = "x/x_000000_000019"
    write_label(tmp_path / f"gtFine/val/{key}_gtFine_labelIds.png", np.full((4, 4), 7, np.uint8))
    write_image(tmp_path / f"images/val/{key}.png", np.zeros((4, 4, 3), np.uint8))
    scores = torch.zeros(19, 4, 4)
    scores[0, 1:], scores[16, :1] = 1, 1
    labels = "gtFine/{split}/{key}_gtFine_labelIds.png"
    definition = write_definition(
        tmp_path, name="road", labels=labels, splits={"val": {}}, label_ids={7: "road"}, other_ids="ignore"
    )
    cfg = data_config(train=())
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    with registered(definition):
        for cfg.TEST.EVALUATOR in ("cityscapes", "streaming", "detectron2"):
            for rule in ("skip", "zero"):
                cfg.TEST.ABSENT_CLASSES = rule
                evaluator = build_evaluator(cfg, "road_val")
                evaluator.reset()
                evaluator.process(DatasetCatalog.get("road_val"), [{"sem_seg": scores}])
                got = evaluator.evaluate()["sem_seg"]
                counted = rule == "zero" or cfg.TEST.EVALUATOR == "cityscapes"
                assert absent_rule(cfg, "road_val") == ("zero" if counted else "skip")
                assert got["mIoU"] == pytest.approx(37.5 if counted else 75)
                assert (got["mIoU-skip"], got["mIoU-zero"]) == pytest.approx((75, 37.5))
                assert np.isnan(got["IoU-bus"]) and np.isnan(got["ACC-train"])
                assert got["IoU-train"] == 0 if counted else np.isnan(got["IoU-train"])
