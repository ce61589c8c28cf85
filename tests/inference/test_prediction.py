"""Labels, segments and colors as images and files, with values worked out by hand; predictors of panoptic networks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from error_matching import expect_error, explains
from famix.data.classes import ClassTable
from famix.inference import Prediction, Predictor
from famix.inference.prediction import read_result
from famix.inference.views import ViewOptions, draw_view, write_image, write_views
from famix.utils.errors import ConfigError, DatasetError
from inference.inference_factory import make_image, make_run
from panoptic_factory import CONFIGS, write_recipe
from run_factory import load_tool

ROAD, CAR = 0, 1
CLASSES = ClassTable(("road", "car", "sky"), ((100, 0, 0), (0, 200, 0), (0, 0, 50)), things=(CAR,))
SEMANTIC = Prediction(np.array([[0, 1], [2, 2]], dtype=np.uint8), CLASSES)


def read(scores, classes=CLASSES, averaged=False, **panoptic):
    return read_result({"sem_seg": scores, **panoptic}, classes, keep_scores=True, averaged=averaged)


def fields(prediction):
    return [(s.id, s.class_id, s.class_name, s.is_thing, s.area, s.score) for s in prediction.segments]


@pytest.fixture
def panoptic():
    """Two cars next to each other on a road, and a pixel outside of all segments, from Panoptic-DeepLab."""
    segments = torch.tensor([[0, 0, 0, 0], [0, 1000, 1001, 0], [0, 0, 0, -1]])
    scores = torch.nn.functional.one_hot(segments.clamp(min=0) // 1000, 3).permute(2, 0, 1).float()
    return read(scores, panoptic_seg=(segments, None))


def test_labels_and_probabilities():
    scores = torch.tensor([[[1.0, 0.0]], [[0.5, 3.0]], [[0.0, -1.0]]])  # three classes, one row of two pixels
    prediction = read(scores)
    assert prediction.labels.tolist() == [[0, 1]]
    np.testing.assert_allclose(prediction.probabilities[:, 0, 0], np.exp([1, 0.5, 0]) / np.exp([1, 0.5, 0]).sum(), 1e-6)
    np.testing.assert_array_equal(prediction.confidence, prediction.probabilities.max(axis=0))
    assert prediction.confidence[0, 0] == prediction.probabilities[prediction.labels[0, 0], 0, 0]
    np.testing.assert_array_equal(read(scores, averaged=True).probabilities, scores.numpy())
    many = torch.zeros(300, 1, 2)
    many[299, 0, 1] = 1
    labels = read(many, ClassTable(tuple(map(str, range(300))), ((0, 0, 0),) * 300)).labels
    assert (labels.dtype, labels.tolist()) == (np.uint16, [[0, 299]])


def test_repr_names_size_and_classes(panoptic):
    assert repr(SEMANTIC) == "Prediction(2 x 2 pixels: road, car, sky)"
    assert repr(panoptic) == "Prediction(3 x 4 pixels, 3 segments: road, car)"


def test_colors_and_overlay_of_classes():
    assert SEMANTIC.color_image().tolist() == [[[100, 0, 0], [0, 200, 0]], [[0, 0, 50], [0, 0, 50]]]
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    overlay = SEMANTIC.overlay(image, alpha=0.25)
    assert overlay.tolist() == SEMANTIC.color_image().tolist(), "every pixel is at a border"
    np.testing.assert_array_equal(SEMANTIC.overlay(image, 0.0), image)
    assert SEMANTIC.visible_classes() == [0, 1, 2]
    with expect_error(DatasetError, key="image", value="3 x 2", remedy="predicted image"):
        SEMANTIC.overlay(np.zeros((3, 2, 3), np.uint8))


def test_segments_of_panoptic_deeplab(panoptic):
    assert panoptic.segment_ids.tolist() == [[1, 1, 1, 1], [1, 2, 3, 1], [1, 1, 1, 0]]
    car = (CAR, "car", True, 1, None)
    assert fields(panoptic) == [(1, ROAD, "road", False, 9, None), (2, *car), (3, *car)]


def test_segments_of_panoptic_fpn():
    segments = torch.tensor([[7, 7, 0], [3, 3, 3]], dtype=torch.int32)
    described = [
        {"id": 7, "isthing": True, "score": 0.75, "category_id": CAR, "instance_id": 4},
        {"id": 3, "isthing": False, "category_id": ROAD, "area": 3},
        {"id": 9, "isthing": True, "score": 0.5, "category_id": CAR, "instance_id": 5},  # fully occluded
    ]
    prediction = read(torch.zeros(3, 2, 3), panoptic_seg=(segments, described))
    assert prediction.segment_ids.tolist() == [[2, 2, 0], [1, 1, 1]]
    assert fields(prediction) == [(1, ROAD, "road", False, 3, None), (2, CAR, "car", True, 2, 0.75)]


def test_colors_and_overlay_of_segments(panoptic):
    colors = panoptic.color_image()
    assert [colors[place].tolist() for place in ((0, 0), (1, 1), (2, 3))] == [[100, 0, 0], [0, 200, 0], [0, 0, 0]]
    assert colors[1, 2].tolist() == [89, 219, 89]  # 35 % of the way to white
    overlay = panoptic.overlay(np.full((3, 4, 3), 140, np.uint8), alpha=0.5)
    assert overlay[1, 1].tolist() == overlay[1, 2].tolist() == [255, 255, 255]
    assert overlay[0, 0].tolist() == [120, 70, 70]  # no white line along the road
    assert overlay[2, 3].tolist() == [140, 140, 140]
    assert panoptic.visible_classes() == [ROAD, CAR]


def test_files_of_panoptic_labels(panoptic, tmp_path):
    write_views({"labels": tmp_path / "a_labels.png"}, np.zeros((3, 4, 3), np.uint8), panoptic, ViewOptions())
    assert {file.name for file in tmp_path.iterdir()} == {"a_labels.png", "a_segments.png", "a_segments.json"}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_labels.png")), panoptic.labels)
    described = json.loads((tmp_path / "a_segments.json").read_text())
    assert [tuple(entry[key] for key in ("id", "class_name", "is_thing", "area")) for entry in described] == [
        (1, "road", False, 9), (2, "car", True, 1), (3, "car", True, 1),
    ]  # fmt: skip
    ids = np.asarray(Image.open(tmp_path / "a_segments.png")).astype(int) @ [1, 256, 65536]
    np.testing.assert_array_equal(ids, panoptic.segment_ids)


def test_write_image(tmp_path):
    labels = np.array([[0, 300], [65535, 7]], np.uint16)
    write_image(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), labels)
    with expect_error(ConfigError, key=str(tmp_path / "a.png/a.png"), remedy="--output"):
        write_image(tmp_path / "a.png/a.png", np.zeros((2, 2), np.uint8))


def test_legend_shows_the_classes_of_the_image():
    prediction = Prediction(SEMANTIC.labels[:1].repeat(60, axis=1), CLASSES)
    seen = draw_view("color", np.zeros((1, 120, 3), np.uint8), prediction, ViewOptions(legend=True))
    colors = {tuple(color) for color in seen[1:].reshape(-1, 3).tolist()}
    assert set(CLASSES.colors[:2]) <= colors and CLASSES.colors[2] not in colors


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("famix_panoptic_deeplab", "FAMixPanopticDeepLab"),
        ("famix_panoptic_fpn", "FAMixPanopticFPN"),
        ("famix_panoptic_maskformer", "FAMixMaskFormer"),
    ],
)
def test_panoptic_network(head, name, tmp_path, monkeypatch, capsys):
    definition = write_recipe(tmp_path, splits=("train", "val", "night"))
    run = make_run(tmp_path / head, CONFIGS / f"{head}.yaml", definition=definition)
    prediction = Predictor.from_checkpoint(run, device="cpu")(make_image())
    assert prediction.segment_ids.shape == prediction.labels.shape == (72, 112)
    assert [segment.id for segment in prediction.segments] == list(range(1, len(prediction.segments) + 1)) != []
    for segment in prediction.segments:
        assert (prediction.segment_ids == segment.id).sum() == segment.area
        assert prediction.class_names[segment.class_id] == segment.class_name
        assert segment.is_thing == (segment.class_id in prediction.classes.things)
    assert prediction.classes.things == tuple(range(11, 19))
    assert prediction.overlay(make_image()).shape == (72, 112, 3)

    export = load_tool("export").main
    assert export([str(run), "--format", "stripped", "--output", str(tmp_path)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("famix.inference.loading.register_datasets", lambda files: 1 / 0)  # no definition is read
        alone = Predictor.from_checkpoint(tmp_path / "model_final_stripped.pth", device="cpu")(make_image())
    assert alone.segments == prediction.segments
    np.testing.assert_array_equal(alone.segment_ids, prediction.segment_ids)

    with expect_error(ConfigError, key="--protocol", value="flip", remedy="native"):
        Predictor.from_checkpoint(run, protocol="flip", device="cpu")
    capsys.readouterr()
    if name != "FAMixMaskFormer":  # see test_query_export.py
        assert export([str(run), "--format", "torch_export"]) == 2
        explains(capsys.readouterr().err, "MODEL.META_ARCHITECTURE", name, "stripped")
