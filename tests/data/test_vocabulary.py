"""Classes that TEST.CLASSES lists, and classes that DATASETS.UNLABELED leaves out of training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode

from data_factory import data_config, make_dataset, registered
from error_matching import expect_error
from famix.config import load_config
from famix.data import CITYSCAPES_CLASSES, FAMixDatasetMapper, get_dataset_dicts
from famix.data.panoptic.mapper import PanopticDatasetMapper
from famix.data.vocabulary import IGNORED, listed_classes, unlabeled_classes, unseen_names, vocabulary_of
from famix.utils.errors import ConfigError
from panoptic_factory import make_panoptic

ROAD, SKY, PERSON, CAR = 0, 10, 11, 13  # train ids
LISTED = (("sky",), ("car", "automobile"), ("lamp",), ("road",))


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Registers the tiny datasets."""
    folder = tmp_path_factory.mktemp("data")
    with registered(make_dataset(folder / "semantic", count=2), make_panoptic(folder / "panoptic", {"train": 2})):
        yield


def open_config(classes: str, train: str = "tiny_train") -> CfgNode:
    cfg = data_config([train])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.META_ARCHITECTURE = 19, "FAMixMaskFormer"
    cfg.MODEL.MASK_FORMER.CLASSIFIER, cfg.TEST.CLASSES = "text", classes
    return cfg


