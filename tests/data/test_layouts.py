"""Datasets that may lie in several layouts: which one is used, and what is said when none is there."""

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
LAYOUTS = [FOLDERS, FLAT, TRAIN_IDS]


def definition(folder, layouts=LAYOUTS, **changes):
    return write_definition(folder, images=None, labels=None, layouts=layouts, **changes)


def write_pair(folder, image, label, value=1):
    write_image(folder / image, np.zeros((4, 5, 3), np.uint8))
    write_label(folder / label, np.full((4, 5), value, np.uint8))


def keys(name="tiny_val"):
    return [record["image_id"] for record in get_dataset_dicts([name])]


def test_the_first_layout_with_a_pair_is_used(tmp_path):
    with registered(definition(tmp_path)):
        write_pair(tmp_path, "all/b.png", "all/b_train.png", value=13)
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


def test_no_layout_is_there(tmp_path):
    write_image(tmp_path / "all/b.png", np.zeros((4, 5, 3), np.uint8))
    with (
        registered(definition(tmp_path)),
        pytest.raises(
            DatasetError,
            match=r"'tiny_val' .*"
            r"1\) image images/val/\{key\}\.png \(no such folder\), label labels/val/\{key\}\.png \(no such folder\); "
            r"2\) image all/\{key\}\.png \(1 found\), label all/\{key\}_ids\.png \(0 found\), list val\.txt \(missing\); 3\)",
        ),
    ):
        get_dataset_dicts(["tiny_val"])


def test_a_layout_without_its_list_is_passed_over(tmp_path):
    with registered(definition(tmp_path)):
        write_pair(tmp_path, "all/b.png", "all/b_ids.png")
        with pytest.raises(DatasetError, match=r"list train\.txt \(missing\)"):
            get_dataset_dicts(["tiny_train"])
        (tmp_path / "train.txt").write_text("b\n")
        assert keys("tiny_train") == ["b"]


def test_folders_and_splits_of_a_layout(tmp_path):
    layouts = [
        {**FOLDERS, "splits": ["train"]},
        {**FOLDERS, "folders": {"val": "valid/x"}},
    ]
    with registered(definition(tmp_path, layouts)):
        write_pair(tmp_path, "images/val/1.png", "labels/val/1.png")  # only the first layout would look here
        write_pair(tmp_path, "images/valid/x/2.png", "labels/valid/x/2.png")
        assert keys() == ["2"]


def test_the_path_decides_the_encoding_and_other_paths_are_refused(tmp_path):
    reader = label_reader_of(load_definition(definition(tmp_path)))
    assert (reader.label_ids, reader.ignore_label) == ({0: 0, 1: 10, 2: 13, 9: 255}, 255)
    for path, value in (("all/x_train.png", 12), ("all/x_ids.png", 2), ("labels/a/b/x.png", 2)):
        write_label(tmp_path / path, np.full((2, 2), value, np.uint8))
        expected = 12 if value == 12 else 13
        assert pickle.loads(pickle.dumps(reader)).read(tmp_path / path).max() == expected
    with expect_error(DatasetError, str(tmp_path / "elsewhere/x.png"), "labels/{split}/{key}.png", "definition.yaml"):
        reader.read(tmp_path / "elsewhere/x.png")


def test_folders_above_the_root_are_no_part_of_the_layout(tmp_path):
    reader = label_reader_of(load_definition(definition(tmp_path / "labels/val")))
    path = write_label(tmp_path / "labels/val/all/x_train.png", np.full((2, 2), 12, np.uint8))
    assert reader.read(path).max() == 12


