"""The streaming evaluator beside Detectron2's own, and what it says of bad input."""

import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from data_factory import registered, write_definition, write_image, write_label
from error_matching import expect_error
from famix.evaluation import StreamingSemSegEvaluator
from famix.utils.errors import DatasetError

CLASSES = [{"name": name, "color": [index, 0, 0]} for index, name in enumerate(("road", "sky", "car", "bus", "tram"))]
PRESENT = (0, 1, 2, 255)  # no label shows a bus or a tram; a bus is predicted, a tram is not
SIZE = (24, 32)
NAME = "tiny_val"


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Five images, one of another size."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for index in range(5):
        size = (31, 15) if index == 3 else SIZE
        write_label(folder / f"labels/val/{index}.png", rng.choice(np.array(PRESENT, np.uint8), size))
        write_image(folder / f"images/val/{index}.png", np.zeros((*size, 3), np.uint8))
    changes = {"splits": {"val": {}}, "classes": CLASSES, "label_ids": "identity"}
    with registered(write_definition(folder, **changes)):
        yield


def read(path: str) -> np.ndarray:
    return MetadataCatalog.get(NAME).label_reader.read(path)


def random_scores(index: int, shape: tuple[int, ...], classes: int = 5) -> torch.Tensor:
    """Scores with many ties; a tram never has the highest."""
    scores = torch.from_numpy(np.random.default_rng(100 + index).integers(0, 4, (classes, *shape))).float()
    scores[4:] = -1
    return scores


def feed(evaluator: StreamingSemSegEvaluator | SemSegEvaluator) -> dict[str, float]:
    """All images of the dataset with random predictions."""
    evaluator.reset()
    for index, record in enumerate(DatasetCatalog.get(NAME)):
        scores = random_scores(index, read(record["label_file_name"]).shape)
        evaluator.process([record], [{"sem_seg": scores}])
    results = evaluator.evaluate()
    assert results is not None and list(results) == ["sem_seg"]
    return results["sem_seg"]


def test_scores_are_those_of_detectron2() -> None:
    theirs = SemSegEvaluator(NAME, sem_seg_loading_fn=lambda path, dtype: read(path).astype(dtype))
    expected = {name: score for name, score in feed(theirs).items() if not name.startswith(("Boundary", "min("))}
    scores = feed(StreamingSemSegEvaluator(NAME))
    assert list(scores) == [*expected, "mIoU-skip", "mIoU-zero"]
    assert scores.pop("mIoU-skip") == scores["mIoU"] and scores.pop("mIoU-zero") == pytest.approx(
        scores["mIoU"] * 3 / 4
    )
    assert scores == pytest.approx(expected, rel=0, abs=1e-9, nan_ok=True)
    assert np.isnan(scores["IoU-bus"]) and np.isnan(scores["IoU-tram"]) and 0 < scores["mIoU"] < 100


def test_reset_discards_the_counts() -> None:
    evaluator = StreamingSemSegEvaluator(NAME)
    assert feed(evaluator) == pytest.approx(feed(evaluator), nan_ok=True)


def test_every_label_is_read_once_and_one_ahead_in_a_thread() -> None:
    reads: list[tuple[str, bool]] = []
    all_read = threading.Semaphore(0)

    def note(path: str) -> np.ndarray:
        reads.append((Path(path).stem, threading.current_thread() is threading.main_thread()))
        all_read.release()
        return read(path)

    records = DatasetCatalog.get(NAME)
    evaluator = StreamingSemSegEvaluator(NAME, read_labels=note)
    for index, record in enumerate(records[:3]):
        evaluator.process([record], [{"sem_seg": random_scores(index, SIZE)}])
        assert all_read.acquire(timeout=10)
    assert all_read.acquire(timeout=10)
    assert reads == [("0", True), ("1", False), ("2", False), ("3", False)]


def test_memory_does_not_grow_with_the_images() -> None:
    record = DatasetCatalog.get(NAME)[4]  # the last, behind which no label is read ahead
    outputs = [{"sem_seg": random_scores(4, SIZE)}]
    grown = {}
    for evaluator in (
        StreamingSemSegEvaluator(NAME),
        SemSegEvaluator(NAME, sem_seg_loading_fn=lambda p, dtype: read(p)),
    ):
        evaluator.reset()
        tracemalloc.start()
        held = []
        for _ in range(2):
            for _ in range(50):
                evaluator.process([record], outputs)
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        grown[type(evaluator)] = held[1] - held[0]  # the first fifty also fill caches
    assert grown[StreamingSemSegEvaluator] < 32768 < grown[SemSegEvaluator], grown  # fifty labels alone are 38 KiB


def test_images_may_come_in_another_order() -> None:
    results = []
    for order in (1, -1):
        evaluator = StreamingSemSegEvaluator(NAME)
        for record in DatasetCatalog.get(NAME)[::order]:
            scores = random_scores(int(record["image_id"]), read(record["label_file_name"]).shape)
            evaluator.process([record], [{"sem_seg": scores}])
        results.append(evaluator.evaluate())
    assert results[0] is not None and results[1] is not None
    assert results[0]["sem_seg"] == pytest.approx(results[1]["sem_seg"], nan_ok=True)


def test_a_label_that_cannot_be_read_is_an_error_of_its_own_image() -> None:
    def fail_for_second(path: str) -> np.ndarray:
        if Path(path).stem == "1":
            raise DatasetError("damaged")
        return read(path)

    first, second = DatasetCatalog.get(NAME)[:2]
    evaluator = StreamingSemSegEvaluator(NAME, read_labels=fail_for_second)
    evaluator.process([first], [{"sem_seg": random_scores(0, SIZE)}])
    with pytest.raises(DatasetError, match="damaged"):
        evaluator.process([second], [{"sem_seg": random_scores(1, SIZE)}])


@pytest.mark.parametrize(
    ("shape", "classes"), [((12, 16), 5), ((32, 24), 5), (SIZE, 4), (SIZE, 6)], ids=["half", "turned", "4", "6"]
)
def test_a_prediction_of_another_shape_is_refused(shape: tuple[int, int], classes: int) -> None:
    record = DatasetCatalog.get(NAME)[0]
    got = f"{classes} x {shape[0]} x {shape[1]}"
    with expect_error(DatasetError, NAME, got, "'height'"):
        StreamingSemSegEvaluator(NAME).process([record], [{"sem_seg": random_scores(0, shape, classes)}])


@pytest.mark.parametrize(
    ("value", "shown", "remedy"),
    [
        *((value, value, "definition") for value in (5, 254)),
        *((value, f"{value} to {value}", "prepare_labels") for value in (-1, 256)),
    ],
)
def test_labels_that_are_no_class_or_beyond_8_bits_are_an_error(value: int, shown: object, remedy: str) -> None:
    evaluator = StreamingSemSegEvaluator(NAME, prepare_labels=lambda labels: np.full(labels.shape, value))
    with expect_error(DatasetError, NAME, shown, remedy):
        evaluator.process([DatasetCatalog.get(NAME)[0]], [{"sem_seg": random_scores(0, SIZE)}])
        evaluator.evaluate()
