import numpy as np
import pytest

from data_factory import write_definition, write_image, write_label, write_palette_label, write_synthia_label
from error_matching import expect_error
from famix.data import LabelReader, label_reader_of, load_definition
from famix.utils.errors import DatasetError

IDS = np.array([[0, 7, 7], [26, 0, 7]], dtype=np.uint8)
TRAIN_IDS = np.array([[255, 0, 0], [13, 255, 0]], dtype=np.uint8)
READER = LabelReader(label_ids={0: 255, 7: 0, 26: 13})


@pytest.mark.parametrize("write", [write_label, write_palette_label])
def test_maps_eight_bit_and_palette_files(tmp_path, write):
    train_ids = READER.read(write(tmp_path / "label.png", IDS))
    assert train_ids.dtype == np.uint8
    np.testing.assert_array_equal(train_ids, TRAIN_IDS)


def test_maps_sixteen_bit_grey(tmp_path):
    reader = LabelReader(label_ids={0: 255, 7: 0, 1000: 13})
    ids = np.where(IDS == 26, np.uint16(1000), IDS)
    np.testing.assert_array_equal(reader.read(write_label(tmp_path / "label.png", ids)), TRAIN_IDS)


@pytest.mark.parametrize("channel", [0, 1])
def test_takes_the_channel_of_sixteen_bit_colour(tmp_path, channel):
    instances = np.array([[976, 1, 2], [3, 4, 5]])
    path = write_synthia_label(tmp_path / "label.png", IDS, instances)
    if channel == 0:
        np.testing.assert_array_equal(LabelReader({0: 255, 7: 0, 26: 13}, channel=0).read(path), TRAIN_IDS)
    else:
        reader = LabelReader({976: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6}, channel=1)
        np.testing.assert_array_equal(reader.read(path), [[1, 2, 3], [4, 5, 6]])


def test_channel_three_is_alpha(tmp_path):
    pixels = np.stack([IDS * 0, IDS * 0, IDS * 0, IDS], axis=2)
    reader = LabelReader(READER.label_ids, channel=3)
    np.testing.assert_array_equal(reader.read(write_image(tmp_path / "label.png", pixels)), TRAIN_IDS)


def test_ids_without_a_class_are_an_error_or_ignored(tmp_path):
    path = write_label(tmp_path / "label.png", np.where(IDS == 26, 99, IDS))
    with expect_error(DatasetError, str(path), 99, "other_ids: ignore"):
        READER.read(path)
    tolerant = LabelReader(READER.label_ids, other_ids_ignored=True)
    np.testing.assert_array_equal(tolerant.read(path), [[255, 0, 0], [255, 255, 0]])


def test_ignore_label_of_the_definition(tmp_path):
    definition = load_definition(write_definition(tmp_path, ignore_label=50, other_ids="ignore"))
    reader = label_reader_of(definition)
    np.testing.assert_array_equal(
        reader.read(write_label(tmp_path / "label.png", np.array([[9, 200, 2]], dtype=np.uint8))), [[50, 50, 13]]
    )


@pytest.mark.parametrize("channel", [None, 0])
@pytest.mark.parametrize("damage", ["cut", "changed", "text"])
def test_damaged_files(tmp_path, channel, damage):
    ids = np.random.default_rng(0).integers(0, 2, (64, 64)) * 7
    path = tmp_path / "label.png"
    if channel is None:
        write_label(path, ids.astype(np.uint8))
    else:
        write_synthia_label(path, ids, ids)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes({"cut": data[: len(data) // 2], "changed": data, "text": b"not an image"}[damage])
    with pytest.raises(DatasetError, match=r"label\.png cannot be read"):
        LabelReader(READER.label_ids, channel=channel).read(path)
