"""Panoptic quality and mask AP against numbers computed by hand, and checks of the config."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances

from data_factory import registered, write_image
from error_matching import expect_error
from famix.data import get_dataset_dicts
from famix.engine import load_config
from famix.evaluation import StreamingSemSegEvaluator, build_evaluator
from famix.evaluation import panoptic as module
from famix.evaluation.counting.scored_classes import ScoredClasses, classes_of_dataset
from famix.evaluation.evaluators import check_panoptic
from famix.evaluation.panoptic import PanopticEvaluator, predicted_segments, read_truth
from famix.modeling import FAMixPanopticFPN
from famix.utils.errors import ConfigError
from panoptic_factory import CONFIGS, make_panoptic, write_annotations, write_recipe

NAME = "tiny_train_panoptic"
ROAD, SKY, PERSON, CAR = 0, 10, 11, 13  # train ids
VOID = -1


def rows(*values: int) -> np.ndarray:
    """Return a map of 10 columns with one row per value."""
    return np.repeat(np.array(values)[:, None], 10, axis=1)


TRUTH = rows(7, 7, 26_000, 26_001, 0, 23)  # road, two cars, unlabeled, sky


def write_dataset(folder: Path, ids: np.ndarray, crowds: tuple[int, ...] = (), **changes: Any) -> Path:
    write_image(folder / "images/train/a.png", np.zeros((*ids.shape, 3), np.uint8))
    write_annotations(folder, "train", {"a": ids}, crowds, **changes)
    return write_recipe(folder)


def score(evaluator: Any, records: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for record, output in zip(records, outputs, strict=True):
        evaluator.process([record], [output])
    return evaluator.evaluate()


def quality(records: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, float]:
    return score(PanopticEvaluator(NAME, ["panoptic_seg"]), records, outputs)["panoptic_seg"]


def precision(record: dict[str, Any], output: dict[str, Any]) -> dict[str, float]:
    return score(PanopticEvaluator(NAME, ["instances"]), [record], [output])["segm"]


def deeplab(labels: np.ndarray) -> dict[str, Any]:
    """Return a prediction in the form of Panoptic-DeepLab: train id * 1000 + instance."""
    return {"panoptic_seg": (torch.from_numpy(labels.astype(np.int64)), None)}


def fpn(labels: np.ndarray) -> dict[str, Any]:
    """Return the same prediction in the form of Panoptic FPN: numbered segments."""
    found = [int(label) for label in np.unique(labels) if label != VOID]
    numbers = sum((labels == label) * number for number, label in enumerate(found, 1))
    segments = [
        {"id": number, "category_id": label // 1000, "isthing": label // 1000 in (PERSON, CAR)}
        for number, label in enumerate(found, 1)
    ]
    return {"panoptic_seg": (torch.from_numpy(np.asarray(numbers, np.int32)), segments)}


def in_train_ids(record: dict[str, Any]) -> np.ndarray:
    """Return the ground truth in the form of `deeplab`."""
    truth = read_truth(record, classes_of_dataset(NAME))
    labels = np.full(truth.numbers.shape, VOID)
    for segment in truth.segments:
        labels[truth.numbers == segment["id"]] = segment["category_id"] * 1000 + segment["id"]
    return labels


def instances_of(labels: np.ndarray) -> Instances:
    """Return the things of a prediction with equal scores."""
    things = [int(label) for label in np.unique(labels) if label // 1000 in (PERSON, CAR)]
    masks = BitMasks(torch.from_numpy(np.stack([labels == label for label in things])))
    found = Instances(labels.shape)
    found.pred_classes = torch.tensor([label // 1000 for label in things])
    found.scores, found.pred_boxes, found.pred_masks = torch.ones(len(things)), masks.get_bounding_boxes(), masks.tensor
    return found


@pytest.fixture
def record(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Register TRUTH as the only image of a dataset."""
    with registered(write_dataset(tmp_path, TRUTH)):
        yield get_dataset_dicts([NAME])[0]


