"""Rare class sampling: drawn frequencies, crops, pixel counts and their cache, processes, and invalid settings."""

import math
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from data_factory import data_config, registered, write_definition, write_image, write_label
from error_matching import expect_error
from famix.data import SampleStream, build_train_loader, get_dataset_dicts, get_label_readers, register_datasets
from famix.data.build import build_train_mapper
from famix.data.sampling import pixel_counts
from famix.data.sampling.pixel_counts import FILE, count_pixels
from famix.data.sampling.rare_classes import RareClassSampler, check_sampler
from famix.utils.errors import ConfigError, DatasetError
from panoptic_factory import make_panoptic
from robustness.faults import status_of

PIXELS = np.array([[800, 100, 0, 3], [900, 0, 60, 3], [300, 40, 60, 4], [0, 0, 0, 0]])
SIZE = (24, 32)
ROAD, SKY, PERSON, CAR = 0, 10, 11, 13


def rare_config(folder: Path, train: tuple[str, ...] = ("tiny_train",)) -> CfgNode:
    cfg = data_config(train)
    cfg.OUTPUT_DIR = str(folder / "run")
    cfg.DATALOADER.SAMPLER_TRAIN = "RareClassSampler"
    cfg.DATALOADER.RARE_CLASS.MIN_PIXELS = 12
    return cfg


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """A folder with a dataset of road. Only images 1 and 4 of six contain a car, of 4 x 4 pixels; image 5 shows sky too."""
    for index in range(6):
        ids = np.zeros(SIZE, np.uint8)
        ids[:10] = 1 if index == 5 else 0
        ids[:2] = 9
        if index in (1, 4):
            ids[14:18, 26:30] = 2
        write_image(tmp_path / f"images/train/{index}.png", np.repeat(ids[..., None] * 20, 3, axis=2))
        write_label(tmp_path / f"labels/train/{index}.png", ids)
    with registered(write_definition(tmp_path, splits={"train": {}})):
        yield tmp_path


# Distribution


@pytest.mark.parametrize("temperature", [0.05, 0.3, 5.0])
def test_probabilities_follow_the_formula(temperature: float) -> None:
    frequencies = [2000 / 2270, 140 / 2270, 120 / 2270, 10 / 2270]
    weights = [math.exp((1 - f) / temperature) for f in frequencies]
    sampler = RareClassSampler(PIXELS, temperature, 1)
    np.testing.assert_allclose(sampler.probabilities, [weight / sum(weights) for weight in weights], rtol=1e-12)
    eligible = RareClassSampler(PIXELS, temperature, 50).probabilities  # no image has 50 pixels of the last class
    np.testing.assert_allclose(eligible, [*(weight / sum(weights[:3]) for weight in weights[:3]), 0], rtol=1e-12)


def test_low_temperatures_do_not_overflow() -> None:
    assert RareClassSampler(PIXELS, 1e-6, 1).probabilities.tolist() == [0, 0, 0, 1]


def test_draws_have_the_probabilities() -> None:
    sampler, rng = RareClassSampler(PIXELS, 0.5, 60), np.random.default_rng(0)
    draws = [sampler.draw(rng) for _ in range(6_000)]
    images = {0: [0, 1, 2], 1: [0], 2: [1, 2]}  # that contain at least 60 pixels of the class
    expected = {
        (c, i): len(draws) * sampler.probabilities[c] / len(found) for c, found in images.items() for i in found
    }
    assert set(draws) == set(expected)
    statistic = sum((draws.count(pair) - count) ** 2 / count for pair, count in expected.items())
    assert statistic < 20.5  # 99.9 % quantile of the chi-square distribution with 5 degrees of freedom


def test_stream_is_random_access() -> None:
    dicts = [{"image_id": index} for index in range(len(PIXELS))]
    sampler = RareClassSampler(PIXELS, 0.5, 50)

    def make(seed: int) -> SampleStream:
        return SampleStream(dicts, lambda record, rng: {**record, "number": rng.random()}, seed, rare=sampler)

    stream = make(3)
    forwards = [stream[position] for position in range(300)]
    assert [stream[position] for position in reversed(range(300))] == forwards[::-1]
    assert [stream.index(position) for position in range(300)] == [sample["image_id"] for sample in forwards]
    assert all(PIXELS[sample["image_id"], sample["rare_class"]] >= 50 for sample in forwards)
    assert len({sample["number"] for sample in forwards}) == 300
    assert [make(4)[position] for position in range(300)] != forwards


