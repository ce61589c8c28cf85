"""Confusion matrices and scores against loops over pixels and numbers computed by hand."""

import multiprocessing
from collections import Counter

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.evaluation.counting.confusion import ConfusionCounts, argmax_classes, read_confusion
from famix.evaluation.counting.scores import CLASS_SUBSETS, class_subset, segmentation_scores
from famix.utils.errors import ConfigError, DatasetError

NAMES = ["road", "sky", "car", "bus"]


def random_image(seed):
    """Predictions, and labels of which some are ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), (13, 17))
    return torch.from_numpy(rng.integers(0, 4, (13, 17))), torch.from_numpy(labels)


def count(*images, classes=4):
    counts = ConfusionCounts(classes)
    for predicted, labels in images:
        counts.add(predicted, labels)
    return counts.total()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_counts_match_a_loop_over_pixels(dtype):
    images = [random_image(seed) for seed in range(3)]
    loop = Counter()
    for predicted, labels in images:
        loop.update(zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True))
    total = count(*((predicted.to(dtype), labels) for predicted, labels in images))
    assert total.shape == (256, 4) and total.dtype == np.int64
    assert {(row, column): int(total[row, column]) for row, column in np.argwhere(total)} == loop


def test_counts_of_the_largest_label_and_class():
    total = count((torch.tensor([[254, 0]]), torch.tensor([[255, 254]], dtype=torch.uint8)), classes=255)
    assert np.argwhere(total).tolist() == [[254, 0], [255, 254]]


def count_in_process(rank, folder, queue):
    """The first process has the images 0 and 2, the second has 1."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    counts = ConfusionCounts(4)
    for seed in range(rank, 3, 2):
        counts.add(*random_image(seed))
    queue.put((rank, counts.total()))
    torch.distributed.destroy_process_group()


