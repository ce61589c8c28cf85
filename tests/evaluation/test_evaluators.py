"""Which evaluator a config gets, and that all of them give the score computed by hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator
from PIL import Image

from data_factory import data_config, registered, write_definition, write_image, write_label
from error_matching import expect_error
from famix.data.records import label_file_of
from famix.evaluation import StreamingSemSegEvaluator, build_evaluator, check_evaluation
from famix.evaluation.counting.confusion import read_confusion
from famix.evaluation.evaluators import absent_rule
from famix.utils.errors import ConfigError

CLASSES = [{"name": name, "color": [index, 0, 0]} for index, name in enumerate(("road", "sky", "car"))]
LABEL_IDS = {7: "road", 23: "sky", 26: "car", 0: "ignore"}
NAME = "tiny_val"

# One row a pixel: id in the label file, predicted train id. Road 4, sky 4, car 2 and ignored 2 pixels.
PIXELS = np.array(
    [(7, 0), (7, 0), (7, 0), (7, 1), (23, 1), (23, 1), (23, 2), (23, 2), (26, 2), (26, 0), (0, 2), (0, 1)]
)
# road: 3 of 4 found, 1 false; sky: 2 of 4, 1 false; car: 1 of 2, 2 false. Predictions on ignored pixels do not count.
IOU = {"road": 3 / 5, "sky": 2 / 5, "car": 1 / 4}


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[CfgNode]:
    """A dataset of two images of 2 x 3 pixels."""
    for index in range(2):
        ids = PIXELS[6 * index : 6 * index + 6, 0].reshape(2, 3).astype(np.uint8)
        write_label(tmp_path / f"data/labels/val/{index}.png", ids)
        write_image(tmp_path / f"data/images/val/{index}.png", np.zeros((2, 3, 3), np.uint8))
    changes = {"splits": {"val": {}}, "classes": CLASSES, "label_ids": LABEL_IDS}
    cfg = data_config(train=())
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    with registered(write_definition(tmp_path / "data", **changes)):
        yield cfg


def evaluate(evaluator: DatasetEvaluator, repeats: int = 1) -> dict[str, float]:
    """Feed the predictions of PIXELS, every pixel so many times as wide and high."""
    evaluator.reset()
    for index, record in enumerate(DatasetCatalog.get(NAME)):
        predicted = torch.from_numpy(PIXELS[6 * index : 6 * index + 6, 1].reshape(2, 3))
        predicted = predicted.repeat_interleave(repeats, 0).repeat_interleave(repeats, 1)
        logits = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()
        evaluator.process([record], [{"sem_seg": logits}])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize(
    ("kind", "expected"), [("streaming", StreamingSemSegEvaluator), ("detectron2", SemSegEvaluator)]
)
@pytest.mark.parametrize(("protocol", "repeats"), [("native", 1), ("short8", 4)])
def test_scores_equal_those_computed_by_hand(
    cfg: CfgNode, kind: str, expected: type[DatasetEvaluator], protocol: str, repeats: int
) -> None:
    cfg.TEST.EVALUATOR, cfg.TEST.PROTOCOL = kind, protocol
    evaluator = build_evaluator(cfg, NAME)
    assert isinstance(evaluator, expected)
    scores = evaluate(evaluator, repeats)
    for name, iou in IOU.items():
        assert scores[f"IoU-{name}"] == pytest.approx(100 * iou)
    assert scores["mIoU"] == pytest.approx(100 * sum(IOU.values()) / 3)
    assert scores["mACC"] == pytest.approx(100 * (3 / 4 + 2 / 4 + 1 / 2) / 3)
    assert scores["pACC"] == pytest.approx(100 * 6 / 10)
    assert scores["fwIoU"] == pytest.approx(100 * (0.4 * 3 / 5 + 0.4 * 2 / 5 + 0.2 * 1 / 4))


def test_streaming_is_the_default_and_writes_its_confusion_matrix_alone(cfg: CfgNode, tmp_path: Path) -> None:
    evaluate(build_evaluator(cfg, NAME))
    files = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert files == [tmp_path / f"output/inference/{NAME}/confusion.json"]
    matrix = read_confusion(files[0])
    assert matrix.class_names == ("road", "sky", "car")
    assert matrix.counts.tolist() == [[3, 1, 0], [0, 2, 2], [1, 0, 1]]


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_files_of_detectron2_go_to_the_data_sets_own_folder_or_a_named_one(
    cfg: CfgNode, tmp_path: Path, folder: str | None
) -> None:
    cfg.TEST.EVALUATOR = "detectron2"
    evaluate(build_evaluator(cfg, NAME, folder and str(tmp_path / folder)))
    place = tmp_path / (folder or f"output/inference/{NAME}")
    assert (place / "sem_seg_evaluation.pth").is_file()
    assert (tmp_path / "output").exists() == (folder is None)


def test_a_subset_of_the_classes(tmp_path: Path) -> None:
    labels = np.zeros((2, 3), np.uint8)
    labels[0, 0] = 1  # terrain, which is not among the 16
    write_label(tmp_path / "labels/val/a.png", labels)
    write_image(tmp_path / "images/val/a.png", np.zeros((2, 3, 3), np.uint8))
    cfg = data_config(train=())
    means = {}
    with registered(write_definition(tmp_path, splits={"val": {}}, label_ids={0: "road", 1: "terrain"})):
        for cfg.TEST.CLASSES in ("all", "synthia16"):
            evaluator = build_evaluator(cfg, NAME)
            evaluator.process(DatasetCatalog.get(NAME), [{"sem_seg": torch.zeros(19, 2, 3)}])  # road everywhere
            means[cfg.TEST.CLASSES] = evaluator.evaluate()["sem_seg"]["mIoU"]
        assert means == pytest.approx({"all": 100 * (5 / 6 + 0) / 2, "synthia16": 100 * 5 / 6})
        cfg.TEST.EVALUATOR = "detectron2"
        with expect_error(ConfigError, "TEST.CLASSES", "synthia16", "TEST.EVALUATOR streaming"):
            check_evaluation(cfg, [NAME])


@pytest.mark.parametrize(
    ("settings", "key", "remedy"),
    [
        ({"EVALUATOR": "streeming"}, "EVALUATOR", "'streaming'"),
        ({"EVALUATOR": "cityscapes"}, "EVALUATOR", "streaming"),
        ({"EVALUATOR": "cityscapes", "PROTOCOL": "short8"}, "PROTOCOL", "TEST.EVALUATOR streaming"),
        ({"PROTOCOL": "shirt8"}, "PROTOCOL", "short<N>"),
        ({"CLASSES": "16"}, "CLASSES", "TEST.CLASSES all"),
        ({"ABSENT_CLASSES": "0"}, "ABSENT_CLASSES", "zero"),
        ({"WINDOW_BATCH": 0}, "WINDOW_BATCH", "TEST.WINDOW_BATCH 1"),
    ],
)
def test_what_cannot_work_is_found_before_an_image_is_read(
    cfg: CfgNode, settings: dict[str, str | int], key: str, remedy: str
) -> None:
    for name, value in settings.items():
        cfg.TEST[name] = value
    with expect_error(ConfigError, f"TEST.{key}", settings[key], remedy):
        check_evaluation(cfg, [NAME])


@pytest.mark.parametrize(
    ("protocol", "rule"), [("half", "skip"), ("famix1", "zero"), ("robustnet1536released", "zero")]
)
def test_released_protocols_count_absent_classes_as_zero(cfg: CfgNode, protocol: str, rule: str) -> None:
    cfg.TEST.PROTOCOL_OF = [f"{NAME}={protocol}"]
    assert absent_rule(cfg, NAME) == rule
    cfg.TEST.ABSENT_CLASSES = "zero"
    assert absent_rule(cfg, NAME) == "zero"


@pytest.mark.parametrize("kind", ["streaming", "detectron2"])
def test_a_released_protocol_scores_by_its_rule(cfg: CfgNode, kind: str) -> None:
    """Every car is taken away from the labels, so that it is predicted alone."""
    for index in range(2):
        path = label_file_of(DatasetCatalog.get(NAME)[index])
        ids = np.array(Image.open(path))
        write_label(Path(path), np.where(ids == 26, 0, ids).astype(np.uint8))
    cfg.TEST.EVALUATOR, means = kind, {}
    for cfg.TEST.PROTOCOL in ("native", "famix1"):
        means[cfg.TEST.PROTOCOL] = evaluate(build_evaluator(cfg, NAME))["mIoU"]
    assert means["native"] == pytest.approx(100 * (3 / 4 + 2 / 5) / 2)
    assert means["famix1"] == pytest.approx(100 * (3 / 4 + 2 / 5 + 0) / 3)