def by_hand() -> np.ndarray:
    labels = np.full(TRUTH.shape, VOID)
    labels[:2] = ROAD * 1000
    labels[0, :4] = VOID  # 16 of 20 pixels of road: IoU 0.8
    labels[2, :6] = CAR * 1000 + 1  # 6 of 10 pixels of the first car: IoU 0.6
    labels[4, :5] = CAR * 1000 + 1  # unlabeled pixels do not count against it
    labels[3] = PERSON * 1000 + 1  # the second car is taken for a person: missed, and one person too many
    labels[5] = SKY * 1000  # IoU 1
    return labels


@pytest.mark.parametrize("form", [deeplab, fpn])
def test_panoptic_quality_by_hand(form: Any, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """PQ of a class: sum of IoUs of matches / (matches + half of the missed and of the superfluous segments)."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a forked pool may hang in a process with threads"))
    output = form(by_hand())
    before = output["panoptic_seg"][0].clone()
    scores = quality([record], [output])
    road, sky, car, person = 0.8, 1.0, 0.6 / 1.5, 0.0
    assert scores["PQ"] == pytest.approx(100 * (road + sky + car + person) / 4)
    assert scores["PQ_th"] == pytest.approx(100 * (car + person) / 2)
    assert scores["PQ_st"] == pytest.approx(100 * (road + sky) / 2)
    assert scores["SQ"] == pytest.approx(100 * (0.8 + 1.0 + 0.6 + 0) / 4)
    assert scores["RQ"] == pytest.approx(100 * (1 + 1 + 1 / 1.5 + 0) / 4)
    assert scores["SQ_th"] == pytest.approx(30) and scores["RQ_st"] == pytest.approx(100)
    assert torch.equal(output["panoptic_seg"][0], before)


def test_panoptic_quality_of_listed_classes(record: dict[str, Any]) -> None:
    """The ground truth is mapped to other classes, of which lamps are new and cars had no labels in training."""
    ids = np.full(256, 255, np.uint8)
    ids[[CAR, ROAD, SKY]] = 0, 2, 3
    classes = ScoredClasses(("car", "lamp", "road", "sky"), 255, (0,), (0, 1, 2, 3), unseen=(0, 1), ids=ids)
    labels = np.repeat(np.array([2000, 2000, 1, 1000, VOID, 3000])[:, None], 10, axis=1)  # the second car is a lamp
    evaluator = PanopticEvaluator(NAME, ["panoptic_seg"], classes=classes)
    scores = score(evaluator, [record], [deeplab(labels)])["panoptic_seg"]
    car, lamp, road, sky = 1 / 1.5, 0, 1, 1
    assert scores["PQ"] == pytest.approx(100 * (car + lamp + road + sky) / 4)
    assert scores["PQ_seen"] == pytest.approx(100 * (road + sky) / 2)
    assert scores["PQ_unseen"] == pytest.approx(100 * (car + lamp) / 2)
    assert scores["PQ_th"] == pytest.approx(100 * car)


def test_counts_of_processes_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with registered(make_panoptic(tmp_path, {"train": 3})):
        records = get_dataset_dicts([NAME])
        outputs = [fpn(in_train_ids(record)) for record in records]
        outputs[0] = deeplab(np.full(outputs[0]["panoptic_seg"][0].shape, SKY * 1000))
        expected = quality(records, outputs)
        other = PanopticEvaluator(NAME, ["panoptic_seg"])
        other.process(records[1:], outputs[1:])
        counts = other._count()
        monkeypatch.setattr(module.comm, "gather", lambda own: [own, counts])
        assert quality(records[:1], outputs[:1]) == pytest.approx(expected)
    assert 0 < expected["PQ"] < 100


def test_things_have_no_score_if_all_are_crowds(record: dict[str, Any]) -> None:
    crowds = [{**segment, "iscrowd": int(segment["category_id"] == CAR)} for segment in record["segments_info"]]
    prediction = by_hand()
    prediction[2:5] = VOID
    crowded = {**record, "segments_info": crowds}
    scores = quality([crowded], [deeplab(prediction)])
    assert scores["PQ"] == scores["PQ_st"] == pytest.approx(90)
    assert all(np.isnan(scores[name]) for name in ("PQ_th", "SQ_th", "RQ_th"))
    assert np.isnan(list(precision(crowded, {}).values())).all()


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Register a car, a person, two crowds of cars and one of persons, a row each between rows of road."""
    ids = rows(7, 26_000, 7, 26_001, 7, 24_000, 7, 26_002, 24_001)
    with registered(write_dataset(tmp_path, ids, crowds=(26_000, 26_001, 24_000))):
        yield get_dataset_dicts([NAME])[0]


def in_crowds(cars: list[int | tuple[int, int]], person: int) -> np.ndarray:
    """Return a perfect prediction with a car for every row, or pair of rows, of `cars`, and a person in one more row."""
    labels = np.full((9, 10), ROAD * 1000)
    labels[7], labels[8], labels[person] = CAR * 1000 + 1, PERSON * 1000 + 1, PERSON * 1000 + 2
    for number, row in enumerate(cars, 2):
        labels[np.array(row)] = CAR * 1000 + number
    return labels


@pytest.mark.parametrize("cars", [[1, 3], [(1, 3)], [1], [3]], ids=["one in each", "one over both", "first", "second"])
def test_crowds_excuse_instances_of_their_class_only(crowded: dict[str, Any], cars: list[Any]) -> None:
    labels = in_crowds(cars, person=5)
    for form in (deeplab, fpn):
        assert quality([crowded], [form(labels)])["PQ_th"] == pytest.approx(100)
    assert precision(crowded, {"instances": instances_of(labels)})["AP"] == pytest.approx(100)
    in_other_class = in_crowds([5], person=3)  # a car in persons, a person in cars
    assert quality([crowded], [deeplab(in_other_class)])["PQ_th"] == pytest.approx(100 / 1.5)


@pytest.mark.parametrize("rule", ["skip", "zero"])
def test_absent_class_lowers_panoptic_quality_under_any_rule(tmp_path: Path, rule: str) -> None:
    """A car that is predicted where there are only persons counts as 0, unlike in mIoU."""
    prediction = rows(ROAD * 1000, SKY * 1000, PERSON * 1000 + 1, CAR * 1000 + 1)
    cfg = config("famix_panoptic_deeplab.yaml", "TEST.ABSENT_CLASSES", rule)
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (NAME,), str(tmp_path / "output")
    with registered(write_dataset(tmp_path, rows(7, 23, 24_000, 24_001))):
        (record,) = get_dataset_dicts([NAME])
        semantic = torch.from_numpy(np.arange(19)[:, None, None] == prediction // 1000)
        results = score(build_evaluator(cfg, NAME), [record], [{"sem_seg": semantic, **deeplab(prediction)}])
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100 * (1 + 1 + 1 / 1.5 + 0) / 4)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (1 + 1 + 0.5) / (3 if rule == "skip" else 4))


