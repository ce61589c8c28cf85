"""Evaluators against Detectron2, Cityscapes' script and numbers computed by hand, and checks of the TEST settings."""

import math
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from data_factory import data_config, registered, write_definition, write_image, write_label
from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.evaluation import EVALUATORS, StreamingSemSegEvaluator, build_evaluator, check_evaluation
from famix.evaluation.counting.confusion import read_confusion
from famix.evaluation.counting.semantic import CityscapesScriptEvaluator, Detectron2Evaluator
from famix.evaluation.evaluators import absent_rule
from famix.utils.errors import ConfigError, DatasetError

TOWN, SIZE, BUS = "town_val", (24, 32), 15
LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # by train id
TRAIN_IDS = np.full(256, 255, np.uint8)
TRAIN_IDS[LABEL_IDS] = range(19)


@pytest.fixture(scope="module", autouse=True)
def town(tmp_path_factory):
    """Five images in Cityscapes' files, one of another size. A train is predicted and nowhere labeled, a bus neither."""
    folder = tmp_path_factory.mktemp("town")
    rng = np.random.default_rng(0)
    for index in range(5):
        city = ("aachen", "bochum")[index % 2]
        key, size = f"val/{city}/{city}_00000{index}_000019", (31, 15) if index == 3 else SIZE
        ids = rng.choice(np.array([label for label in range(34) if label not in (28, 31)], np.uint8), size)
        write_label(folder / f"gtFine/{key}_gtFine_labelIds.png", ids)
        write_image(folder / f"leftImg8bit/{key}_leftImg8bit.png", np.zeros((*size, 3), np.uint8))
    definition = write_definition(
        folder,
        name="town",
        images="leftImg8bit/{split}/{key}_leftImg8bit.png",
        labels="gtFine/{split}/{key}_gtFine_labelIds.png",
        label_ids={label: entry.name for label, entry in zip(LABEL_IDS, CITYSCAPES_CLASSES, strict=True)},
        other_ids="ignore",
        splits={"val": {}},
    )
    with registered(definition):
        yield


def read_train_ids(path):
    with Image.open(path) as image:
        return TRAIN_IDS[np.asarray(image)]


def predict(record):
    """Scores with many ties that are right more often than not; a bus never has the highest."""
    labels, rng = read_train_ids(record["label_file_name"]), np.random.default_rng(len(record["image_id"]))
    scores = rng.integers(0, 8, (19, *labels.shape))
    scores[BUS] = -1
    scores[labels.clip(max=18), *np.indices(labels.shape)] += 8 * ((rng.random(labels.shape) < 0.6) & (labels < 19))
    return torch.from_numpy(scores).float()


def feed(evaluator, records=None):
    evaluator.reset()
    for record in records or DatasetCatalog.get(TOWN):
        evaluator.process([record], [{"sem_seg": predict(record)}])
    results = evaluator.evaluate()
    assert next(iter(results)) == "sem_seg" and set(results) <= {"sem_seg", "calibration"}
    return results["sem_seg"]


def detectron2_evaluator(folder):
    return Detectron2Evaluator(TOWN, lambda path, dtype: read_train_ids(path).astype(dtype), str(folder), "skip")


def test_streaming_scores_equal_those_of_detectron2(tmp_path):
    theirs, scores = feed(detectron2_evaluator(tmp_path)), feed(StreamingSemSegEvaluator(TOWN))
    expected = {name: score for name, score in theirs.items() if not name.startswith(("Boundary", "min("))}
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, rel=0, abs=1e-9, nan_ok=True)
    assert np.isnan(scores["IoU-bus"]) and np.isnan(scores["IoU-train"]) and 20 < scores["mIoU"] < 80
    assert scores["mIoU-skip"] == scores["mIoU"] and scores["mIoU-zero"] == pytest.approx(scores["mIoU"] * 17 / 18)


def test_streaming_scores_equal_those_of_the_cityscapes_script(capsys):
    scores, streamed = feed(CityscapesScriptEvaluator(TOWN)), feed(StreamingSemSegEvaluator(TOWN, absent="zero"))
    assert scores.pop("mIoU-categories") > scores["mIoU"]
    assert scores.keys() < streamed.keys()
    assert scores == pytest.approx({name: streamed[name] for name in scores}, rel=0, abs=1e-9, nan_ok=True)
    assert capsys.readouterr().out == ""