@pytest.mark.parametrize("form", ["list", "text", "yaml", "file"])
def test_forms_of_a_list(form: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# classes\nsky\n\ncar,automobile \r\nlamp\n  road\n")
    (tmp_path / "config.yaml").write_text("TEST: {CLASSES: [sky, 'car, automobile', lamp, road]}")
    values = {
        "list": "['sky', 'car, automobile', 'lamp', 'road']",
        "text": "sky; car, automobile; lamp; road",
        "file": str(tmp_path / "names.txt"),
    }
    config, opts = (str(tmp_path / "config.yaml"), []) if form == "yaml" else ("", ["TEST.CLASSES", values[form]])
    cfg = load_config(config, opts)
    assert listed_classes(cfg.TEST.CLASSES) == LISTED
    (tmp_path / "kept.yaml").write_text(cfg.dump())
    assert listed_classes(load_config(str(tmp_path / "kept.yaml")).TEST.CLASSES) == LISTED
    assert listed_classes(load_config("", ["TEST.CLASSES", "['sky']"]).TEST.CLASSES) == (("sky",),)
    assert listed_classes("all") == () == listed_classes("synthia16")


@pytest.mark.parametrize(
    ("value", "shown", "remedy"),
    [
        ("[]", "[]", ".txt"),
        ("", "", ".txt"),
        ("['car', 3]", 3, ".txt"),
        ("['car', '']", None, ".txt"),
        ("car; auto, car", "car", ""),
        ("absent.txt", "absent.txt", "path"),
        ("empty.txt", "empty.txt", ""),
        ("semicolons.txt", "car;auto", ".txt"),
    ],
)
def test_invalid_lists(value: str, shown: object, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("# nothing\n")
    Path("semicolons.txt").write_text("car;auto\n")
    with expect_error(ConfigError, "TEST.CLASSES", shown, remedy):
        listed_classes(load_config("", ["TEST.CLASSES", value]).TEST.CLASSES)


def test_listed_classes_are_found_by_name() -> None:
    vocabulary = vocabulary_of(open_config("sky; car, automobile; lamp; road"))
    assert vocabulary is not None and vocabulary.synonyms == LISTED
    table = vocabulary.table
    assert table.names == ("sky", "car", "lamp", "road") and table.things == ()
    assert table.colors[1] == (0, 0, 142) and table.colors[2] not in table.colors[:2]
    ids = vocabulary.ids_in("tiny_train")
    assert [ids[SKY], ids[CAR], ids[ROAD]] == [0, 1, 3] and ids[255] == ids[PERSON] == IGNORED
    with expect_error(ConfigError, "TEST.CLASSES", "tiny_train", "road"):
        other = vocabulary_of(open_config("sky; car; lamp"))
        assert other is not None
        other.ids_in("tiny_train")


def test_things_are_found_by_name() -> None:
    vocabulary = vocabulary_of(open_config("car; lamp; person; road", train="tiny_train_panoptic"))
    assert vocabulary is not None and vocabulary.table.things == (0, 2)


@pytest.mark.parametrize(("key", "value"), [("CLASSIFIER", "learned"), ("QUERIES", "text")])
def test_networks_without_open_classes(key: str, value: str) -> None:
    cfg = open_config("road; sky; car")
    cfg.MODEL.MASK_FORMER[key] = value
    with expect_error(ConfigError, "TEST.CLASSES", value, "MODEL.MASK_FORMER.CLASSIFIER"):
        vocabulary_of(cfg)
    cfg = open_config("road; sky; car")
    cfg.MODEL.META_ARCHITECTURE = "FAMixSemanticSegmentor"
    with expect_error(ConfigError, "TEST.CLASSES", "FAMixSemanticSegmentor", "all"):
        vocabulary_of(cfg)


def test_unseen_classes_are_new_or_unlabeled() -> None:
    names = ("lamp", "road", "sky", "car")
    cfg = open_config("all")
    assert unseen_names(cfg, names[1:]) == ()
    cfg.DATASETS.UNLABELED = ["sky"]
    assert unseen_names(cfg, names[1:]) == ("sky",)
    cfg.TEST.CLASSES = "lamp; road; sky; car"
    assert unseen_names(cfg, names) == ("lamp", "sky")


@pytest.mark.parametrize(
    ("unlabeled", "value", "remedy"),
    [(["cars"], "cars", "'car'"), (["car", "car"], "car", "one"), ([7], 7, "road")],
)
def test_invalid_unlabeled_classes(unlabeled: list[object], value: object, remedy: str) -> None:
    cfg = open_config("all")
    cfg.DATASETS.UNLABELED = unlabeled
    with expect_error(ConfigError, "DATASETS.UNLABELED", value, remedy):
        FAMixDatasetMapper(cfg)


def test_at_least_one_class_is_labeled() -> None:
    cfg = open_config("all")
    cfg.DATASETS.UNLABELED = [entry.name for entry in CITYSCAPES_CLASSES]
    with expect_error(ConfigError, "DATASETS.UNLABELED", 19):
        unlabeled_classes(cfg)


@pytest.mark.parametrize("mining", [False, True])
def test_unlabeled_pixels_are_ignored_in_training(mining: bool) -> None:
    cfg = open_config("all")
    (record, *_) = get_dataset_dicts(["tiny_train"])
    plain = FAMixDatasetMapper(cfg, is_mining=mining)(record, np.random.default_rng(0))
    cfg.DATASETS.UNLABELED = ["car", "road"]
    found = FAMixDatasetMapper(cfg, is_mining=mining)(record, np.random.default_rng(0))
    expected = plain["sem_seg"].clone()
    expected[(expected == CAR) | (expected == ROAD)] = 255
    assert (plain["sem_seg"] == CAR).any() and expected.equal(found["sem_seg"])
    assert plain["image"].equal(found["image"])
    if not mining:
        assert found["segments"].gt_classes.tolist() == [SKY]


@pytest.mark.parametrize("architecture", ["FAMixMaskFormer", "FAMixPanopticFPN", "FAMixPanopticDeepLab"])
def test_unlabeled_segments_are_void_in_training(architecture: str) -> None:
    cfg = open_config("all", train="tiny_train_panoptic")
    cfg.MODEL.META_ARCHITECTURE, cfg.INPUT.CROP.SIZE = architecture, [72, 112]
    (record, *_) = get_dataset_dicts(["tiny_train_panoptic"])
    plain = PanopticDatasetMapper(cfg)(record, np.random.default_rng(0))
    cfg.DATASETS.UNLABELED = ["car", "sky"]
    found = PanopticDatasetMapper(cfg)(record, np.random.default_rng(0))
    expected = plain["sem_seg"].clone()
    expected[(expected == CAR) | (expected == SKY)] = 255
    assert expected.equal(found["sem_seg"]) and (expected == PERSON).any()
    if architecture == "FAMixMaskFormer":
        assert sorted(found["segments"].gt_classes.tolist()) == [ROAD, PERSON]
    elif architecture == "FAMixPanopticFPN":
        assert len(plain["instances"]) == 3 and len(found["instances"]) == 1
    else:
        assert len(plain["center_points"]) == 3 and len(found["center_points"]) == 1
