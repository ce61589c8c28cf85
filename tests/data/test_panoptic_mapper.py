"""Training samples with instances: image, classes, boxes, masks and centres change together."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from data_factory import data_config, registered, write_image
from error_matching import expect_error
from famix.data import FAMixDatasetMapper, build_mining_batches, build_train_loader, get_dataset_dicts
from famix.data.mapper import PanopticDatasetMapper, build_train_mapper
from famix.utils.errors import DatasetError
from panoptic_factory import write_annotations, write_recipe

NAME = "tiny_train_panoptic"
CROWD = 24_000
VALUES = {7: 40, 23: 90, 26_000: 140, 26_001: 190, CROWD: 240, 0: 10}  # id of a segment -> brightness in the image
TRAIN_IDS = {7: 0, 23: 10, 26_000: 13, 26_001: 13, CROWD: 11, 0: 255}


def make_street(folder: Path) -> Path:
    """One image of 40 x 60 pixels whose brightness tells the segment."""
    ids = np.full((40, 60), 7)
    ids[:12] = 23
    ids[14:26, 4:20], ids[14:30, 20:34], ids[10:22, 44:56], ids[-4:] = 26_000, 26_001, CROWD, 0
    pixels = np.vectorize(VALUES.get)(ids).astype(np.uint8)
    write_image(folder / "images/train/a.png", np.repeat(pixels[..., None], 3, axis=2))
    write_annotations(folder, "train", {"a": ids}, crowds=[CROWD])
    return write_recipe(folder)


def config(architecture: str, **inputs: Any) -> CfgNode:
    cfg = data_config(train=[NAME], crop=(32, 32))
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.INPUT.COLOR_JITTER = [0.0, 0.0, 0.0]
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.GAUSSIAN_SIGMA = 2
    for key, value in inputs.items():
        cfg.INPUT[key] = value
    return cfg


def samples(folder: Path, architecture: str, count: int = 12, **inputs: Any) -> list[dict[str, Any]]:
    with registered(make_street(folder)):
        mapper = PanopticDatasetMapper(config(architecture, **inputs))
        (record,) = get_dataset_dicts([NAME])
        return [mapper(record, np.random.default_rng(seed)) for seed in range(count)]


def segment_map(sample: dict[str, Any]) -> np.ndarray:
    """Ids of segments as the image's brightness tells them; -1 at their edges, which resampling blends, and in padding."""
    brightness = sample["image"][0].numpy().astype(int)
    shown = np.full(brightness.shape, -1)
    for segment, value in VALUES.items():
        shown[brightness == value] = segment
    return shown


def require_no_neighbours(shown: np.ndarray) -> np.ndarray:
    """Where a pixel and all around it show the same: blending at edges can hit another segment's brightness."""
    inner = np.zeros(shown.shape, bool)
    windows = np.lib.stride_tricks.sliding_window_view(shown, (3, 3))
    inner[1:-1, 1:-1] = (windows == shown[1:-1, 1:-1, None, None]).all(axis=(2, 3)) & (shown[1:-1, 1:-1] >= 0)
    return inner


@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.6, 1.7]])
def test_boxes_and_masks_stay_on_the_image(scales: list[float], tmp_path: Path) -> None:
    seen: set[int] = set()
    for sample in samples(tmp_path, "FAMixPanopticFPN", SCALE_RANGE=scales):
        shown, instances = segment_map(sample), sample["instances"]
        inner = require_no_neighbours(shown)
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
        np.testing.assert_array_equal(
            covered == 1, semantic == 13
        )  # every car pixel is in one mask, crowds are in none
    assert {26_000, 26_001} <= seen


def test_samples_differ_by_the_generator_alone_and_some_are_mirrored(tmp_path: Path) -> None:
    one, again = (samples(tmp_path, "FAMixPanopticFPN") for _ in range(2))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, again, strict=True))
    order = [segment_map(sample)[-12].tolist() for sample in one]
    first_car_is_left = [row.index(26_000) < row.index(26_001) for row in order if {26_000, 26_001} <= set(row)]
    assert set(first_car_is_left) == {True, False}