def test_reset_and_order_of_images():
    evaluator = StreamingSemSegEvaluator(TOWN)
    first = feed(evaluator)
    assert feed(evaluator, DatasetCatalog.get(TOWN)[::-1]) == pytest.approx(first, nan_ok=True)


def test_labels_are_read_once_and_one_ahead_in_a_thread():
    reads, read = [], threading.Semaphore(0)

    def note(path):
        reads.append((path, threading.current_thread() is threading.main_thread()))
        read.release()
        return read_train_ids(path)

    records = DatasetCatalog.get(TOWN)
    evaluator = StreamingSemSegEvaluator(TOWN, read_labels=note)
    for record in records[:3]:
        evaluator.process([record], [{"sem_seg": predict(record)}])
        assert read.acquire(timeout=10)
    assert read.acquire(timeout=10)
    assert reads == [(record["label_file_name"], place == 0) for place, record in enumerate(records[:4])]


def test_memory_does_not_grow_with_the_images(tmp_path):
    record = DatasetCatalog.get(TOWN)[-1]  # no label is read ahead after it
    outputs, grown = [{"sem_seg": predict(record)}], []
    for evaluator in (StreamingSemSegEvaluator(TOWN), detectron2_evaluator(tmp_path)):
        evaluator.reset()
        tracemalloc.start()
        held = []
        for _ in range(2):
            for _ in range(50):
                evaluator.process([record], outputs)
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        grown.append(held[1] - held[0])  # the first fifty also fill caches
    assert grown[0] < 32768 < grown[1], grown  # fifty labels alone are 38 KiB


def test_unreadable_label_is_reported_for_its_own_image():
    first, second = DatasetCatalog.get(TOWN)[:2]

    def read(path):
        if path == second["label_file_name"]:
            raise DatasetError("damaged")
        return read_train_ids(path)

    evaluator = StreamingSemSegEvaluator(TOWN, read_labels=read)
    evaluator.process([first], [{"sem_seg": predict(first)}])
    with pytest.raises(DatasetError, match="damaged"):
        evaluator.process([second], [{"sem_seg": predict(second)}])


@pytest.mark.parametrize("shape", [(19, 12, 16), (19, 32, 24), (18, *SIZE), (20, *SIZE)])
def test_prediction_of_another_shape_is_refused(shape):
    with expect_error(DatasetError, TOWN, " x ".join(map(str, shape)), "'height'"):
        StreamingSemSegEvaluator(TOWN).process(DatasetCatalog.get(TOWN)[:1], [{"sem_seg": torch.zeros(shape)}])


@pytest.mark.parametrize(
    ("value", "quoted", "remedy"),
    [
        (19, 19, "definition"),
        (254, 254, "definition"),
        (-1, "-1 to -1", "prepare_labels"),
        (256, "256 to 256", "prepare_labels"),
    ],
)
def test_invalid_labels_are_refused(value, quoted, remedy):
    evaluator = StreamingSemSegEvaluator(TOWN, prepare_labels=lambda labels: np.full(labels.shape, value))
    with expect_error(DatasetError, TOWN, quoted, remedy):
        evaluator.process(DatasetCatalog.get(TOWN)[:1], [{"sem_seg": torch.zeros(19, *SIZE)}])
        evaluator.evaluate()


@pytest.mark.parametrize(
    ("labels", "skip"),
    [("labels/{split}/{key}.png", []), ("gtFine/{split}/{key}_gtFine_labelIds.png", ["x/x_000000_000019"])],
    ids=["other names", "part of the folder"],
)
def test_cityscapes_refuses_labels_that_the_script_cannot_find(labels, skip, tmp_path):
    for key in ("x/x_000000_000019", "x/x_000001_000019"):
        write_label(tmp_path / labels.format(split="val", key=key), np.zeros(SIZE, np.uint8))
        write_image(tmp_path / f"images/val/{key}.png", np.zeros((*SIZE, 3), np.uint8))
    definition = write_definition(tmp_path, name="other", labels=labels, splits={"val": {"skip": skip}})
    with registered(definition), expect_error(ConfigError, "TEST.EVALUATOR", "other_val", "streaming"):
        CityscapesScriptEvaluator("other_val")


def test_cityscapes_requires_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", None)
    with expect_error(ConfigError, "TEST.EVALUATOR", "cityscapesscripts", "pip install"):
        CityscapesScriptEvaluator(TOWN)