def test_perfect_prediction(tmp_path: Path) -> None:
    with registered(make_panoptic(tmp_path, {"train": 3})):
        records = get_dataset_dicts([NAME])
        cfg = config("famix_panoptic_fpn.yaml")
        cfg.DATASETS.TEST = (NAME,)
        outputs = []
        for labels in map(in_train_ids, records):
            semantic = torch.from_numpy(np.arange(19)[:, None, None] == labels // 1000)
            outputs.append({"sem_seg": semantic, "instances": instances_of(labels), **fpn(labels)})
        results = score(build_evaluator(cfg, NAME), records, outputs)
    assert results.keys() == {"calibration", "sem_seg", "panoptic_seg", "segm"}
    assert set(results["panoptic_seg"].values()) == {100.0}
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert results["segm"] == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})


def test_categories_of_one_class_are_one_segment_and_ignored_ones_are_void(tmp_path: Path) -> None:
    """Road and lane markings are both road; a prediction over an ignored category costs nothing."""
    names = {7: ("road", 0), 8: ("lane", 0), 23: ("billboard", 0), 26: ("car", 1)}
    categories = [{"id": key, "name": name, "isthing": thing} for key, (name, thing) in names.items()]
    write_dataset(tmp_path, rows(7, 8, 26_000, 23), categories=categories)
    classes = {"road": "road", "lane": "road", "car": "car"}
    with registered(write_recipe(tmp_path, categories=classes, other_categories="ignore")):
        prediction = rows(ROAD * 1000, ROAD * 1000, CAR * 1000 + 1, CAR * 1000 + 1)
        scores = quality(get_dataset_dicts([NAME]), [deeplab(prediction)])
    assert scores["PQ_st"] == pytest.approx(100)  # as two segments, at most one of them would match
    assert scores["PQ_th"] == pytest.approx(100)  # the half of it over the billboard is not counted


