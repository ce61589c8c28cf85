import numpy as np
import pytest
import torch

from data_factory import data_config, make_dataset, registered, write_definition, write_label
from error_matching import expect_error
from famix.data import ColorJitter, CropSampler, FAMixDatasetMapper, get_dataset_dicts, get_label_readers, read_image
from famix.utils.errors import ConfigError, DatasetError

TRAIN_ID_OF_RED = {0: 0, 20: 10, 40: 13, 180: 255}


@pytest.fixture
def folder(tmp_path):
    with registered(make_dataset(tmp_path)):
        yield tmp_path


@pytest.fixture
def record(folder):
    return get_dataset_dicts(["tiny_train"])[0]


def test_test_sample_is_whole_and_unlabelled(record):
    before = dict(record)
    sample = FAMixDatasetMapper(data_config(), is_train=False)(record)
    assert sample["image"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), read_image(record["file_name"]))
    assert (sample["height"], sample["width"]) == (24, 32)
    assert "sem_seg" not in sample
    assert sample["file_name"] == record["file_name"]
    assert record == before


@pytest.mark.parametrize("seed", range(5))
def test_training_sample_keeps_image_and_label_together(record, seed):
    cfg = data_config(crop=(16, 20))
    cfg.INPUT.COLOR_JITTER = [0.0, 0.0, 0.0]
    sample = FAMixDatasetMapper(cfg)(record, np.random.default_rng(seed))
    assert sample["image"].shape == (3, 16, 20)
    assert sample["sem_seg"].shape == (16, 20)
    assert sample["sem_seg"].dtype == torch.int64
    expected = sample["image"][0].int().apply_(TRAIN_ID_OF_RED.__getitem__)
    assert torch.equal(sample["sem_seg"].int(), expected)
    assert (sample["height"], sample["width"]) == (24, 32)


def test_the_generator_decides_everything(record):
    cfg = data_config(crop=(16, 20))
    cfg.INPUT.SCALE_RANGE = [0.5, 2.0]
    cfg.INPUT.CROP_RESIZED_TO = [18, 18]
    mapper = FAMixDatasetMapper(cfg)
    first, again, other = (mapper(record, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first["image"].shape == (3, 18, 18)
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["sem_seg"], again["sem_seg"])
    assert not torch.equal(first["image"], other["image"])


def test_without_a_generator_samples_differ(record):
    mapper = FAMixDatasetMapper(data_config())
    assert len({mapper(record)["image"].numpy().tobytes() for _ in range(8)}) > 1


def test_colours_are_jittered_and_labels_are_not(record):
    readers, crop = get_label_readers(["tiny_train"]), CropSampler((24, 32))
    plain = FAMixDatasetMapper(label_readers=readers, crop=crop)(record)
    jittered = FAMixDatasetMapper(label_readers=readers, crop=crop, jitter=ColorJitter((0.8, 0.8, 0.8)))(record)
    assert not torch.equal(plain["image"], jittered["image"])
    assert torch.equal(plain["sem_seg"], jittered["sem_seg"])


def test_mining_only_crops(record):
    cfg = data_config(crop=(16, 20))
    cfg.INPUT.SCALE_RANGE = [0.5, 0.5]
    cfg.INPUT.CROP_RESIZED_TO = [8, 8]
    image = read_image(record["file_name"])
    mapper = FAMixDatasetMapper(cfg, is_mining=True)
    windows = {image[y : y + 16, x : x + 20].tobytes() for y in range(9) for x in range(13)}
    for seed in range(20):
        sample = mapper(record, np.random.default_rng(seed))
        assert sample["image"].permute(1, 2, 0).numpy().tobytes() in windows
        assert sample["sem_seg"].shape == (16, 20)


@pytest.mark.parametrize(("released", "label"), [(False, 255), (True, 0)])
def test_padding_is_road_where_the_released_program_is_asked_for(record, released, label):
    cfg = data_config(crop=(30, 40))
    cfg.INPUT.RELEASED_PADDING, cfg.INPUT.RANDOM_FLIP = released, "none"
    padded = FAMixDatasetMapper(cfg)(record)["sem_seg"]
    assert (padded[24:] == label).all() and (padded[:, 32:] == label).all()
    mined = FAMixDatasetMapper(cfg, is_mining=True)(record)["sem_seg"]
    assert (mined[24:] == 255).all(), "mining would take styles of padding for those of road"


def test_size_mismatch_names_both_files(record, folder):
    write_label(folder / "labels/train/a/0.png", np.zeros((24, 31), dtype=np.uint8))
    with expect_error(DatasetError, "size", "24 x 31", "skip"):
        FAMixDatasetMapper(data_config())(record)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("INPUT.FORMAT", "BGR", "RGB"),
        ("INPUT.CROP.ENABLED", False, "True"),
        ("INPUT.CROP.TYPE", "relative", "'absolute'"),
        ("INPUT.RANDOM_FLIP", "vertical", "'horizontal'"),
        ("INPUT.COLOR_JITTER", [0.1], "[0, 0, 0]"),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254, "tiny_train"),
    ],
)
def test_configs_that_cannot_work(folder, key, value, remedy):
    cfg = data_config()
    cfg.merge_from_list([key, value])
    with expect_error(ConfigError, key, value, remedy):
        FAMixDatasetMapper(cfg)


def test_no_flip_on_request(record):
    cfg = data_config(crop=(24, 32))
    cfg.INPUT.COLOR_JITTER = [0.0, 0.0, 0.0]
    mapper = FAMixDatasetMapper(cfg)
    assert len({mapper(record, np.random.default_rng(seed))["image"].numpy().tobytes() for seed in range(20)}) == 2
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = FAMixDatasetMapper(cfg)
    assert len({mapper(record, np.random.default_rng(seed))["image"].numpy().tobytes() for seed in range(20)}) == 1


def test_own_ignore_label(tmp_path):
    make_dataset(tmp_path)
    with registered(write_definition(tmp_path, ignore_label=200)):
        cfg = data_config(crop=(30, 40))
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 200
        sample = FAMixDatasetMapper(cfg, is_mining=True)(get_dataset_dicts(["tiny_train"])[0])
    assert (sample["sem_seg"][24:] == 200).all()
    assert sample["sem_seg"].max() == 200