@pytest.mark.parametrize("kind", EVALUATORS)
def test_absent_classes_follow_the_rule(kind, tmp_path):
    cfg = data_config(train=())
    cfg.TEST.EVALUATOR, cfg.OUTPUT_DIR = kind, str(tmp_path)
    for rule, protocol in (("skip", "native"), ("zero", "native"), ("skip", "half"), ("skip", "famix1")):
        cfg.TEST.ABSENT_CLASSES, cfg.TEST.PROTOCOL = rule, protocol
        counted = kind == "cityscapes" or rule == "zero" or protocol == "famix1"
        assert absent_rule(cfg, TOWN) == ("zero" if counted else "skip")
        scores = feed(build_evaluator(cfg, TOWN))
        assert scores["mIoU"] == pytest.approx(scores["mIoU-zero" if counted else "mIoU-skip"])
        assert scores["mIoU-zero"] == pytest.approx(scores["mIoU-skip"] * 17 / 18)
        assert scores["IoU-train"] == 0 if counted else np.isnan(scores["IoU-train"])
        assert np.isnan(scores["IoU-bus"]) and np.isnan(scores["ACC-train"])
    if kind == "streaming":
        cfg.TEST.PROTOCOL = "robustnet1536released"
        assert absent_rule(cfg, TOWN) == "zero"


# Scores by hand: one row a pixel, id in the label file and predicted train id. Road 4, sky 4, car 2, ignored 2 pixels.
PIXELS = np.array(
    [(7, 0), (7, 0), (7, 0), (7, 1), (23, 1), (23, 1), (23, 2), (23, 2), (26, 2), (26, 0), (0, 2), (0, 1)]
)
# road: 3 of 4 found, 1 false; sky: 2 of 4, 1 false; car: 1 of 2, 2 false. Predictions on ignored pixels do not count.
IOU = {"road": 3 / 5, "sky": 2 / 5, "car": 1 / 4}


@pytest.fixture
def cfg(tmp_path):
    """A dataset "tiny" of two images of 2 x 3 pixels."""
    for index in range(2):
        ids = PIXELS[6 * index : 6 * index + 6, 0].reshape(2, 3).astype(np.uint8)
        write_label(tmp_path / f"data/labels/val/{index}.png", ids)
        write_image(tmp_path / f"data/images/val/{index}.png", np.zeros((2, 3, 3), np.uint8))
    classes = [{"name": name, "color": [index, 0, 0]} for index, name in enumerate(IOU)]
    label_ids = {7: "road", 23: "sky", 26: "car", 0: "ignore"}
    cfg = data_config(train=())
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    definition = write_definition(tmp_path / "data", splits={"val": {}}, classes=classes, label_ids=label_ids)
    with registered(definition):
        yield cfg


def feed_pixels(evaluator, repeats=1):
    evaluator.reset()
    for index, record in enumerate(DatasetCatalog.get("tiny_val")):
        predicted = torch.from_numpy(PIXELS[6 * index : 6 * index + 6, 1].reshape(2, 3))
        predicted = predicted.repeat_interleave(repeats, 0).repeat_interleave(repeats, 1)
        evaluator.process([record], [{"sem_seg": torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()}])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize(
    ("kind", "expected", "file"),
    [
        ("streaming", StreamingSemSegEvaluator, "confusion.json"),
        ("detectron2", SemSegEvaluator, "sem_seg_evaluation.pth"),
    ],
)
@pytest.mark.parametrize(("protocol", "repeats"), [("native", 1), ("short8", 4)])
def test_scores_and_files_by_hand(cfg, tmp_path, kind, expected, file, protocol, repeats):
    assert cfg.TEST.EVALUATOR == "streaming"
    cfg.TEST.EVALUATOR, cfg.TEST.PROTOCOL = kind, protocol
    evaluator = build_evaluator(cfg, "tiny_val")
    assert isinstance(evaluator, expected)
    scores = feed_pixels(evaluator, repeats)
    assert {name: scores[f"IoU-{name}"] / 100 for name in IOU} == pytest.approx(IOU)
    means = {name: scores[name] / 100 for name in ("mIoU", "mACC", "pACC", "fwIoU")}
    assert means == pytest.approx(
        {"mIoU": sum(IOU.values()) / 3, "mACC": (3 / 4 + 2 / 4 + 1 / 2) / 3, "pACC": 6 / 10,
         "fwIoU": 0.4 * 3 / 5 + 0.4 * 2 / 5 + 0.2 * 1 / 4}
    )  # fmt: skip
    folder = tmp_path / "output/inference/tiny_val"
    assert (folder / file).is_file()
    if kind == "streaming":
        matrix = read_confusion(folder / file)
        assert matrix.class_names == tuple(IOU)
        assert {path.name for path in folder.iterdir()} == {"confusion.json", "calibration.json"}
        assert (matrix.counts == np.array([[3, 1, 0], [0, 2, 2], [1, 0, 1]]) * repeats**2).all()


