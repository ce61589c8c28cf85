"""Panoptic PNGs, and training samples whose image, classes, boxes, masks and centers are transformed together."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from data_factory import data_config, registered, write_image
from error_matching import expect_error
from famix.data import FAMixDatasetMapper, build_mining_batches, build_train_loader, get_dataset_dicts
from famix.data.build import build_train_mapper
from famix.data.panoptic.mapper import PanopticDatasetMapper
from famix.data.panoptic.segments import encode_ids, read_segments
from famix.utils.errors import DatasetError
from panoptic_factory import write_annotations, write_recipe

# PNGs

ROAD, CAR, WHITE = 7, 26_001, 16_777_215
SEGMENTS = [
    {"id": CAR, "category_id": 13, "iscrowd": 0},
    {"id": ROAD, "category_id": 0, "iscrowd": 0},
    {"id": WHITE, "category_id": 10, "iscrowd": 0},
]


@pytest.fixture
def label(tmp_path: Path) -> Path:
    return write_image(tmp_path / "label.png", encode_ids(np.array([[ROAD, ROAD, 0], [CAR, WHITE, 999]])))


def test_color_is_red_plus_256_green_plus_65536_blue() -> None:
    assert encode_ids(np.array([[1 + 256 * 2 + 65536 * 3]])).tolist() == [[[1, 2, 3]]]


def test_pixel_gets_the_number_of_its_segment(label: Path) -> None:
    assert read_segments(label, SEGMENTS, [999]).tolist() == [[2, 2, 0], [1, 3, 0]]
    absent = [*SEGMENTS, {"id": 5, "category_id": 1, "iscrowd": 0}]
    assert read_segments(label, absent, [999], all_visible=False).tolist() == [[2, 2, 0], [1, 3, 0]]
    with expect_error(DatasetError, str(label), 5):
        read_segments(label, absent, [999])
    with expect_error(DatasetError, str(label), 999):
        read_segments(label, SEGMENTS)


def test_file_without_panoptic_colors(label: Path, tmp_path: Path) -> None:
    Image.open(label).convert("L").save(tmp_path / "gray.png")
    with expect_error(DatasetError, key=str(tmp_path / "gray.png"), value="L", remedy="COCO's"):
        read_segments(tmp_path / "gray.png", SEGMENTS)


# Samples

NAME = "tiny_train_panoptic"
CROWD = 24_000
VALUES = {7: 40, 23: 90, 26_000: 140, 26_001: 190, CROWD: 240, 0: 10}  # id of a segment -> brightness in the image
TRAIN_IDS = {7: 0, 23: 10, 26_000: 13, 26_001: 13, CROWD: 11, 0: 255}
ARCHITECTURES = {
    "FAMixPanopticFPN": {"instances"},
    "FAMixPanopticDeepLab": {"center", "offset", "center_weights", "offset_weights", "sem_seg_weights"},
    "FAMixMaskFormer": {"segments", "point_seed"},
    "FAMixSemanticSegmentor": set(),
}


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """Register one image of 40 x 60 pixels whose brightness identifies the segment."""
    ids = np.full((40, 60), 7)
    ids[:12] = 23
    ids[14:26, 4:20], ids[14:30, 20:34], ids[10:22, 44:56], ids[-4:] = 26_000, 26_001, CROWD, 0
    pixels = np.vectorize(VALUES.get)(ids).astype(np.uint8)
    write_image(tmp_path / "images/train/a.png", np.repeat(pixels[..., None], 3, axis=2))
    write_annotations(tmp_path, "train", {"a": ids}, crowds=[CROWD])
    with registered(write_recipe(tmp_path)):
        yield get_dataset_dicts([NAME])[0]


def config(architecture: str, **inputs: Any) -> CfgNode:
    cfg = data_config(train=[NAME], crop=(32, 32))
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.STYLE_MINING.IMS_PER_BATCH = cfg.SOLVER.IMS_PER_BATCH = 1
    options = {"COLOR_JITTER": [0.0, 0.0, 0.0], "RANDOM_FLIP": "horizontal", "GAUSSIAN_SIGMA": 2, **inputs}
    for key, value in options.items():
        cfg.INPUT[key] = value
    return cfg


def samples(record: dict[str, Any], cfg: CfgNode, count: int = 12) -> list[dict[str, Any]]:
    mapper = PanopticDatasetMapper(cfg)
    return [mapper(record, np.random.default_rng(seed)) for seed in range(count)]


def segment_map(sample: dict[str, Any]) -> np.ndarray:
    """Return the ids of segments by the image's brightness; -1 at blended edges and in padding."""
    brightness = sample["image"][0].numpy().astype(int)
    shown = np.full(brightness.shape, -1)
    for segment, value in VALUES.items():
        shown[brightness == value] = segment
    return shown


