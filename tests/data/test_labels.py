import numpy as np
import pytest

from data_factory import write_definition, write_image, write_label, write_palette_label, write_synthia_label
from error_matching import expect_error
from famix.data import LabelReader, label_reader_of, load_definition
from famix.utils.errors import DatasetError

IDS = np.array([[0, 7, 7], [26, 0, 7]], dtype=np.uint8)
TRAIN_IDS = np.array([[255, 0, 0], [13, 255, 0]], dtype=np.uint8)
READER = LabelReader(label_ids={0: 255, 7: 0, 26: 13})


def write_red(path, ids):
    return write_synthia_label(path, ids, ids[::-1])  # 16 bits


def write_alpha(path, ids):
    return write_image(path, np.stack([ids * 0, ids * 0, ids * 0, ids], axis=2))


@pytest.mark.parametrize(
    ("write", "channel"),
    [(write_label, None), (write_palette_label, None), (write_red, 0), (write_alpha, 3)],
)
def test_ids_become_train_ids(tmp_path, write, channel):
    train_ids = LabelReader(READER.label_ids, channel=channel).read(write(tmp_path / "label.png", IDS))
    assert train_ids.dtype == np.uint8
    np.testing.assert_array_equal(train_ids, TRAIN_IDS)


def test_sixteen_bit_ids(tmp_path):
    wide = np.where(IDS == 26, np.uint16(1000), IDS)
    reader = LabelReader({0: 255, 7: 0, 1000: 13})
    np.testing.assert_array_equal(reader.read(write_label(tmp_path / "label.png", wide)), TRAIN_IDS)
    path = write_synthia_label(tmp_path / "colors.png", IDS, wide)
    np.testing.assert_array_equal(LabelReader(reader.label_ids, channel=1).read(path), TRAIN_IDS)


def test_ids_without_a_class_are_an_error_or_ignored(tmp_path):
    path = write_label(tmp_path / "label.png", np.where(IDS == 26, 99, IDS))
    with expect_error(DatasetError, str(path), 99, "other_ids: ignore"):
        READER.read(path)
    tolerant = LabelReader(READER.label_ids, other_ids_ignored=True)
    np.testing.assert_array_equal(tolerant.read(path), [[255, 0, 0], [255, 255, 0]])


def test_ignore_label_of_the_definition(tmp_path):
    reader = label_reader_of(load_definition(write_definition(tmp_path, ignore_label=50, other_ids="ignore")))
    path = write_label(tmp_path / "label.png", np.array([[9, 200, 2]], dtype=np.uint8))
    np.testing.assert_array_equal(reader.read(path), [[50, 50, 13]])


@pytest.mark.parametrize(("channel", "write"), [(None, write_label), (0, write_red)])
@pytest.mark.parametrize("damage", ["cut", "changed", "text"])
def test_damaged_file(tmp_path, channel, write, damage):
    path = write(tmp_path / "label.png", np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8) * 7)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes({"cut": data[: len(data) // 2], "changed": data, "text": b"not an image"}[damage])
    with pytest.raises(DatasetError, match=r"Cannot read .*label\.png"):
        LabelReader(READER.label_ids, channel=channel).read(path)