# Loaders


def test_training_images_contain_the_drawn_class(folder: Path) -> None:
    cfg = rare_config(folder)
    samples = [sample for batch in islice(build_train_loader(cfg), 60) for sample in batch]
    drawn = [(sample["rare_class"], int(Path(sample["file_name"]).stem)) for sample in samples]
    assert set(drawn) >= {(SKY, 5), (CAR, 1), (CAR, 4)}
    assert {image for train_id, image in drawn if train_id == CAR} == {1, 4}
    visible = [(sample["sem_seg"] == CAR).sum() >= 6 for sample in samples if sample["rare_class"] == CAR]
    assert sum(visible) / len(visible) > 0.95


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_crops_are_redrawn_for_the_class(kind: str, folder: Path) -> None:
    """Without redrawing, a crop of 16 x 16 shows the car at the right rim in a minority of cases."""
    if kind == "panoptic":
        with registered(make_panoptic(folder / "panoptic")):
            shares = redrawn_shares(folder, "tiny_train_panoptic", PERSON, crop=(24, 24))
    else:
        shares = redrawn_shares(folder, "tiny_train", CAR, crop=(16, 16))
    assert shares[0] < 0.5 < 0.7 < shares[1]


def redrawn_shares(folder: Path, name: str, train_id: int, crop: tuple[int, int]) -> list[float]:
    """Return the shares of crops that show enough of a class, without and with the class in the dataset dict."""
    cfg = rare_config(folder, (name,))
    cfg.INPUT.CROP.SIZE = list(crop)
    if name.endswith("panoptic"):
        cfg.MODEL.META_ARCHITECTURE = "FAMixPanopticFPN"
    mapper, reader = build_train_mapper(cfg), get_label_readers([name])[name]
    records = get_dataset_dicts([name])
    record = next(record for record in records if (reader.read(record["label_file_name"]) == train_id).any())
    shares = []
    for wanted in ({}, {"rare_class": train_id}):
        crops = [mapper({**record, **wanted}, np.random.default_rng(seed))["sem_seg"] for seed in range(60)]
        shares.append(sum(int((crop == train_id).sum()) >= 6 for crop in crops) / len(crops))
    return shares