def test_mask_ap_by_hand(record: dict[str, Any]) -> None:
    """One of two cars is found with IoU 0.6: at thresholds 0.5, 0.55 and 0.6 half the recall at full precision."""
    labels = np.full(TRUTH.shape, VOID)
    labels[2, :6] = CAR * 1000
    results = precision(record, {"instances": instances_of(labels)})
    of_one_threshold = 100 * 51 / 101  # COCO interpolates at the recalls 0, 0.01, ..., 0.5 of 101
    assert results["AP50"] == pytest.approx(of_one_threshold)
    assert results["AP"] == pytest.approx(of_one_threshold * 3 / 10)
    assert results["AP75"] == 0
    assert set(precision(record, {}).values()) == {0.0}  # an output without instances


def test_predictions_of_both_heads_have_one_form() -> None:
    labels = torch.tensor([[0, 0, VOID], [13001, 13002, VOID]])
    numbered = [{"id": i, "category_id": c, "isthing": c == CAR} for i, c in ((4, ROAD), (5, SKY), (7, CAR), (9, CAR))]
    of_fpn = predicted_segments(torch.tensor([[4, 4, 0], [7, 9, 0]], dtype=torch.int32), numbered)
    for got in (predicted_segments(labels, None), of_fpn):
        assert got.numbers.tolist() == [[1, 1, 0], [2, 3, 0]]
        found = [(segment["id"], segment["category_id"], segment["area"]) for segment in got.segments]
        assert found == [(1, ROAD, 2), (2, CAR, 1), (3, CAR, 1)]


# Config


def config(file: str, *options: str) -> CfgNode:
    return load_config(str(CONFIGS / file), options)


@pytest.mark.parametrize(
    ("file", "option", "value", "key", "remedy"),
    [
        ("fpn", "TEST.PROTOCOL", "half", "TEST.PROTOCOL", "TEST.PROTOCOL to native"),
        ("deeplab", "DATASETS.TRAIN", "[]", "DATASETS.TRAIN is empty", "DATASETS.TRAIN"),
        ("deeplab", "DATASETS.TEST", "['cityscapes_val']", "cityscapes_val", ""),
        ("deeplab", "DATASETS.TEST", "['minitown_clear_val_panoptic']", "minitown_clear_val_panoptic", ""),
    ],
)
def test_unsupported_settings(file: str, option: str, value: str, key: str, remedy: str, tmp_path: Path) -> None:
    cfg, sound = config(f"famix_panoptic_{file}.yaml", option, value), config(f"famix_panoptic_{file}.yaml")
    with registered(write_recipe(tmp_path, splits=["train", "val", "night"])):
        with expect_error(ConfigError, key, value if key == option else None, remedy):
            check_panoptic(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        check_panoptic(sound, [*sound.DATASETS.TRAIN, *sound.DATASETS.TEST])


@pytest.mark.usefixtures("record")
def test_evaluators_follow_the_predictions_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config("famix_panoptic_fpn.yaml")
    for kinds in ({"panoptic_seg"}, {"instances"}, {"panoptic_seg", "instances"}):
        monkeypatch.setattr(FAMixPanopticFPN, "PREDICTS", frozenset({"sem_seg", *kinds}))
        semantic, panoptic = build_evaluator(cfg, NAME)._evaluators
        assert isinstance(semantic, StreamingSemSegEvaluator) and panoptic._predictions == kinds
    cfg = config("famix_tiny.yaml")  # a semantic model
    check_panoptic(cfg, [NAME])
    assert isinstance(build_evaluator(cfg, NAME), StreamingSemSegEvaluator)