@pytest.mark.parametrize(
    ("layouts", "key", "value", "remedy"),
    [
        ([], "'layouts'", [], ""),
        ([FOLDERS, {"images": "a/{key}.png"}], "'layouts.1.labels'", None, "datasets/README.md"),
        ([{**FOLDERS, "label": "x"}], "'layouts.0.label'", None, "'labels'"),
        ([{**FOLDERS, "label_ids": {0: "raod"}}], "'layouts.0.label_ids.0'", "raod", "'road'"),
        ([FOLDERS, {**FOLDERS, "label_ids": "identity"}], "'layouts.1.labels'", FOLDERS["labels"], ""),
        ([{**FOLDERS, "splits": ["vall"]}], "'layouts.0.splits'", "vall", ""),
        ([{**FOLDERS, "folders": {"x": "y"}}], "'layouts.0.folders.x'", None, "train, val"),
        ([{**FOLDERS, "folders": {"val": 3}}], "'layouts.0.folders.val'", 3, ""),
        ([{**FOLDERS, "splits": ["val"]}], "'splits'", "train", "'layouts'"),
        ([{**FLAT, "keys": None}], "'layouts.0.keys'", None, ""),
        ([{"images": "a/{key}.png", "labels": "b/{key}.png"}], "'splits'", ["train", "val"], ""),
    ],
)
def test_mistakes_in_layouts(tmp_path, layouts, key, value, remedy):
    with expect_error(DatasetError, key, value, remedy):
        load_definition(definition(tmp_path, layouts))


def test_layouts_and_templates_exclude_each_other(tmp_path):
    with expect_error(DatasetError, "'images'", None, "'layouts'"):
        load_definition(write_definition(tmp_path, layouts=LAYOUTS))


# Lists


def test_an_ambiguous_name_is_no_name(tmp_path):
    with registered(make_dataset(tmp_path, splits={"few": {"folder": "train", "keys": "few.txt"}})):
        write_pair(tmp_path, "images/train/b/3.png", "labels/train/b/3.png")
        (tmp_path / "few.txt").write_text("3\na/4")
        with expect_error(DatasetError, "few.txt", "3"):
            get_dataset_dicts(["tiny_few"])
        (tmp_path / "few.txt").write_text("b/3\na/4")
        assert keys("tiny_few") == ["a/4", "b/3"]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ({"valIds": np.array([1])}, "valIds"),
        ({"trainIds": np.array(["a"], object)}, "trainIds"),
        (b"no matlab", None),
        (b"", None),
    ],
)
def test_matlab_files_that_are_not_lists(tmp_path, content, value):
    file = make_dataset(tmp_path, splits={"few": {"folder": "train", "keys": "few.mat"}})
    if isinstance(content, bytes):
        (tmp_path / "few.mat").write_bytes(content)
    else:
        savemat(tmp_path / "few.mat", content)
    with registered(file), expect_error(DatasetError, str(tmp_path / "few.mat"), value, "one key per line"):
        get_dataset_dicts(["tiny_few"])


# Files without a partner


def test_unpaired_files_are_left_out_and_counted_once(tmp_path, caplog):
    with registered(make_dataset(tmp_path, unpaired="skip")):
        for index in (1, 2):
            (tmp_path / f"labels/train/a/{index}.png").unlink()
        (tmp_path / "images/train/a/5.png").unlink()
        with caplog.at_level(logging.WARNING, logger="famix"):
            assert keys("tiny_train") == keys("tiny_train") == ["a/0", "a/3", "a/4"]
            (tmp_path / "labels/val/a/0.png").unlink()
            assert len(keys("tiny_val")) == len(keys("tiny_val")) == 5
    first, second = (record.message for record in caplog.records)
    explains(first, "tiny_train", tmp_path, "3 pairs")
    explains(second, "tiny_val", tmp_path, "5 pairs")
    assert "2 images without a label" in first and "1 labels without an image" in first


def test_no_pair_is_left(tmp_path):
    with registered(make_dataset(tmp_path, count=1, unpaired="skip")):
        (tmp_path / "labels/train/a/0.png").rename(tmp_path / "labels/train/a/1.png")
        with expect_error(DatasetError, "tiny_train", 1, str(tmp_path / "labels/train/{key}.png")):
            get_dataset_dicts(["tiny_train"])
    with expect_error(DatasetError, "'unpaired'", "drop"):
        load_definition(write_definition(tmp_path, unpaired="drop"))