def content(batch: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((s["file_name"], s["rare_class"], s["image"].numpy().tobytes()) for s in batch)


def test_continued_loader_equals_an_undisturbed_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = rare_config(folder)
    batches = [content(batch) for batch in islice(build_train_loader(cfg), 8)]
    monkeypatch.setattr(pixel_counts, "LabelPixels", None)  # nothing is counted again
    assert [content(batch) for batch in islice(build_train_loader(cfg, start_iter=5), 3)] == batches[5:]
    cfg.SEED += 1
    assert [content(batch) for batch in islice(build_train_loader(cfg), 8)] != batches


def test_two_processes_equal_one(folder: Path) -> None:
    cfg, children = rare_config(folder), []
    cfg.SOLVER.IMS_PER_BATCH = 4
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                group = f"file://{folder}/group"
                torch.distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
                batches = [content(batch) for batch in islice(build_train_loader(cfg), 3)]
                torch.save(batches, folder / f"{rank}.pt")
                torch.distributed.destroy_process_group()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [status_of(pid) for pid in children] == [0, 0]
    counted = count_pixels(cfg)  # from the cache of the two processes
    (folder / "run" / FILE).unlink()
    np.testing.assert_array_equal(count_pixels(cfg), counted)
    shares = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    alone = [content(batch) for batch in islice(build_train_loader(cfg), 3)]
    assert [sorted(one + other) for one, other in zip(*shares, strict=True)] == alone


# Counts


def test_counts_by_hand(folder: Path) -> None:
    pixels = count_pixels(rare_config(folder))
    assert pixels.shape == (6, 19)
    assert pixels[0, ROAD] == 22 * 32 and pixels[5, SKY] == 8 * 32 and pixels[1, CAR] == pixels[4, CAR] == 16
    assert pixels[:, CAR].sum() == 32
    assert pixels.sum() == 6 * 22 * 32  # without the two ignored rows


def test_panoptic_labels_are_counted_by_class(tmp_path: Path) -> None:
    with registered(make_panoptic(tmp_path)):
        cfg = rare_config(tmp_path, ("tiny_train_panoptic",))
        (reader,) = get_label_readers(cfg.DATASETS.TRAIN).values()
        labels = [reader.read(record["label_file_name"]) for record in get_dataset_dicts(cfg.DATASETS.TRAIN)]
        expected = [np.bincount(label.ravel(), minlength=256)[:19] for label in labels]
        np.testing.assert_array_equal(count_pixels(cfg), expected)


def test_unlabeled_classes_are_neither_counted_nor_drawn(folder: Path) -> None:
    cfg = rare_config(folder)
    assert count_pixels(cfg)[:, CAR].any()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.DATASETS.UNLABELED = 19, ["car"]
    assert not count_pixels(cfg)[:, CAR].any()
    samples = [sample for batch in islice(build_train_loader(cfg), 10) for sample in batch]
    assert {sample["rare_class"] for sample in samples} == {SKY}


def test_changed_labels_are_counted_again(folder: Path) -> None:
    cfg = rare_config(folder)
    before = count_pixels(cfg)
    write_label(folder / "labels/train/3.png", np.full(SIZE, 2, np.uint8))
    after = count_pixels(cfg)
    assert before[3, CAR] == 0 and after[3].tolist() == [0] * CAR + [24 * 32] + [0] * 5
    (folder / "run" / FILE).write_bytes(b"damaged")
    np.testing.assert_array_equal(count_pixels(cfg), after)
    assert sorted(path.name for path in (folder / "run").iterdir()) == [FILE]


def test_changed_map_of_ids_is_counted_again(folder: Path) -> None:
    cfg = rare_config(folder)
    before = count_pixels(cfg)
    other = write_definition(folder, splits={"train": {}}, label_ids={0: "car", 1: "sky", 2: "road", 9: "ignore"})
    DatasetCatalog.remove("tiny_train")
    MetadataCatalog.remove("tiny_train")
    register_datasets([str(other)])
    after = count_pixels(cfg)
    np.testing.assert_array_equal(after[:, [ROAD, CAR]], before[:, [CAR, ROAD]])


# Invalid settings


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("DATALOADER.RARE_CLASS.TEMPERATURE", 0.0, "0.01"),
        ("DATALOADER.RARE_CLASS.TEMPERATURE", -1.0, "0.01"),
        ("DATALOADER.RARE_CLASS.TEMPERATURE", math.inf, "0.01"),
        ("DATALOADER.RARE_CLASS.TEMPERATURE", math.nan, "0.01"),
        ("DATALOADER.RARE_CLASS.MIN_PIXELS", 0, "3000"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "TrainingSampler"),
        ("DATASETS.BALANCED", True, "DATALOADER.SAMPLER_TRAIN"),
    ],
)
def test_invalid_setting(key: str, value: object, remedy: str, tmp_path: Path) -> None:
    cfg = rare_config(tmp_path)
    *sections, name = key.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    node[name] = value
    with expect_error(ConfigError, key, value, remedy):
        check_sampler(cfg)


def test_no_image_has_enough_pixels(folder: Path) -> None:
    cfg = rare_config(folder)
    cfg.DATALOADER.RARE_CLASS.MIN_PIXELS = 1000
    with expect_error(ConfigError, "DATALOADER.RARE_CLASS.MIN_PIXELS", 1000, "Decrease"):
        build_train_loader(cfg)


def test_no_image_contains_a_class() -> None:
    with expect_error(DatasetError, "labels", remedy="check.py"):
        RareClassSampler(np.zeros((3, 2), np.int64), 0.01, 1)
