"""Samples of the mapper, and the augmentations that it draws."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from data_factory import data_config, make_dataset, registered, write_definition, write_label
from error_matching import expect_error
from famix.data import CropSampler, FAMixDatasetMapper, get_dataset_dicts, read_image
from famix.utils.errors import ConfigError, DatasetError

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
LABEL = np.random.default_rng(1).integers(0, 19, (40, 60), dtype=np.uint8)
TRAIN_ID_OF_RED = {0: 0, 20: 10, 40: 13, 180: 255}


def rngs(count):
    return (np.random.default_rng(seed) for seed in range(count))


# Crops


def test_plain_crop_is_a_window_of_the_image():
    sampler = CropSampler((16, 24))
    corners = set()
    for rng in rngs(300):
        (crop,) = sampler.draw((40, 60), rng).transforms
        corners.add((crop.y0, crop.x0))
        np.testing.assert_array_equal(crop.apply_image(IMAGE), IMAGE[crop.y0 :, crop.x0 :][:16, :24])
    rows, columns = zip(*corners, strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 24, 0, 36)


def test_small_image_is_padded_with_the_ignore_label():
    changes = CropSampler((50, 64), ignore_label=99).draw((40, 60), np.random.default_rng(0))
    image, label = changes.apply_image(IMAGE), changes.apply_segmentation(LABEL)
    assert image.shape == (50, 64, 3)
    np.testing.assert_array_equal(image[:40, :60], IMAGE)
    np.testing.assert_array_equal(label[:40, :60], LABEL)
    assert (label[40:] == 99).all() and (label[:, 60:] == 99).all() and (image[40:] == 128).all()


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.25, 0.5), (0.5, 2.0), (2.0, 4.0)])
@pytest.mark.parametrize("resized_to", [None, (18, 20)])
def test_every_crop_has_the_size_of_the_settings(scale_range, resized_to):
    sampler = CropSampler((16, 24), scale_range, resized_to, flip=True)
    for rng in rngs(50):
        changes = sampler.draw((40, 60), rng)
        expected = resized_to or (16, 24)
        assert changes.apply_image(IMAGE).shape == (*expected, 3)
        assert changes.apply_segmentation(LABEL).shape == expected


def triangle(length, new_length):
    """Return (new_length, length) weights of bilinear resampling, antialiased for downsampling."""
    factor = length / new_length
    distances = (np.arange(new_length)[:, None] + 0.5) * factor - (np.arange(length) + 0.5)
    weights = np.clip(1 - np.abs(distances) / max(factor, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", [0.6, 0.7, 1.3, 2.0])
@pytest.mark.parametrize("resized_to", [None, (17, 23)])
def test_scaled_crop_is_bilinear_and_its_label_nearest(scale, resized_to):
    changes = CropSampler((16, 24), (scale, scale), resized_to).draw((40, 60), np.random.default_rng(0))
    crop, resize = changes.transforms
    shown, labels = (array[crop.y0 :, crop.x0 :][: crop.h, : crop.w] for array in (IMAGE, LABEL))
    height, width = resized_to or (16, 24)
    assert (crop.h, crop.w, resize.new_h, resize.new_w) == (round(16 / scale), round(24 / scale), height, width)
    expected = np.einsum("ij,jkc,lk->ilc", triangle(crop.h, height), shown.astype(float), triangle(crop.w, width))
    got = changes.apply_image(IMAGE).astype(float)
    assert np.abs(got - expected).max() <= 1.01, "rounded after each axis"
    centers = [(np.arange(new) + 0.5) * old / new for old, new in ((crop.h, height), (crop.w, width))]
    rows, columns = (np.flatnonzero(center % 1) for center in centers)  # the rest lie between two pixels
    nearest = labels[np.ix_(*(center.astype(int) for center in centers))]
    found = changes.apply_segmentation(LABEL)
    np.testing.assert_array_equal(found[np.ix_(rows, columns)], nearest[np.ix_(rows, columns)])
    assert len(rows) > height // 2 and len(columns) > width // 2


def test_padding_is_scaled_with_the_crop():
    scaled = CropSampler((32, 24), scale_range=(0.5, 0.5))  # 40 x 60 becomes 20 x 30
    resized = CropSampler((80, 60), resized_to=(40, 30))
    for sampler, size in ((scaled, (32, 24)), (resized, (40, 30))):
        label = sampler.draw((40, 60), np.random.default_rng(0)).apply_segmentation(LABEL)
        assert label.shape == size
        assert (label[20:] == 255).all() and (label[:20] != 255).all()


def test_half_of_the_images_are_flipped():
    sampler = CropSampler((40, 60), flip=True)
    flipped = [sampler.draw((40, 60), rng) for rng in rngs(200)]
    mirrored = [len(changes.transforms) == 2 for changes in flipped]
    assert 70 < sum(mirrored) < 130
    changes = flipped[mirrored.index(True)]
    assert isinstance(changes.transforms[-1], T.HFlipTransform)
    np.testing.assert_array_equal(changes.apply_image(IMAGE), IMAGE[:, ::-1])


# Samples


@pytest.fixture
def folder(tmp_path):
    with registered(make_dataset(tmp_path)):
        yield tmp_path


@pytest.fixture
def record(folder):
    return get_dataset_dicts(["tiny_train"])[0]


def config(crop=(16, 20), **options):
    cfg = data_config(crop=crop)
    cfg.INPUT.COLOR_JITTER = [0.0, 0.0, 0.0]
    for key, value in options.items():
        cfg.INPUT[key] = value
    return cfg


def test_test_sample_is_whole_and_unlabeled(record):
    before = dict(record)
    sample = FAMixDatasetMapper(data_config(), is_train=False)(record)
    assert sample["image"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), read_image(record["file_name"]))
    assert (sample["height"], sample["width"]) == (24, 32)
    assert "sem_seg" not in sample and sample["file_name"] == record["file_name"]
    assert record == before


@pytest.mark.parametrize("seed", range(5))
def test_image_and_label_are_transformed_together(record, seed):
    sample = FAMixDatasetMapper(config())(record, np.random.default_rng(seed))
    assert sample["image"].shape == (3, 16, 20)
    assert sample["sem_seg"].shape == (16, 20) and sample["sem_seg"].dtype == torch.int64
    assert torch.equal(sample["sem_seg"].int(), sample["image"][0].int().apply_(TRAIN_ID_OF_RED.__getitem__))
    assert (sample["height"], sample["width"]) == (24, 32)


@pytest.mark.parametrize("seed", range(3))
def test_segments_of_semantic_labels_are_classes(record, seed):
    plain, cfg = FAMixDatasetMapper(config())(record, np.random.default_rng(seed)), config()
    cfg.MODEL.META_ARCHITECTURE = "FAMixMaskFormer"
    sample = FAMixDatasetMapper(cfg)(record, np.random.default_rng(seed))
    assert torch.equal(sample["image"], plain["image"]) and torch.equal(sample["sem_seg"], plain["sem_seg"])
    masks, classes = sample["segments"].gt_masks.tensor, sample["segments"].gt_classes
    assert classes.tolist() == sorted(set(plain["sem_seg"].unique().tolist()) - {255})
    for mask, train_id in zip(masks, classes, strict=True):
        assert torch.equal(mask, plain["sem_seg"] == train_id)
    assert "point_seed" not in FAMixDatasetMapper(cfg, is_mining=True)(record, np.random.default_rng(seed))


def test_generator_determines_crop_and_colors(record):
    mapper = FAMixDatasetMapper(config(SCALE_RANGE=[0.5, 2.0], CROP_RESIZED_TO=[18, 18], COLOR_JITTER=[0.5] * 3))
    first, again, other = (mapper(record, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first["image"].shape == (3, 18, 18)
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["sem_seg"], again["sem_seg"])
    assert not torch.equal(first["image"], other["image"])
    plain = FAMixDatasetMapper(config(SCALE_RANGE=[0.5, 2.0], CROP_RESIZED_TO=[18, 18]))(
        record, np.random.default_rng(1)
    )
    assert not torch.equal(first["image"], plain["image"]) and torch.equal(first["sem_seg"], plain["sem_seg"])
    assert len({mapper(record)["image"].numpy().tobytes() for _ in range(8)}) > 1  # without a generator


def test_mining_only_crops(record):
    mapper = FAMixDatasetMapper(config(SCALE_RANGE=[0.5, 0.5], CROP_RESIZED_TO=[8, 8]), is_mining=True)
    image = read_image(record["file_name"])
    windows = {image[y : y + 16, x : x + 20].tobytes() for y in range(9) for x in range(13)}
    for rng in rngs(20):
        sample = mapper(record, rng)
        assert sample["image"].permute(1, 2, 0).numpy().tobytes() in windows
        assert sample["sem_seg"].shape == (16, 20)


@pytest.mark.parametrize(("released", "label"), [(False, 255), (True, 0)])
def test_released_padding_is_road(record, released, label):
    cfg = config(crop=(30, 40), RELEASED_PADDING=released, RANDOM_FLIP="none")
    padded = FAMixDatasetMapper(cfg)(record)["sem_seg"]
    assert (padded[24:] == label).all() and (padded[:, 32:] == label).all()
    mined = FAMixDatasetMapper(cfg, is_mining=True)(record)["sem_seg"]
    assert (mined[24:] == 255).all(), "mining would assign styles of padding to road"


@pytest.mark.parametrize(("flip", "count"), [("horizontal", 2), ("none", 1)])
def test_random_flip(record, flip, count):
    mapper = FAMixDatasetMapper(config(crop=(24, 32), RANDOM_FLIP=flip))
    assert len({mapper(record, rng)["image"].numpy().tobytes() for rng in rngs(20)}) == count


def test_ignore_label_of_the_dataset(tmp_path):
    make_dataset(tmp_path)
    with registered(write_definition(tmp_path, ignore_label=200)):
        cfg = config(crop=(30, 40))
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 200
        sample = FAMixDatasetMapper(cfg, is_mining=True)(get_dataset_dicts(["tiny_train"])[0])
    assert (sample["sem_seg"][24:] == 200).all() and sample["sem_seg"].max() == 200


def test_size_mismatch_names_both_sizes(record, folder):
    write_label(folder / "labels/train/a/0.png", np.zeros((24, 31), dtype=np.uint8))
    with expect_error(DatasetError, "size", "24 x 31", "skip"):
        FAMixDatasetMapper(data_config())(record)


@pytest.mark.parametrize(
    ("key", "value", "token"),
    [
        ("INPUT.FORMAT", "BGR", "RGB"),
        ("INPUT.MAX_PIXELS", 0, "Pillow"),
        ("INPUT.CROP.ENABLED", False, "True"),
        ("INPUT.CROP.TYPE", "relative", "'absolute'"),
        *(("INPUT.CROP.SIZE", value, "[height, width]") for value in ([0, 4], [0.9, 0.9], [8])),
        ("INPUT.CROP_RESIZED_TO", [8, -8], "[height, width]"),
        *(("INPUT.SCALE_RANGE", value, "lowest") for value in ([2.0, 1.0], [0.0, 1.0], [1.0])),
        ("INPUT.RANDOM_FLIP", "vertical", "'horizontal'"),
        *(("INPUT.COLOR_JITTER", value, "[0, 0, 0]") for value in ([0.1, 0.1], [0.1, -0.1, 0.1])),
        *(("INPUT.COLOR_JITTER_PROBABILITY", value, "0 to 1") for value in (-0.1, 1.5, float("nan"))),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254, "tiny_train"),
    ],
)
def test_unsupported_settings(folder, key, value, token):
    cfg = data_config()
    cfg.merge_from_list([key, value])
    with expect_error(ConfigError, key, value, token):
        FAMixDatasetMapper(cfg)