def inside_segments(shown: np.ndarray) -> np.ndarray:
    """Mask pixels whose neighbors are equal: blending at edges can hit another segment's brightness."""
    inner = np.zeros(shown.shape, bool)
    windows = np.lib.stride_tricks.sliding_window_view(shown, (3, 3))
    inner[1:-1, 1:-1] = (windows == shown[1:-1, 1:-1, None, None]).all(axis=(2, 3)) & (shown[1:-1, 1:-1] >= 0)
    return inner


@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.6, 1.7]])
def test_boxes_and_masks_match_the_image(scales: list[float], record: dict[str, Any]) -> None:
    seen: set[int] = set()
    first_car_is_left = set()
    for sample in samples(record, config("FAMixPanopticFPN", SCALE_RANGE=scales)):
        shown, instances = segment_map(sample), sample["instances"]
        inner = inside_segments(shown)
        semantic = sample["sem_seg"].numpy()
        assert semantic.shape == (32, 32) == instances.image_size and semantic.dtype == np.int64
        np.testing.assert_array_equal(semantic[inner], np.vectorize(TRAIN_IDS.get)(shown[inner]))
        covered = np.zeros((32, 32), int)
        for box, mask, place in zip(instances.gt_boxes, instances.gt_masks, instances.gt_classes.tolist(), strict=True):
            mask = mask.numpy()
            (segment,) = set(shown[mask & inner].tolist()) or {None}
            assert segment in (None, 26_000, 26_001) and place == 2  # cars are the third of Cityscapes' things
            seen.add(segment)
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            covered += mask
        assert covered.max(initial=0) <= 1
        np.testing.assert_array_equal(covered == 1, semantic == 13)  # all cars have a mask, crowds have none
        columns_of = [np.nonzero(shown == car)[1].mean() for car in (26_000, 26_001) if (shown == car).any()]
        if len(columns_of) == 2:
            first_car_is_left.add(columns_of[0] < columns_of[1])
    assert {26_000, 26_001} <= seen and first_car_is_left == {True, False}


def test_centers_and_offsets_match_the_image(record: dict[str, Any]) -> None:
    for sample in samples(record, config("FAMixPanopticDeepLab")):
        shown, semantic = segment_map(sample), sample["sem_seg"].numpy()
        np.testing.assert_array_equal(semantic, np.vectorize(TRAIN_IDS.get)(shown))  # exact without scaling
        for segment in (26_000, 26_001):
            rows, columns = np.nonzero(shown == segment)
            if not len(rows):
                continue
            center = rows.mean(), columns.mean()
            assert sample["center"][round(center[0]), round(center[1])] == 1
            offset = sample["offset"][:, rows[0], columns[0]].tolist()
            assert offset == pytest.approx([center[0] - rows[0], center[1] - columns[0]], abs=1e-4)
        weights = sample["offset_weights"][0].numpy()
        np.testing.assert_array_equal(weights == 1, np.isin(shown, [26_000, 26_001]))  # neither stuff, crowd nor void
        np.testing.assert_array_equal(sample["center_weights"][0].numpy() == 0, np.isin(shown, [CROWD, 0]))


@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.6, 1.7]])
def test_segments_are_instances_and_stuff_classes(scales: list[float], record: dict[str, Any]) -> None:
    seen = set()
    for sample in samples(record, config("FAMixMaskFormer", SCALE_RANGE=scales)):
        shown, semantic, target = segment_map(sample), sample["sem_seg"].numpy(), sample["segments"]
        inner, masks = inside_segments(shown), target.gt_masks.tensor.numpy()
        assert target.image_size == (32, 32) and target.gt_classes.dtype == torch.int64
        for mask, train_id in zip(masks, target.gt_classes.tolist(), strict=True):
            assert mask.any() and set(semantic[mask]) == {train_id}
            (segment,) = set(shown[mask & inner].tolist()) or {None}
            assert segment is None or TRAIN_IDS[segment] == train_id
            seen.add(segment)
        # Each labeled pixel belongs to one segment, but crowds and void belong to none.
        expected = (semantic != 255) & (semantic != TRAIN_IDS[CROWD])
        np.testing.assert_array_equal(masks.sum(axis=0, initial=0), expected)
    assert seen - {None} == {7, 23, 26_000, 26_001}


