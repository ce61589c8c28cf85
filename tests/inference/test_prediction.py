"""Labels, segments and colours as pictures, with values worked out by hand."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from error_matching import expect_error
from famix.data.class_table import ClassTable
from famix.inference import Prediction
from famix.inference.prediction import read_result
from famix.inference.views import ViewOptions, draw_view, write_image, write_views
from famix.utils.errors import ConfigError, DatasetError

ROAD, CAR = 0, 1
CLASSES = ClassTable(("road", "car", "sky"), ((100, 0, 0), (0, 200, 0), (0, 0, 50)), things=(CAR,))
LABELS = np.array([[0, 1], [2, 2]], dtype=np.uint8)
IMAGE = np.full((2, 2, 3), 100, dtype=np.uint8)


def panoptic_prediction() -> Prediction:
    """Two cars next to each other on a road, and a pixel that belongs to nothing."""
    panoptic = torch.tensor([[0, 0, 0, 0], [0, 1000, 1001, 0], [0, 0, 0, -1]])
    labels = panoptic.clamp(min=0) // 1000
    scores = torch.nn.functional.one_hot(labels, len(CLASSES.names)).permute(2, 0, 1).float()
    result = {"sem_seg": scores, "panoptic_seg": (panoptic, None)}
    return read_result(result, CLASSES, keep_scores=False, averaged=False)


def test_colours_are_those_of_the_classes() -> None:
    expected = [[[100, 0, 0], [0, 200, 0]], [[0, 0, 50], [0, 0, 50]]]
    assert Prediction(LABELS, CLASSES).color_image().tolist() == expected


def test_overlay_weighs_colours_by_alpha() -> None:
    overlay = Prediction(LABELS, CLASSES).overlay(IMAGE, alpha=0.25)
    assert overlay[0].tolist() == [[100, 75, 75], [75, 125, 75]]
    assert overlay.dtype == np.uint8
    np.testing.assert_array_equal(Prediction(LABELS, CLASSES).overlay(IMAGE, 0.0), IMAGE)


def test_overlay_of_another_image_is_an_error() -> None:
    with expect_error(DatasetError, key="image", value="3 x 2", remedy="predicted image"):
        Prediction(LABELS, CLASSES).overlay(np.zeros((3, 2, 3), np.uint8))


def test_highest_score_is_the_label() -> None:
    scores = torch.tensor([[[1.0, 0.0]], [[0.5, 3.0]], [[0.0, -1.0]]])  # three classes, one row of two pixels
    prediction = read_result({"sem_seg": scores}, CLASSES, keep_scores=True, averaged=False)
    assert prediction.labels.tolist() == [[0, 1]]
    np.testing.assert_allclose(prediction.probabilities[:, 0, 0], np.exp([1, 0.5, 0]) / np.exp([1, 0.5, 0]).sum(), 1e-6)


def test_averaged_scores_are_probabilities_already() -> None:
    scores = torch.tensor([[[0.2]], [[0.7]], [[0.1]]])
    prediction = read_result({"sem_seg": scores}, CLASSES, keep_scores=True, averaged=True)
    np.testing.assert_array_equal(prediction.probabilities, scores.numpy())


def test_many_classes_need_more_than_a_byte() -> None:
    classes = ClassTable(tuple(map(str, range(300))), ((0, 0, 0),) * 300)
    scores = torch.zeros(300, 1, 2)
    scores[299, 0, 1] = 1
    labels = read_result({"sem_seg": scores}, classes, keep_scores=False, averaged=False).labels
    assert (labels.dtype, labels.tolist()) == (np.uint16, [[0, 299]])


def test_segments_of_panoptic_deeplab() -> None:
    prediction = panoptic_prediction()
    assert prediction.segment_ids is not None
    assert prediction.segment_ids.tolist() == [[1, 1, 1, 1], [1, 2, 3, 1], [1, 1, 1, 0]]
    described = [(s.id, s.class_id, s.class_name, s.is_thing, s.area, s.score) for s in prediction.segments]
    assert described == [(1, 0, "road", False, 9, None), (2, 1, "car", True, 1, None), (3, 1, "car", True, 1, None)]


def test_segments_of_panoptic_fpn() -> None:
    panoptic = torch.tensor([[7, 7, 0], [3, 3, 3]], dtype=torch.int32)
    described = [
        {"id": 7, "isthing": True, "score": 0.75, "category_id": CAR, "instance_id": 4},
        {"id": 3, "isthing": False, "category_id": ROAD, "area": 3},
        {"id": 9, "isthing": True, "score": 0.5, "category_id": CAR, "instance_id": 5},  # wholly behind the other
    ]
    result = {"sem_seg": torch.zeros(3, 2, 3), "panoptic_seg": (panoptic, described)}
    prediction = read_result(result, CLASSES, keep_scores=False, averaged=False)
    assert prediction.segment_ids is not None
    assert prediction.segment_ids.tolist() == [[2, 2, 0], [1, 1, 1]]
    assert [(s.id, s.class_name, s.area, s.score) for s in prediction.segments] == [
        (1, "road", 3, None),
        (2, "car", 2, 0.75),
    ]


def test_objects_of_a_class_have_shades_of_its_colour() -> None:
    colors = panoptic_prediction().color_image()
    assert colors[0, 0].tolist() == [100, 0, 0]
    assert colors[1, 1].tolist() == [0, 200, 0]
    assert colors[1, 2].tolist() == [89, 219, 89]  # 35 % of the way to white
    assert colors[2, 3].tolist() == [0, 0, 0]


def test_overlay_outlines_things_and_leaves_what_is_in_no_segment() -> None:
    image = np.full((3, 4, 3), 40, np.uint8)
    overlay = panoptic_prediction().overlay(image, alpha=0.5)
    assert overlay[1, 1].tolist() == overlay[1, 2].tolist() == [255, 255, 255]
    assert overlay[0, 0].tolist() == [70, 20, 20]  # no line along the road
    assert overlay[2, 3].tolist() == [40, 40, 40]


def test_visible_classes_are_those_of_the_picture() -> None:
    assert Prediction(LABELS, CLASSES).visible_classes() == [0, 1, 2]
    assert panoptic_prediction().visible_classes() == [ROAD, CAR]


def test_labels_of_a_panoptic_prediction_are_three_files(tmp_path: Path) -> None:
    prediction, image = panoptic_prediction(), np.zeros((3, 4, 3), np.uint8)
    write_views({"labels": tmp_path / "a_labels.png"}, image, prediction, ViewOptions())
    assert {file.name for file in tmp_path.iterdir()} == {"a_labels.png", "a_segments.png", "a_segments.json"}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_labels.png")), prediction.labels)
    described = json.loads((tmp_path / "a_segments.json").read_text())
    assert [(entry["id"], entry["class_name"], entry["is_thing"], entry["area"]) for entry in described] == [
        (1, "road", False, 9), (2, "car", True, 1), (3, "car", True, 1),
    ]  # fmt: skip
    ids = np.asarray(Image.open(tmp_path / "a_segments.png")).astype(int) @ [1, 256, 65536]
    np.testing.assert_array_equal(ids, prediction.segment_ids)  # type: ignore[arg-type]


def test_labels_of_many_classes_keep_their_values_in_a_file(tmp_path: Path) -> None:
    labels = np.array([[0, 300], [65535, 7]], np.uint16)
    write_image(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), labels)


def test_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with expect_error(ConfigError, key=str(tmp_path / "file/a.png"), remedy="--output"):
        write_image(tmp_path / "file/a.png", np.zeros((2, 2), np.uint8))


def test_legend_shows_the_classes_of_the_image() -> None:
    labels = LABELS[:1].repeat(60, axis=1)
    prediction = Prediction(labels, CLASSES)
    seen = draw_view("color", np.zeros((*labels.shape, 3), np.uint8), prediction, ViewOptions(legend=True))
    colors = {tuple(color) for color in seen[1:].reshape(-1, 3).tolist()}
    assert set(CLASSES.colors[:2]) <= colors and CLASSES.colors[2] not in colors