@pytest.mark.parametrize("kind", ["streaming", "detectron2"])
def test_output_folder(cfg, tmp_path, kind):
    cfg.TEST.EVALUATOR = kind
    feed_pixels(build_evaluator(cfg, "tiny_val", str(tmp_path / "elsewhere")))
    assert list((tmp_path / "elsewhere").iterdir()) and not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("protocol", "scores", "architecture", "confidence"),
    [
        ("native", [1.0, 0.0, 0.0], "FAMixSemanticSegmentor", math.e / (math.e + 2)),
        ("half", [1.0, 0.0, 0.0], "FAMixSemanticSegmentor", math.e / (math.e + 2)),
        ("half+flip", [0.5, 0.3, 0.2], "FAMixSemanticSegmentor", 0.5),
        ("half+flip+logits", [1.0, 0.0, 0.0], "FAMixSemanticSegmentor", math.e / (math.e + 2)),
        ("native", [0.3, 0.1, 0.1], "FAMixMaskFormer", 0.6),
        ("half+flip+logits", [0.3, 0.1, 0.1], "FAMixMaskFormer", 0.6),
    ],
)
def test_calibration_knows_the_kind_of_scores(cfg, protocol, scores, architecture, confidence):
    cfg.TEST.PROTOCOL, cfg.MODEL.META_ARCHITECTURE = protocol, architecture
    evaluator = build_evaluator(cfg, "tiny_val")
    labels = torch.zeros(16, 16, dtype=torch.uint8).numpy()
    evaluator._prepare = lambda _: labels
    for record in DatasetCatalog.get("tiny_val"):
        evaluator.process([record], [{"sem_seg": torch.tensor(scores).view(3, 1, 1).expand(3, 16, 16)}])
    found = evaluator.evaluate()["calibration"]
    assert found["ECE"] == pytest.approx(100 * (1 - confidence), abs=1e-3)
    assert found["overconfidence"] == pytest.approx(-100 * (1 - confidence), abs=1e-3)


def test_classes_select_the_mean(tmp_path):
    cfg, scores = data_config(train=()), feed(StreamingSemSegEvaluator(TOWN))
    cfg.TEST.CLASSES = "synthia16"
    selected = [entry.name for entry in CITYSCAPES_CLASSES if entry.name not in ("terrain", "truck", "train")]
    mean = np.nanmean([scores[f"IoU-{name}"] for name in selected])
    assert feed(build_evaluator(cfg, TOWN, str(tmp_path)))["mIoU"] == pytest.approx(mean)
    cfg.TEST.EVALUATOR = "detectron2"
    with expect_error(ConfigError, "TEST.CLASSES", "synthia16", "TEST.EVALUATOR to streaming"):
        check_evaluation(cfg, [TOWN])


@pytest.mark.parametrize(
    ("settings", "key", "remedy"),
    [
        ({"EVALUATOR": "streeming"}, "EVALUATOR", "'streaming'"),
        ({"EVALUATOR": "cityscapes"}, "EVALUATOR", "streaming"),
        ({"EVALUATOR": "cityscapes", "PROTOCOL": "short8"}, "PROTOCOL", "TEST.EVALUATOR to streaming"),
        ({"PROTOCOL": "shirt8"}, "PROTOCOL", "short<N>"),
        ({"CLASSES": "16"}, "CLASSES", "TEST.CLASSES to all"),
        ({"ABSENT_CLASSES": "0"}, "ABSENT_CLASSES", "zero"),
        ({"WINDOW_BATCH": 0}, "WINDOW_BATCH", "Set it to 1"),
    ],
)
def test_check_evaluation_rejects_settings(cfg, settings, key, remedy):
    for name, value in settings.items():
        cfg.TEST[name] = value
    with expect_error(ConfigError, f"TEST.{key}", settings[key], remedy):
        check_evaluation(cfg, ["tiny_val"])