def test_segments_of_one_stuff_class_are_joined(record: dict[str, Any]) -> None:
    """Two categories may share a class: here, both road and sky are road."""
    joined = [{**x, "category_id": 0 if x["id"] == 23 else x["category_id"]} for x in record["segments_info"]]
    cfg = config("FAMixMaskFormer")
    cfg.INPUT.CROP.SIZE = [40, 60]
    (sample,) = samples({**record, "segments_info": joined}, cfg, count=1)
    target = sample["segments"]
    assert sorted(target.gt_classes.tolist()) == [0, 13, 13]
    road = target.gt_masks.tensor[target.gt_classes.tolist().index(0)].numpy()
    np.testing.assert_array_equal(road, np.isin(segment_map(sample), [7, 23]))


def test_seed_of_points_follows_the_generator(record: dict[str, Any]) -> None:
    mapper = PanopticDatasetMapper(config("FAMixMaskFormer"))
    seeds = [mapper(record, np.random.default_rng(seed))["point_seed"] for seed in (0, 1, 0)]
    assert seeds[0] == seeds[2] != seeds[1] and all(0 <= seed < 1 << 62 for seed in seeds)


def test_crop_without_instances(record: dict[str, Any]) -> None:
    cfg = config("FAMixPanopticFPN")
    cfg.INPUT.CROP.SIZE = [4, 4]
    found = [sample["instances"] for sample in samples(record, cfg, count=20)]
    empty = next(instances for instances in found if not len(instances))
    assert empty.gt_boxes.tensor.shape == (0, 4) and empty.gt_masks.tensor.shape == (0, 4, 4)
    assert empty.gt_classes.dtype == torch.int64


@pytest.mark.parametrize("released", [False, True])
def test_hundreds_of_segments_are_scaled_and_padding_is_void(
    tmp_path: Path, released: bool, record: dict[str, Any]
) -> None:
    """One segment per pixel: their numbers have two bytes."""
    image = write_image(tmp_path / "a.png", np.zeros((15, 20, 3), np.uint8))
    label = write_image(tmp_path / "b.png", encode_ids(np.arange(1, 301).reshape(15, 20)))
    segments = [{"id": number, "category_id": 13, "iscrowd": 0} for number in range(1, 301)]
    record = {**record, "file_name": str(image), "pan_seg_file_name": str(label), "segments_info": segments}
    cfg = config("FAMixPanopticFPN", SCALE_RANGE=[2.0, 2.0], RANDOM_FLIP="none", RELEASED_PADDING=released)
    cfg.INPUT.CROP.SIZE = [30, 42]
    (sample,) = samples(record, cfg, count=1)
    masks = sample["instances"].gt_masks.tensor
    assert masks.shape == (300, 30, 42) and masks.sum((1, 2)).tolist() == [4] * 300
    assert masks[299, 28:, 38:40].all()
    assert (sample["sem_seg"][:, 40:] == 255).all() and (sample["sem_seg"][:, :40] == 13).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture_gets_its_targets(architecture: str, record: dict[str, Any]) -> None:
    cfg = config(architecture)
    (sample,) = next(iter(build_train_loader(cfg)))
    entries = {"image", "sem_seg", "height", "width", *ARCHITECTURES[architecture]}
    assert sample.keys() - record.keys() - {"center_points"} == entries
    mapper = build_train_mapper(cfg)
    assert (type(mapper) is FAMixDatasetMapper) == (architecture == "FAMixSemanticSegmentor")
    again = pickle.loads(pickle.dumps(mapper))  # as a spawned worker gets it
    one, other = (found(record, np.random.default_rng(0)) for found in (mapper, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


@pytest.mark.usefixtures("record")
def test_mining_reads_semantic_labels() -> None:
    ((_, (sample,)),) = build_mining_batches(config("FAMixPanopticDeepLab"))
    np.testing.assert_array_equal(sample["sem_seg"].numpy(), np.vectorize(TRAIN_IDS.get)(segment_map(sample)))


def test_size_mismatch_names_both_sizes(record: dict[str, Any]) -> None:
    write_image(Path(record["file_name"]), np.zeros((40, 61, 3), np.uint8))
    with expect_error(DatasetError, "size", "40 x 61", "skip"):
        PanopticDatasetMapper(config("FAMixPanopticFPN"))(record)
