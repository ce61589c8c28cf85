"""Ids that a dataset's own file names, and panoptic labels."""

import json

import numpy as np
import pytest

from data_factory import registered, write_definition, write_image, write_label, write_panoptic_label
from error_matching import expect_error
from famix.data import get_label_readers, load_definition
from famix.data.layout_reader import ids_by_name
from famix.utils.errors import DatasetError

CLASSES = [{"name": "street", "color": [9, 9, 9]}, {"name": "being", "color": [200, 9, 9]}]
NAMES = {"flat--road": "street", "human": "being", "human--statue": "ignore"}


@pytest.fixture
def names_file(tmp_path):
    return tmp_path / "names.json"


def write_names(file, *names):
    file.write_text(json.dumps({"labels": [{"name": name} for name in names]}))


def definition(folder, **changes):
    own = {"classes": CLASSES, "label_ids": None, "label_names": NAMES, "label_names_file": "names.json"}
    return write_definition(folder, **{**own, **changes})


def reader(file):
    with registered(file):
        return get_label_readers(["tiny_val"])["tiny_val"]


def test_the_longest_name_above_counts(tmp_path, names_file):
    write_names(names_file, "Human--Statue", "human--person--adult", "Flat--Ro-ad", "human", "sky")
    path = write_label(tmp_path / "labels/val/x.png", np.array([[0, 1, 2, 3, 4]], np.uint8))
    strict = reader(definition(tmp_path))
    with expect_error(DatasetError, str(path), 4, "label_ids"):
        strict.read(path)
    lenient = reader(definition(tmp_path, other_ids="ignore"))
    assert lenient.read(path).tolist() == [[255, 1, 0, 1, 255]]
    with expect_error(DatasetError, str(path), 5, "label_ids"):
        lenient.read(write_label(path, np.array([[5]], np.uint8)))


def test_a_file_of_other_names(names_file):
    with expect_error(DatasetError, "flat--road", "human, dog", "label_names_file"):
        ids_by_name({0: "human", 1: "dog"}, {"flat--road": 0, "human": 1, "human--statue": 255}, 255, names_file)


@pytest.mark.parametrize("content", [None, "{", '{"label": []}', "[]", '{"categories": [{"id": "x", "name": "a"}]}'])
def test_bad_files(tmp_path, names_file, content):
    if content is not None:
        names_file.write_text(content)
    path = write_label(tmp_path / "labels/val/x.png", np.array([[0]], np.uint8))
    with expect_error(DatasetError, str(names_file)):
        reader(definition(tmp_path)).read(path)


NO_NAMES = {"label_names": None, "label_names_file": None}


@pytest.mark.parametrize(
    ("changes", "key", "value", "remedy"),
    [
        ({"label_names_file": None}, "'label_names'", None, "'label_names_file'"),
        ({"label_names": None}, "'label_names'", None, "'label_names_file'"),
        ({"label_ids": {0: "street"}}, "'label_ids'", None, "'label_names'"),
        ({"label_names": {"a": "streat"}}, "'label_names.a'", "streat", "'street'"),
        ({"label_names": {1: "street"}}, "'label_names'", 1, ""),
        ({"label_format": "coco"}, "'label_format'", "coco", ""),
        ({**NO_NAMES, "label_ids": {0: "street"}, "label_format": "coco_panoptic"}, "'label_format'", "coco_panoptic",
         "'label_names_file'"),
        ({**NO_NAMES, "label_ids": "cityscapes"}, "'label_ids'", "cityscapes", ""),
        ({"highest_id": -1}, "'highest_id'", -1, ""),
        ({"label_bits": 12}, "'label_bits'", 12, ""),
    ],
)  # fmt: skip
def test_mistakes_in_definitions(tmp_path, changes, key, value, remedy):
    with expect_error(DatasetError, key, value, remedy):
        load_definition(definition(tmp_path, **changes))


# Panoptic labels

IDS = np.array([[3, 3, 7], [7, 9, 3]])
CATEGORIES = {3: "flat--road", 7: "human", 9: "human--statue"}


@pytest.fixture
def panoptic(tmp_path, names_file):
    path = write_panoptic_label(tmp_path / "labels/val/x.png", IDS, names_file, CATEGORIES)
    return reader(definition(tmp_path, label_format="coco_panoptic")), path


def test_panoptic_labels(panoptic):
    read, path = panoptic[0].read, panoptic[1]
    assert read(path).tolist() == [[0, 0, 1], [1, 255, 255]], "9 is a statue, the black corner no segment"


def test_panoptic_labels_that_do_not_fit_their_json(panoptic, names_file):
    read, path = panoptic[0].read, panoptic[1]
    write_image(path, np.full((2, 3, 3), 5, np.uint8))
    with expect_error(DatasetError, str(path), 5 * 0x10101):
        read(path)
    write_label(path, np.zeros((2, 3), np.uint8))
    with expect_error(DatasetError, key="RGB", value="L", remedy="label_format"):
        read(path)
    other = write_image(path.with_name("y.png"), np.zeros((2, 3, 3), np.uint8))
    with expect_error(DatasetError, str(names_file), "y.png"):
        read(other)
    content = json.loads(names_file.read_text())
    names_file.write_text(json.dumps({"categories": content["categories"]}))
    with expect_error(DatasetError, str(names_file), "annotations"):
        read(other)
