"""Labels in the wrong encoding are an error that names their probable encoding."""

import numpy as np
import pytest
from PIL import Image

from data_factory import registered, write_image, write_label, write_synthia_label
from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES, LabelReader, get_label_readers
from famix.data.labels import UnknownIdsError, WrongEncodingError
from famix.utils.errors import DatasetError

RNG = np.random.default_rng(0)
SHAPE = (12, 16)
TRAIN_IDS = np.append(RNG.integers(0, 19, 191), 255).reshape(SHAPE).astype(np.uint8)
LABEL_IDS = np.append(RNG.integers(0, 34, 191), 33).reshape(SHAPE).astype(np.uint8)
GRAYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = np.array([entry.color for entry in CITYSCAPES_CLASSES], np.uint8)[RNG.integers(0, 19, SHAPE)]
WITH_ALPHA = np.dstack([COLORS, np.full(SHAPE, 255, np.uint8)])

PATHS = {
    "cityscapes_val": "cityscapes/gtFine/val/ulm/1_gtFine_labelIds.png",
    "gta5_all": "gta5/labels/00001.png",
    "synthia_all": "synthia/GT/LABELS/0000001.png",
    "bdd100k_val": "bdd100k/labels/sem_seg/masks/val/1.png",
    "mapillary_val": "mapillary/validation/labels/1.png",
    "acdc_fog_val": "acdc/gt/fog/val/s/1_gt_labelIds.png",
    "dark_zurich_val": "dark_zurich/gt/val/night/s/1_gt_labelTrainIds.png",
    "idd_val": "idd/gtFine/val/1/1_gtFine_labelcsTrainIds.png",
}


@pytest.fixture(scope="module", autouse=True)
def all_registered():
    with registered():
        yield


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Write a label and read it as a dataset."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def write_and_read(name, pixels):
        return get_label_readers([name])[name].read(write_image(tmp_path / PATHS[name], pixels))

    return write_and_read


@pytest.mark.parametrize(
    ("name", "pixels", "error", "key", "value", "remedy"),
    [
        *(
            (name, TRAIN_IDS, WrongEncodingError, ".png", "train ids", "label_ids: identity")
            for name in ("cityscapes_val", "gta5_all", "acdc_fog_val")
        ),
        *(
            (name, LABEL_IDS, UnknownIdsError, "ids", 20, "Cityscapes' label ids")
            for name in ("bdd100k_val", "dark_zurich_val", "idd_val")
        ),
        ("mapillary_val", TRAIN_IDS, UnknownIdsError, "65", 255, "labelTrainIds"),
        ("mapillary_val", np.array([[13, 65, 66, 123]], np.uint8), UnknownIdsError, "65", "66, 123", "label_ids"),
        ("cityscapes_val", GRAYS, UnknownIdsError, "ids", None, "photograph"),
        *(
            (name, colors, WrongEncodingError, "one channel", mode, "colormaps")
            for name in ("gta5_all", "bdd100k_val", "cityscapes_val")
            for colors, mode in ((COLORS, "RGB"), (WITH_ALPHA, "RGBA"))
        ),
        ("synthia_all", TRAIN_IDS, WrongEncodingError, "channel 0", "1 channel(s)", "label_channel"),
    ],
)
def test_wrong_encoding_is_named(read, name, pixels, error, key, value, remedy):
    with expect_error(error, key, value, remedy):
        read(name, pixels)


def test_label_ids_with_255_are_not_train_ids(read):
    ids = np.array([[7, 23, 255]], np.uint8)  # 23, the sky, is not a train id
    assert read("cityscapes_val", ids).tolist() == [[0, 10, 255]]
    assert read("cityscapes_val", np.full((2, 2), 255, np.uint8)).min() == 255


def test_synthia_with_8_bits_is_an_error(read, tmp_path):
    original = write_synthia_label(tmp_path / "original.png", RNG.integers(0, 23, SHAPE), np.full(SHAPE, 976))
    reduced = np.asarray(Image.open(original))  # Pillow keeps the upper eight bits: 976 becomes 3
    assert reduced.max() == 3
    with expect_error(WrongEncodingError, "16 bits", 8, "published file"):
        read("synthia_all", reduced)


def test_bits_must_match(tmp_path):
    path = write_label(tmp_path / "label.png", np.array([[1, 700]], np.uint16))
    with expect_error(WrongEncodingError, "8 bits", 16, "published file"):
        LabelReader({1: 1, 700: 2}, bits=8).read(path)
    assert LabelReader({1: 1, 700: 2}, bits=16).read(path).tolist() == [[1, 2]]


def test_own_ids_may_look_like_train_ids(tmp_path):
    path = write_label(tmp_path / "label.png", np.array([[0, 1, 255]], np.uint8))
    assert LabelReader({0: 5, 1: 6}, other_ids_ignored=True).read(path).tolist() == [[5, 6, 255]]


def test_ids_above_highest_id_are_an_error(tmp_path):
    reader = LabelReader({0: 5, 9: 6}, other_ids_ignored=True, highest_id=3)
    path = write_label(tmp_path / "label.png", np.array([[0, 3, 9]], np.uint8))
    assert reader.read(path).tolist() == [[5, 255, 6]]
    with expect_error(DatasetError, str(path), "4, 8"):
        reader.read(write_label(path, np.array([[4, 8]], np.uint8)))
