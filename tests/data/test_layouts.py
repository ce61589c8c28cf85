"""Datasets with several possible layouts and with lists: the files in use, and the errors without any."""

import logging
import pickle

import numpy as np
import pytest
from scipy.io import savemat

from data_factory import make_dataset, registered, write_definition, write_image, write_label
from error_matching import expect_error, explains
from famix.data import get_dataset_dicts, get_label_readers, label_reader_of, load_definition
from famix.utils.errors import DatasetError

FOLDERS = {"images": "images/{split}/{key}.png", "labels": "labels/{split}/{key}.png"}
FLAT = {"images": "all/{key}.png", "labels": "all/{key}_ids.png", "keys": "{split}.txt"}
TRAIN_IDS = {"images": "all/{key}.png", "labels": "all/{key}_train.png", "keys": "{split}.txt", "label_ids": "identity"}


def define(folder, *layouts):
    return write_definition(folder, images=None, labels=None, layouts=[*(layouts or (FOLDERS, FLAT, TRAIN_IDS))])


def write_pair(folder, image, label, value=1):
    write_image(folder / image, np.zeros((4, 5, 3), np.uint8))
    write_label(folder / label, np.full((4, 5), value, np.uint8))


def keys(name="tiny_val"):
    return [record["image_id"] for record in get_dataset_dicts([name])]


def test_first_layout_with_a_pair_is_used(tmp_path):
    with registered(define(tmp_path)):
        write_pair(tmp_path, "all/b.png", "all/b_train.png", value=13)
        with pytest.raises(DatasetError, match=r"list train\.txt \(missing\)"):
            get_dataset_dicts(["tiny_train"])
        (tmp_path / "val.txt").write_text("b\n")
        (record,) = get_dataset_dicts(["tiny_val"])
        reader = get_label_readers(["tiny_val"])["tiny_val"]
        assert reader.read(record["label_file_name"]).max() == 13, "train ids"
        write_label(tmp_path / "all/b_ids.png", np.ones((4, 5), np.uint8))
        (record,) = get_dataset_dicts(["tiny_val"])
        assert record["label_file_name"].endswith("b_ids.png")
        assert reader.read(record["label_file_name"]).max() == 10, "1 is sky in the definition"
        write_pair(tmp_path, "images/val/c.png", "labels/val/c.png")
        assert keys() == ["c"]


def test_error_without_a_pair_describes_every_layout(tmp_path):
    write_image(tmp_path / "all/b.png", np.zeros((4, 5, 3), np.uint8))
    message = (
        r"'tiny_val' .*1\) image images/val/\{key\}\.png \(no such folder\), label labels/val/\{key\}\.png \(no such "
        r"folder\); 2\) image all/\{key\}\.png \(1 found\), label all/\{key\}_ids\.png \(0 found\), list val\.txt "
        r"\(missing\); 3\)"
    )
    with registered(define(tmp_path)), pytest.raises(DatasetError, match=message):
        get_dataset_dicts(["tiny_val"])


def test_layouts_have_their_own_folders_and_splits(tmp_path):
    with registered(define(tmp_path, {**FOLDERS, "splits": ["train"]}, {**FOLDERS, "folders": {"val": "valid/x"}})):
        write_pair(tmp_path, "images/val/1.png", "labels/val/1.png")  # only the first layout would look here
        write_pair(tmp_path, "images/valid/x/2.png", "labels/valid/x/2.png")
        assert keys() == ["2"]


def test_path_decides_the_encoding(tmp_path):
    root = tmp_path / "labels/val"  # folders above the root are not part of the layout
    reader = label_reader_of(load_definition(define(root)))
    assert (reader.label_ids, reader.ignore_label) == ({0: 0, 1: 10, 2: 13, 9: 255}, 255)
    for path, value, expected in (("all/x_train.png", 12, 12), ("all/x_ids.png", 2, 13), ("labels/a/b/x.png", 2, 13)):
        write_label(root / path, np.full((2, 2), value, np.uint8))
        assert pickle.loads(pickle.dumps(reader)).read(root / path).max() == expected
    with expect_error(DatasetError, str(root / "elsewhere/x.png"), "labels/{split}/{key}.png", "definition.yaml"):
        reader.read(root / "elsewhere/x.png")


# Lists


def test_lists_may_shorten_unambiguous_paths(tmp_path):
    with registered(make_dataset(tmp_path, splits={"few": {"folder": "train", "keys": "few.txt"}, "train": {}})):
        write_pair(tmp_path, "images/train/b/3.png", "labels/train/b/3.png")
        (tmp_path / "few.txt").write_text("3\na/4")
        with expect_error(DatasetError, "few.txt", "3"):
            get_dataset_dicts(["tiny_few"])
        (tmp_path / "few.txt").write_text("b/3\na/4")
        assert keys("tiny_few") == ["a/4", "b/3"]


@pytest.mark.parametrize(
    ("lines", "value", "remedy"),
    [
        (None, None, "tiny_train"),
        (["a/1", *(f"a/9{index}" for index in range(7))], "a/90, a/91, a/92, a/93, a/94 and 2 more", "{key}.png"),
        (["a/1", "a/2", "a/1.png"], "a/1", ""),
    ],
)
def test_bad_list_is_an_error(tmp_path, lines, value, remedy):
    with registered(make_dataset(tmp_path, splits={"few": {"folder": "train", "keys": "few.txt"}, "train": {}})):
        if lines is not None:
            (tmp_path / "few.txt").write_text("\n".join(lines))
        with expect_error(DatasetError, "few.txt", value, remedy):
            get_dataset_dicts(["tiny_few"])


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ({"valIds": np.array([1])}, "valIds"),
        ({"trainIds": np.array(["a"], object)}, "trainIds"),
        (b"no matlab", None),
        (b"", None),
    ],
)
def test_matlab_file_without_numbers_is_an_error(tmp_path, content, value):
    file = make_dataset(tmp_path, splits={"few": {"folder": "train", "keys": "few.mat"}})
    if isinstance(content, bytes):
        (tmp_path / "few.mat").write_bytes(content)
    else:
        savemat(tmp_path / "few.mat", content)
    with registered(file), expect_error(DatasetError, str(tmp_path / "few.mat"), value, "one key per line"):
        get_dataset_dicts(["tiny_few"])


# Files without a partner


def test_unpaired_files_are_skipped_and_counted_once(tmp_path, caplog):
    with registered(make_dataset(tmp_path, unpaired="skip")):
        for path in ("labels/train/a/1.png", "labels/train/a/2.png", "images/train/a/5.png"):
            (tmp_path / path).unlink()
        with caplog.at_level(logging.WARNING, logger="famix"):
            assert keys("tiny_train") == keys("tiny_train") == ["a/0", "a/3", "a/4"]
            (tmp_path / "labels/val/a/0.png").unlink()
            assert len(keys("tiny_val")) == len(keys("tiny_val")) == 5
    first, second = (record.message for record in caplog.records)
    explains(first, "tiny_train", tmp_path, "3 pairs")
    explains(second, "tiny_val", tmp_path, "5 pairs")
    assert "2 images without a label" in first and "1 labels without an image" in first


def test_unpaired_skip_needs_one_pair(tmp_path):
    with registered(make_dataset(tmp_path, count=1, unpaired="skip")):
        (tmp_path / "labels/train/a/0.png").rename(tmp_path / "labels/train/a/1.png")
        with expect_error(DatasetError, "tiny_train", 1, str(tmp_path / "labels/train/{key}.png")):
            get_dataset_dicts(["tiny_train"])
