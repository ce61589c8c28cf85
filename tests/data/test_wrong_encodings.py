"""Labels of another encoding than registered are named as what they look like."""

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
COLORS = np.array([entry.color for entry in CITYSCAPES_CLASSES], np.uint8)[RNG.integers(0, 19, SHAPE)]
OPAQUE = np.full((*SHAPE, 1), 255, np.uint8)

PATHS = {
    "cityscapes_val": "gtFine/val/ulm/1_gtFine_labelIds.png",
    "gta5_all": "labels/00001.png",
    "synthia_all": "GT/LABELS/0000001.png",
    "bdd100k_val": "labels/sem_seg/masks/val/1.png",
    "mapillary_val": "validation/labels/1.png",
    "acdc_fog_val": "gt/fog/val/s/1_gt_labelIds.png",
    "dark_zurich_val": "gt/val/night/s/1_gt_labelTrainIds.png",
    "idd_val": "gtFine/val/1/1_gtFine_labelcsTrainIds.png",
}
FOLDERS = {"dark_zurich_val": "dark_zurich"}


@pytest.fixture(scope="module", autouse=True)
def all_registered():
    with registered():
        yield


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Write a label with a function and read it as a dataset."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def write_and_read(name, write, *pixels):
        path = tmp_path / FOLDERS.get(name, name.split("_")[0]) / PATHS[name]
        write(path, *pixels)
        return get_label_readers([name])[name].read(path)

    return write_and_read


@pytest.mark.parametrize("name", ["cityscapes_val", "gta5_all", "acdc_fog_val"])
def test_train_ids_where_label_ids_are_expected(read, name):
    with expect_error(WrongEncodingError, ".png", "train ids", "label_ids: identity"):
        read(name, write_label, TRAIN_IDS)


GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("name", "ids", "key", "value", "remedy"),
    [
        *(
            (name, LABEL_IDS, "ids", 20, "Cityscapes' label ids")
            for name in ("bdd100k_val", "dark_zurich_val", "idd_val")
        ),
        ("mapillary_val", TRAIN_IDS, "65", 255, "labelTrainIds"),
        ("mapillary_val", np.array([[13, 65, 66, 123]], np.uint8), "65", "66, 123", "label_ids"),  # another version
        ("cityscapes_val", GREYS, "ids", None, "photograph"),
    ],
)
def test_unknown_ids_are_named_as_what_they_look_like(read, name, ids, key, value, remedy):
    with expect_error(UnknownIdsError, key, value, remedy):
        read(name, write_label, ids)


def test_label_ids_with_255_are_no_train_ids(read):
    ids = np.array([[7, 23, 255]], np.uint8)  # 23, the sky, is no train id
    assert read("cityscapes_val", write_label, ids).tolist() == [[0, 10, 255]]
    assert read("cityscapes_val", write_label, np.full((2, 2), 255, np.uint8)).min() == 255


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", ["gta5_all", "bdd100k_val", "cityscapes_val"])
def test_colours_of_the_classes(read, name, alpha):
    pixels = np.concatenate([COLORS, OPAQUE], axis=2) if alpha else COLORS
    with expect_error(WrongEncodingError, "one channel", "RGBA" if alpha else "RGB", "colors (100 %"):
        read(name, write_image, pixels)


def test_other_colours(read):
    photo = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    with expect_error(WrongEncodingError, "one channel", "RGB", "label_channel") as error:
        read("gta5_all", write_image, photo)
    assert "looks like" not in str(error.value)


def test_synthia_cut_down_to_eight_bits(read, tmp_path):
    ids = RNG.integers(0, 23, SHAPE)
    original = write_synthia_label(tmp_path / "original.png", ids, np.full(SHAPE, 976))

    def convert(path):
        write_image(path, np.asarray(Image.open(original)))  # Pillow keeps the upper eight bits: 976 becomes 3
        assert np.asarray(Image.open(path)).max() == 3

    with expect_error(WrongEncodingError, "16 bits", 8, "published file"):
        read("synthia_all", convert)
    with expect_error(WrongEncodingError, "channel 0", "1 channel(s)", "label_channel"):
        read("synthia_all", write_label, ids.astype(np.uint8))


def test_more_bits_than_expected(tmp_path):
    path = write_label(tmp_path / "label.png", np.array([[1, 700]], np.uint16))
    with expect_error(WrongEncodingError, "8 bits", 16, "published file"):
        LabelReader({1: 1, 700: 2}, bits=8).read(path)
    assert LabelReader({1: 1, 700: 2}, bits=16).read(path).tolist() == [[1, 2]]


def test_own_ids_are_not_taken_for_train_ids(tmp_path):
    path = write_label(tmp_path / "label.png", np.array([[0, 1, 255]], np.uint8))
    assert LabelReader({0: 5, 1: 6}, other_ids_ignored=True).read(path).tolist() == [[5, 6, 255]]


def test_highest_id(tmp_path):
    reader = LabelReader({0: 5, 9: 6}, other_ids_ignored=True, highest_id=3)
    path = write_label(tmp_path / "label.png", np.array([[0, 3, 9]], np.uint8))
    assert reader.read(path).tolist() == [[5, 255, 6]]
    with expect_error(DatasetError, str(path), "4, 8"):
        reader.read(write_label(path, np.array([[4, 8]], np.uint8)))
