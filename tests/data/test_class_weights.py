"""Class weights of the loss: computed from pixel counts, read from the config, and used by every head."""

import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode

from data_factory import data_config, registered, write_definition, write_image, write_label
from error_matching import expect_error
from famix.data.sampling.class_weights import frequency_weights, read_class_weights, with_class_weights
from famix.utils.errors import ConfigError, DatasetError

KEY = "MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS"


def weighted_config(weights: list[object], num_classes: int = 3) -> CfgNode:
    cfg = data_config()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS = weights
    return cfg


def test_frequency_weights_by_hand() -> None:
    """Frequencies 0.75, 0.25 and 0: 1 / log(1.77) = 1.751 and 1 / log(1.27) = 4.184, with the mean 2.968."""
    weights = frequency_weights(np.array([[60, 0, 0], [15, 25, 0]]))
    np.testing.assert_allclose(weights, [0.590, 1.410, 0.0], atol=5e-4)
    assert sum(weights) / 2 == pytest.approx(1)


def test_labels_without_classes() -> None:
    with expect_error(DatasetError, "labels", remedy="check.py"):
        frequency_weights(np.zeros((2, 3), np.int64))


def test_weights_in_the_config() -> None:
    assert read_class_weights(weighted_config([])) is None
    assert read_class_weights(weighted_config([1, 0.5, 0])) == [1.0, 0.5, 0.0]
    cfg = weighted_config([2.0, 1.0, 1.0])
    assert with_class_weights(cfg) is cfg


@pytest.mark.parametrize(
    "weights",
    [[1.0, 2.0], [1.0, 2.0, -1.0], [1.0, 2.0, math.nan], [1.0, 2.0, math.inf], [0, 0, 0], ["frequent"], [1, True, 1]],
    ids=str,
)
def test_invalid_weights(weights: list[object]) -> None:
    with expect_error(ConfigError, KEY, weights, "[]"):
        read_class_weights(weighted_config(weights))


def test_frequencies_come_from_the_training_labels(tmp_path: Path) -> None:
    ids = np.array([[0, 0, 0, 1], [0, 9, 9, 9]], np.uint8)  # four pixels of road, one of sky, three without a class
    write_image(tmp_path / "images/train/a.png", np.zeros((2, 4, 3), np.uint8))
    write_label(tmp_path / "labels/train/a.png", ids)
    cfg = weighted_config(["frequency"], 19)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    assert all(map(math.isnan, read_class_weights(cfg) or []))
    with registered(write_definition(tmp_path, splits={"train": {}})):
        numbered = with_class_weights(cfg)
    weights = read_class_weights(numbered)
    road, sky = 1 / math.log(1.02 + 0.8), 1 / math.log(1.02 + 0.2)
    assert weights is not None and len(weights) == 19
    assert (weights[0], weights[10]) == pytest.approx((2 * road / (road + sky), 2 * sky / (road + sky)))
    assert sum(weights) == pytest.approx(2)
    assert cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS == ["frequency"]  # what a resumed run compares
