"""The classes of the papers on SYNTHIA."""

import pytest

from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.evaluation.counting.scores import CLASS_SUBSETS, class_subset
from famix.utils.errors import ConfigError

NAMES = [entry.name for entry in CITYSCAPES_CLASSES]


def test_cityscapes():
    assert class_subset("all", NAMES) == tuple(range(19))
    assert class_subset("16", NAMES) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
    assert class_subset("13", NAMES) == (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)


@pytest.mark.parametrize("name", ["16", "13"])
def test_the_names_that_need_no_quotes(name):
    assert class_subset(f"synthia{name}", NAMES) == class_subset(name, NAMES)
    assert {name, f"synthia{name}"} < set(CLASS_SUBSETS)


def test_classes_are_found_by_name():
    shuffled = ["unknown thing", *reversed(NAMES)]
    for name in ("16", "13"):
        wanted = {NAMES[index] for index in class_subset(name, NAMES)}
        got = class_subset(name, shuffled)
        assert {shuffled[index] for index in got} == wanted and list(got) == sorted(got)
    assert class_subset("all", shuffled) == tuple(range(20))


def test_a_data_set_of_other_classes():
    assert class_subset("all", ["road", "crop"]) == (0, 1)
    with expect_error(ConfigError, "TEST.CLASSES", "16", "rider"):
        class_subset("16", [name for name in NAMES if name != "rider"])
    assert len(class_subset("13", [name for name in NAMES if name != "wall"])) == 13


def test_an_unknown_subset():
    with expect_error(ConfigError, "TEST.CLASSES", "synthia-16", "'synthia16'"):
        class_subset("synthia-16", NAMES)
    with expect_error(ConfigError, "TEST.CLASSES", "19"):
        class_subset("19", NAMES)
