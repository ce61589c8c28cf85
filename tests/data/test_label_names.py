"""Ids that a dataset's own file names, and panoptic labels."""

import json

import numpy as np
import pytest

from data_factory import registered, write_definition, write_image, write_label, write_panoptic_label
from error_matching import expect_error
from famix.data import get_label_readers
from famix.data.layout.label_reader import ids_by_name
from famix.utils.errors import DatasetError

CLASSES = [{"name": "street", "color": [9, 9, 9]}, {"name": "being", "color": [200, 9, 9]}]
NAMES = {"flat--road": "street", "human": "being", "human--statue": "ignore"}


@pytest.fixture
def names_file(tmp_path):
    return tmp_path / "names.json"


def make_reader(folder, **changes):
    own = {"classes": CLASSES, "label_ids": None, "label_names": NAMES, "label_names_file": "names.json"}
    with registered(write_definition(folder, **own, **changes)):
        return get_label_readers(["tiny_val"])["tiny_val"]


def test_longest_name_counts(tmp_path, names_file):
    names = ("Human--Statue", "human--person--adult", "Flat--Ro-ad", "human", "sky")
    names_file.write_text(json.dumps({"labels": [{"name": name} for name in names]}))
    path = write_label(tmp_path / "labels/val/x.png", np.array([[0, 1, 2, 3, 4]], np.uint8))
    with expect_error(DatasetError, str(path), 4, "label_ids"):
        make_reader(tmp_path).read(path)
    lenient = make_reader(tmp_path, other_ids="ignore")
    assert lenient.read(path).tolist() == [[255, 1, 0, 1, 255]]
    with expect_error(DatasetError, str(path), 5, "label_ids"):
        lenient.read(write_label(path, np.array([[5]], np.uint8)))


def test_ids_by_name_rejects_other_names(names_file):
    with expect_error(DatasetError, "flat--road", "human, dog", "label_names_file"):
        ids_by_name({0: "human", 1: "dog"}, {"flat--road": 0, "human": 1, "human--statue": 255}, 255, names_file)


@pytest.mark.parametrize("content", [None, "{", '{"label": []}', "[]", '{"categories": [{"id": "x", "name": "a"}]}'])
def test_malformed_names_file_is_an_error(tmp_path, names_file, content):
    if content is not None:
        names_file.write_text(content)
    path = write_label(tmp_path / "labels/val/x.png", np.array([[0]], np.uint8))
    with expect_error(DatasetError, str(names_file)):
        make_reader(tmp_path).read(path)


@pytest.fixture
def panoptic(tmp_path, names_file):
    ids = np.array([[3, 3, 7], [7, 9, 3]])
    categories = {3: "flat--road", 7: "human", 9: "human--statue"}
    path = write_panoptic_label(tmp_path / "labels/val/x.png", ids, names_file, categories)
    return make_reader(tmp_path, label_format="coco_panoptic").read, path


def test_panoptic_labels_become_train_ids(panoptic):
    read, path = panoptic
    assert read(path).tolist() == [[0, 0, 1], [1, 255, 255]], "9 is a statue, the black corner no segment"


def test_panoptic_labels_must_fit_their_json(panoptic, names_file):
    read, path = panoptic
    write_image(path, np.full((2, 3, 3), 5, np.uint8))
    with expect_error(DatasetError, str(path), 5 * 0x10101):
        read(path)
    write_label(path, np.zeros((2, 3), np.uint8))
    with expect_error(DatasetError, key="RGB", value="L", remedy="label_format"):
        read(path)
    other = write_image(path.with_name("y.png"), np.zeros((2, 3, 3), np.uint8))
    with expect_error(DatasetError, str(names_file), "y.png"):
        read(other)
    names_file.write_text(json.dumps({"categories": json.loads(names_file.read_text())["categories"]}))
    with expect_error(DatasetError, str(names_file), "annotations"):
        read(other)
