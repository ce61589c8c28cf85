"""The evaluator's scores on generated images, beside scores computed by hand."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import SemSegEvaluator

from data_factory import data_config, registered, write_definition, write_image, write_label
from famix.evaluation import build_evaluator

CLASSES = [{"name": name, "color": [index, 0, 0]} for index, name in enumerate(("road", "sky", "car"))]
LABEL_IDS = {7: "road", 23: "sky", 26: "car", 0: "ignore"}

# One row a pixel: id in the label file, predicted train id. Road 4, sky 4, car 2 and ignored 2 pixels.
PIXELS = np.array(
    [(7, 0), (7, 0), (7, 0), (7, 1), (23, 1), (23, 1), (23, 2), (23, 2), (26, 2), (26, 0), (0, 2), (0, 1)]
)
# road: 3 of 4 found, 1 false; sky: 2 of 4, 1 false; car: 1 of 2, 2 false. Predictions on ignored pixels do not count.
IOU = {"road": 3 / 5, "sky": 2 / 5, "car": 1 / 4}


@pytest.fixture
def cfg(tmp_path):
    """A data set of two images of 2 x 3 pixels."""
    for index in range(2):
        ids = PIXELS[6 * index : 6 * index + 6, 0].reshape(2, 3).astype(np.uint8)
        write_label(tmp_path / f"data/labels/val/{index}.png", ids)
        write_image(tmp_path / f"data/images/val/{index}.png", np.zeros((2, 3, 3), np.uint8))
    changes = {"splits": {"val": {}}, "classes": CLASSES, "label_ids": LABEL_IDS}
    cfg = data_config(train=())
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    with registered(write_definition(tmp_path / "data", **changes)):
        yield cfg


def evaluate(evaluator):
    """Feed the predictions of PIXELS."""
    evaluator.reset()
    for index, record in enumerate(DatasetCatalog.get("tiny_val")):
        predicted = torch.from_numpy(PIXELS[6 * index : 6 * index + 6, 1].reshape(2, 3))
        logits = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()
        evaluator.process([record], [{"sem_seg": logits}])
    return evaluator.evaluate()["sem_seg"]


def test_scores_equal_those_computed_by_hand(cfg):
    evaluator = build_evaluator(cfg, "tiny_val")
    assert isinstance(evaluator, SemSegEvaluator)
    scores = evaluate(evaluator)
    for name, iou in IOU.items():
        assert scores[f"IoU-{name}"] == pytest.approx(100 * iou)
    assert scores["mIoU"] == pytest.approx(100 * sum(IOU.values()) / 3)
    assert scores["mACC"] == pytest.approx(100 * (3 / 4 + 2 / 4 + 1 / 2) / 3)
    assert scores["pACC"] == pytest.approx(100 * 6 / 10)
    assert scores["fwIoU"] == pytest.approx(100 * (0.4 * 3 / 5 + 0.4 * 2 / 5 + 0.2 * 1 / 4))


def test_files_go_to_the_data_sets_own_folder(cfg, tmp_path):
    evaluate(build_evaluator(cfg, "tiny_val"))
    assert (tmp_path / "output/inference/tiny_val/sem_seg_evaluation.pth").is_file()


def test_or_to_the_folder_that_is_named(cfg, tmp_path):
    evaluate(build_evaluator(cfg, "tiny_val", str(tmp_path / "elsewhere")))
    assert (tmp_path / "elsewhere/sem_seg_evaluation.pth").is_file()
    assert not (tmp_path / "output").exists()
