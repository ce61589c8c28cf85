"""Color jitter, and the policies of torchvision without geometric operations."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from data_factory import data_config, make_dataset, registered
from error_matching import expect_error
from famix.data import AutoAugment, ColorJitter, FAMixDatasetMapper, adjust_colors, get_dataset_dicts
from famix.utils.errors import ConfigError

OPERATIONS = {"Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"}
POLICIES = [("RandAugment", 9), ("AugMix", 3)]


def rngs(count):
    return (np.random.default_rng(seed) for seed in range(count))


# Color jitter


def test_jitter_draws_factors_in_range_and_any_order():
    jitter = ColorJitter((0.8, 0.0, 2.0))
    draws = [jitter.draw(rng) for rng in rngs(200)]
    factors = {name: [dict(draw)[name] for draw in draws] for name in ("brightness", "contrast", "saturation")}
    assert 0.2 <= min(factors["brightness"]) < 0.3 and 1.7 < max(factors["brightness"]) <= 1.8
    assert set(factors["contrast"]) == {1.0}
    assert 0 <= min(factors["saturation"]) < 0.1 and 2.9 < max(factors["saturation"]) <= 3.0
    assert len({tuple(name for name, _ in draw) for draw in draws}) == 6


def test_jitter_probability_does_not_change_other_draws():
    always, half = (ColorJitter((0.8, 0.8, 0.8), probability) for probability in (1.0, 0.5))
    draws = [(always.draw(one), half.draw(other)) for one, other in zip(rngs(400), rngs(400), strict=True)]
    assert all(drawn in ([], full) for full, drawn in draws)
    assert 160 < sum(bool(drawn) for _, drawn in draws) < 240


def test_adjust_colors():
    image = torch.tensor([100, 50, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2).clone()
    gray = round(0.299 * 100 + 0.587 * 50 + 0.114 * 200)
    assert adjust_colors(image, [("brightness", 0.5)])[:, 0, 0].tolist() == [50, 25, 100]
    assert (adjust_colors(image, [("saturation", 0.0)]).int() - gray).abs().max() <= 1
    assert (adjust_colors(image, [("contrast", 0.0)]).int() - gray).abs().max() <= 1
    assert torch.equal(adjust_colors(image, [("brightness", 1.0), ("contrast", 1.0)]), image)
    in_order = adjust_colors(image, [("brightness", 2.0), ("brightness", 0.5)])  # clipped between the two
    assert in_order[:, 0, 0].tolist() == [100, 50, 127]


# Policies of torchvision


@pytest.mark.parametrize(("name", "magnitude"), [("RandAugment", 30), ("AugMix", 10)])
def test_policies_move_no_pixel(name, magnitude):
    policy = AutoAugment(name, magnitude)
    image = torch.tensor([90, 160, 40], dtype=torch.uint8).view(3, 1, 1).repeat(1, 24, 24)
    image[:, :, 12:] = torch.tensor([30, 60, 200], dtype=torch.uint8).view(3, 1, 1)
    image[:, :12] //= 2  # four quarters of one color
    changed = 0
    for rng in rngs(150):
        result = policy(image, rng)
        assert result.dtype == torch.uint8 and result.shape == image.shape
        changed += not torch.equal(result, image)
        for rows in (slice(0, 8), slice(16, 24)):
            for columns in (slice(0, 8), slice(16, 24)):  # sharpness blends neighbors at the edges
                quarter = result[:, rows, columns]
                assert torch.equal(quarter, quarter[:, :1, :1].expand_as(quarter))
    assert changed > 75


@pytest.mark.parametrize(("name", "magnitude"), POLICIES)
def test_policies_use_every_photometric_operation(name, magnitude, monkeypatch):
    seen, owner = set(), v2.RandAugment.__mro__[1]
    apply = owner._apply_image_or_video_transform

    def noting(self, image, operation, *values, **options):
        seen.add(operation)
        return apply(self, image, operation, *values, **options)

    monkeypatch.setattr(owner, "_apply_image_or_video_transform", noting)
    policy, image = AutoAugment(name, magnitude), torch.zeros(3, 8, 8, dtype=torch.uint8)
    for rng in rngs(60):
        policy(image, rng)
    assert seen - {"Identity"} == OPERATIONS


@pytest.mark.parametrize(("name", "magnitude"), POLICIES)
def test_policies_draw_from_the_generator_alone(name, magnitude):
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    policy = AutoAugment(name, magnitude)
    copy, state = pickle.loads(pickle.dumps(policy)), torch.get_rng_state()  # as a worker process gets it
    first = [policy(image, rng) for rng in rngs(8)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert all(torch.equal(one, copy(image, rng)) for one, rng in zip(first, rngs(8), strict=True))
    assert len({one.numpy().tobytes() for one in first}) > 4


@pytest.mark.parametrize(("name", "weak", "strong"), [("RandAugment", 2, 20), ("AugMix", 1, 8)])
def test_magnitude_is_the_strength(name, weak, strong):
    image = torch.randint(60, 200, (3, 20, 30), dtype=torch.uint8)

    def change(magnitude):
        policy = AutoAugment(name, magnitude)
        return np.mean([(policy(image, rng).float() - image).abs().mean() for rng in rngs(60)])

    assert change(strong) > 1.3 * change(weak) > 0


def test_probability_is_the_share_of_changed_images():
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    always, half, never = (AutoAugment("AugMix", 3, probability) for probability in (1.0, 0.5, 0.0))
    kept = 0
    for seed in range(60):
        one, other = (policy(image, np.random.default_rng(seed)) for policy in (always, half))
        kept += other is image
        assert other is image or torch.equal(other, one)
        assert never(image, np.random.default_rng(seed)) is image
    assert 15 < kept < 45


# The mapper


def config(**options):
    cfg = data_config(crop=(16, 20))
    cfg.INPUT.COLOR_JITTER = [0.3, 0.3, 0.3]
    cfg.INPUT.AUTO_AUGMENT.update(options)
    return cfg


@pytest.mark.parametrize(("name", "magnitude"), POLICIES)
def test_mapper_changes_the_image_after_jitter_and_keeps_the_label(tmp_path, name, magnitude):
    with registered(make_dataset(tmp_path)):
        record = get_dataset_dicts(["tiny_train"])[0]
        mappers = [FAMixDatasetMapper(config()), FAMixDatasetMapper(config(NAME=name, MAGNITUDE=magnitude))]
        changed = 0
        for seed in range(10):
            plain, changing = (mapper(record, np.random.default_rng(seed)) for mapper in mappers)
            assert torch.equal(plain["sem_seg"], changing["sem_seg"])
            changed += not torch.equal(plain["image"], changing["image"])
        assert changed > 4
        mining = FAMixDatasetMapper(config(NAME=name, MAGNITUDE=magnitude), is_mining=True)
        plain = FAMixDatasetMapper(config(), is_mining=True)
        both = [mapper(record, np.random.default_rng(0))["image"] for mapper in (mining, plain)]
        assert torch.equal(*both), "styles are mined on unchanged images"


@pytest.mark.parametrize(
    ("options", "key", "value", "remedy"),
    [
        ({"NAME": "augmix"}, "NAME", "augmix", "AugMix"),
        ({"NAME": "RandAugment", "MAGNITUDE": 31}, "MAGNITUDE", 31, "30"),
        ({"NAME": "RandAugment", "MAGNITUDE": -1}, "MAGNITUDE", -1, "0"),
        ({"NAME": "AugMix", "MAGNITUDE": 0}, "MAGNITUDE", 0, "1"),
        ({"NAME": "AugMix", "MAGNITUDE": 11}, "MAGNITUDE", 11, "10"),
        ({"NAME": "AugMix", "MAGNITUDE": 3, "PROBABILITY": 1.5}, "PROBABILITY", 1.5, "0 to 1"),
        ({"NAME": "AugMix", "MAGNITUDE": 3, "PROBABILITY": float("nan")}, "PROBABILITY", float("nan"), "0 to 1"),
    ],
)
def test_bad_policies_are_explained(options, key, value, remedy):
    with expect_error(ConfigError, key=f"INPUT.AUTO_AUGMENT.{key}", value=value, remedy=remedy):
        AutoAugment.from_config(config(**options).INPUT.AUTO_AUGMENT)