def test_centres_and_offsets_are_panoptic_deeplabs(tmp_path: Path) -> None:
    for sample in samples(tmp_path, "FAMixPanopticDeepLab"):
        shown, semantic = segment_map(sample), sample["sem_seg"].numpy()
        np.testing.assert_array_equal(semantic, np.vectorize(TRAIN_IDS.get)(shown))  # unscaled: the image is exact
        for segment in (26_000, 26_001):
            rows, columns = np.nonzero(shown == segment)
            if not len(rows):
                continue
            centre = rows.mean(), columns.mean()
            assert sample["center"][round(centre[0]), round(centre[1])] == 1
            offset = sample["offset"][:, rows[0], columns[0]].tolist()
            assert offset == pytest.approx([centre[0] - rows[0], centre[1] - columns[0]], abs=1e-4)
        weights = sample["offset_weights"][0].numpy()
        np.testing.assert_array_equal(weights == 1, np.isin(shown, [26_000, 26_001]))  # neither stuff, crowd nor void
        np.testing.assert_array_equal(sample["center_weights"][0].numpy() == 0, np.isin(shown, [CROWD, 0]))


def test_a_crop_without_instances_is_a_sample_too(tmp_path: Path) -> None:
    with registered(make_street(tmp_path)):
        cfg = config("FAMixPanopticFPN")
        cfg.INPUT.CROP.SIZE = [4, 4]
        mapper = PanopticDatasetMapper(cfg)
        found = [mapper(get_dataset_dicts([NAME])[0], np.random.default_rng(seed))["instances"] for seed in range(20)]
    assert 0 in map(len, found)
    empty = next(instances for instances in found if not len(instances))
    assert empty.gt_boxes.tensor.shape == (0, 4) and empty.gt_masks.tensor.shape == (0, 4, 4)
    assert empty.gt_classes.dtype == torch.int64


def test_each_architecture_gets_its_targets(tmp_path: Path) -> None:
    with registered(make_street(tmp_path)):
        for architecture, entries in (
            ("FAMixPanopticFPN", {"instances"}),
            ("FAMixPanopticDeepLab", {"center", "offset", "center_weights", "offset_weights", "sem_seg_weights"}),
            ("FAMixSemanticSegmentor", set()),
        ):
            cfg = config(architecture)
            cfg.SOLVER.IMS_PER_BATCH = 1
            (sample,) = next(iter(build_train_loader(cfg)))
            assert sample.keys() - get_dataset_dicts([NAME])[0].keys() - {"center_points"} == {
                "image", "sem_seg", "height", "width", *entries
            }  # fmt: skip
        assert type(build_train_mapper(config("FAMixSemanticSegmentor"))) is FAMixDatasetMapper


@pytest.mark.parametrize("architecture", ["FAMixPanopticFPN", "FAMixPanopticDeepLab"])
def test_a_spawned_worker_gets_the_mapper_as_a_pickle(architecture: str, tmp_path: Path) -> None:
    with registered(make_street(tmp_path)):
        mapper = build_train_mapper(config(architecture))
        (record,) = get_dataset_dicts([NAME])
        again = pickle.loads(pickle.dumps(mapper))
        one, other = (found(record, np.random.default_rng(0)) for found in (mapper, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


def test_styles_are_mined_from_the_semantic_part(tmp_path: Path) -> None:
    with registered(make_street(tmp_path)):
        cfg = config("FAMixPanopticDeepLab")
        cfg.STYLE_MINING.IMS_PER_BATCH = 1
        ((_, (sample,)),) = build_mining_batches(cfg)
    np.testing.assert_array_equal(sample["sem_seg"].numpy(), np.vectorize(TRAIN_IDS.get)(segment_map(sample)))


def test_an_image_of_another_size_than_its_label_is_an_error(tmp_path: Path) -> None:
    with registered(make_street(tmp_path)):
        write_image(tmp_path / "images/train/a.png", np.zeros((40, 61, 3), np.uint8))
        mapper = PanopticDatasetMapper(config("FAMixPanopticFPN"))
        with expect_error(DatasetError, "size", "40 x 61", "skip"):
            mapper(get_dataset_dicts([NAME])[0])