def test_counts_of_two_processes_add_up(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=count_in_process, args=(rank, tmp_path, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    totals = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert totals[1] is None and np.array_equal(totals[0], count(*map(random_image, range(3))))


@pytest.mark.parametrize("text", ["", "[]", '{"class_names": ["a"], "counts": [[1, 2]]}'])
def test_malformed_files_are_refused(tmp_path, text):
    file = tmp_path / "confusion.json"
    file.write_text(text)
    with expect_error(DatasetError, str(file), remedy="--eval-only"):
        read_confusion(file)


@pytest.mark.parametrize("classes", [1, 2, 19, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_argmax(classes, dtype):
    order = torch.stack([torch.randperm(classes, generator=torch.Generator().manual_seed(seed)) for seed in range(35)])
    scores = (order.to(dtype) - 150 if classes <= 256 else order.float()).T.reshape(classes, 5, 7)
    labels = argmax_classes(scores)
    assert labels.dtype == (torch.uint8 if classes <= 256 else torch.int64)
    assert torch.equal(labels.long(), scores.argmax(0))


def test_argmax_of_ties_and_views():
    scores = torch.tensor([[[-1.0, 2.0, -np.inf]], [[-1.0, 3.0, -np.inf]], [[-2.0, 3.0, -5.0]]])
    before = scores.clone()
    assert argmax_classes(scores).tolist() == [[0, 1, 2]]
    assert torch.equal(scores, before)
    with torch.inference_mode():
        scores = torch.rand(6, 9, 10)[1:5, ::2, 1:]
        assert torch.equal(argmax_classes(scores).long(), scores.argmax(0))


# Rows are true, columns predicted classes. Road 10 pixels of which 8 found, sky 4 of which 3, car 2 of which 0.
MATRIX = np.array([[8, 1, 1], [1, 3, 0], [2, 0, 0]])


def test_scores_by_hand():
    scores = segmentation_scores(MATRIX, NAMES[:3])
    iou = [8 / 13, 3 / 5, 0 / 3]
    expected = {
        "mIoU": sum(iou) / 3, "fwIoU": (10 * iou[0] + 4 * iou[1] + 2 * iou[2]) / 16,
        "IoU-road": iou[0], "IoU-sky": iou[1], "IoU-car": iou[2],
        "mACC": (8 / 10 + 3 / 4 + 0) / 3, "pACC": 11 / 16,
        "ACC-road": 8 / 10, "ACC-sky": 3 / 4, "ACC-car": 0,
        "mIoU-skip": sum(iou) / 3, "mIoU-zero": sum(iou) / 3,
    }  # fmt: skip
    assert list(scores) == list(expected)
    assert scores == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-12)
    assert np.isnan(list(segmentation_scores(np.zeros((3, 3), int), NAMES[:3]).values())).all()


def test_scores_of_absent_classes():
    """A car is predicted but nowhere labeled; a bus is neither."""
    matrix = np.array([[8, 0, 2, 0], [0, 5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    skip, zero = (segmentation_scores(matrix, NAMES, absent=rule) for rule in ("skip", "zero"))
    assert (skip["mIoU"], zero["mIoU"]) == pytest.approx((90, 60))
    for scores in (skip, zero):
        assert (scores["mIoU-skip"], scores["mIoU-zero"]) == pytest.approx((90, 60))
    assert zero["IoU-car"] == 0 and np.isnan(zero["ACC-car"]) and np.isnan(zero["IoU-bus"])
    same = [name for name in skip if name not in ("mIoU", "IoU-car")]
    assert {name: zero[name] for name in same} == pytest.approx({name: skip[name] for name in same}, nan_ok=True)
    without = segmentation_scores(matrix, NAMES, classes=[0, 1, 3], absent="zero")
    assert without["mIoU"] == without["mIoU-skip"] == pytest.approx(90) and np.isnan(without["IoU-car"])
    assert segmentation_scores(matrix, NAMES, classes=[0, 2], absent="zero")["mIoU"] == pytest.approx(40)


def test_scores_of_a_subset():
    whole, subset = segmentation_scores(MATRIX, NAMES[:3]), segmentation_scores(MATRIX, NAMES[:3], classes=[0, 1])
    assert (subset["IoU-road"], subset["IoU-sky"]) == (whole["IoU-road"], whole["IoU-sky"])
    assert np.isnan(subset["IoU-car"]) and np.isnan(subset["ACC-car"])
    assert subset["mIoU"] == pytest.approx(100 * (8 / 13 + 3 / 5) / 2)
    assert subset["mACC"] == pytest.approx(100 * (8 / 10 + 3 / 4) / 2)
    assert subset["fwIoU"] == pytest.approx(100 * (10 * 8 / 13 + 4 * 3 / 5) / 14)
    assert subset["pACC"] == pytest.approx(100 * 11 / 14)


def test_seen_and_unseen_classes_by_hand():
    """Sky and bus are unseen; a car is predicted but nowhere labeled, and a bus is labeled but never predicted."""
    matrix = np.array([[8, 0, 2, 0], [1, 5, 0, 0], [0, 0, 0, 0], [0, 4, 0, 0]])
    road, sky, bus = 8 / 11, 5 / 10, 0
    skip, zero = (segmentation_scores(matrix, NAMES, absent=rule, unseen=(1, 3)) for rule in ("skip", "zero"))
    assert skip["mIoU-unseen"] == zero["mIoU-unseen"] == pytest.approx(100 * (sky + bus) / 2)
    assert (skip["mIoU-seen"], zero["mIoU-seen"]) == pytest.approx((100 * road, 100 * (road + 0) / 2))
    assert skip["mIoU"] == pytest.approx(100 * (road + sky + bus) / 3)
    few = segmentation_scores(matrix, NAMES, classes=[0, 1], unseen=(1, 3))
    assert (few["mIoU-seen"], few["mIoU-unseen"]) == pytest.approx((100 * road, 100 * sky))
    assert not {"mIoU-seen", "mIoU-unseen"} & segmentation_scores(matrix, NAMES).keys()
    assert np.isnan(segmentation_scores(matrix, NAMES, classes=[0, 2], unseen=(2,))["mIoU-unseen"])


def test_class_subsets():
    names = [entry.name for entry in CITYSCAPES_CLASSES]
    assert class_subset("all", names) == tuple(range(19)) and class_subset("all", ["road", "crop"]) == (0, 1)
    assert class_subset("16", names) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
    assert class_subset("13", names) == (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
    assert len(class_subset("13", [name for name in names if name != "wall"])) == 13
    shuffled = ["other", *reversed(names)]
    for name in ("16", "13"):
        assert class_subset(f"synthia{name}", names) == class_subset(name, names)
        assert {name, f"synthia{name}"} < set(CLASS_SUBSETS)
        found = class_subset(name, shuffled)
        assert {shuffled[index] for index in found} == {names[index] for index in class_subset(name, names)}
        assert list(found) == sorted(found)
    with expect_error(ConfigError, "TEST.CLASSES", "16", "rider"):
        class_subset("16", [name for name in names if name != "rider"])
    with expect_error(ConfigError, "TEST.CLASSES", "synthia-16", "'synthia16'"):
        class_subset("synthia-16", names)
