import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from error_matching import expect_error
from famix.data import ColorJitter, CropSampler, adjust_colors
from famix.utils.errors import ConfigError

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
LABEL = np.random.default_rng(1).integers(0, 19, (40, 60), dtype=np.uint8)


def rngs(count):
    return (np.random.default_rng(seed) for seed in range(count))


def test_plain_crop_is_a_window_of_the_image():
    sampler = CropSampler((16, 24))
    corners = set()
    for rng in rngs(300):
        (crop,) = sampler.draw((40, 60), rng).transforms
        corners.add((crop.y0, crop.x0))
        np.testing.assert_array_equal(crop.apply_image(IMAGE), IMAGE[crop.y0 :, crop.x0 :][:16, :24])
    rows, columns = zip(*corners, strict=True)
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 24, 0, 36)


def test_small_images_are_padded_with_the_ignore_label():
    changes = CropSampler((50, 64), ignore_label=99).draw((40, 60), np.random.default_rng(0))
    image, label = changes.apply_image(IMAGE), changes.apply_segmentation(LABEL)
    assert image.shape == (50, 64, 3)
    np.testing.assert_array_equal(image[:40, :60], IMAGE)
    np.testing.assert_array_equal(label[:40, :60], LABEL)
    assert (label[40:] == 99).all()
    assert (label[:, 60:] == 99).all()
    assert (image[40:] == 128).all()


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.25, 0.5), (0.5, 2.0), (2.0, 4.0)])
@pytest.mark.parametrize("resized_to", [None, (18, 20)])
def test_every_draw_has_the_size_asked_for(scale_range, resized_to):
    sampler = CropSampler((16, 24), scale_range, resized_to, flip=True)
    for rng in rngs(50):
        changes = sampler.draw((40, 60), rng)
        expected = resized_to or (16, 24)
        assert changes.apply_image(IMAGE).shape == (*expected, 3)
        assert changes.apply_segmentation(LABEL).shape == expected


def triangle(length, new_length):
    """(new_length, length) weights of a bilinear resampling from pixel centres, over all it covers where it shrinks."""
    factor = length / new_length
    distances = (np.arange(new_length)[:, None] + 0.5) * factor - (np.arange(length) + 0.5)
    weights = np.clip(1 - np.abs(distances) / max(factor, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", [0.6, 0.7, 1.3, 2.0])
@pytest.mark.parametrize("resized_to", [None, (17, 23)])
def test_scaled_crops_are_bilinear_and_their_labels_nearest(scale, resized_to):
    changes = CropSampler((16, 24), (scale, scale), resized_to).draw((40, 60), np.random.default_rng(0))
    crop, resize = changes.transforms
    shown, labels = (array[crop.y0 :, crop.x0 :][: crop.h, : crop.w] for array in (IMAGE, LABEL))
    height, width = resized_to or (16, 24)
    assert (crop.h, crop.w, resize.new_h, resize.new_w) == (round(16 / scale), round(24 / scale), height, width)
    expected = np.einsum("ij,jkc,lk->ilc", triangle(crop.h, height), shown.astype(float), triangle(crop.w, width))
    got = changes.apply_image(IMAGE).astype(float)
    assert np.abs(got - expected).max() <= 1.01, "rounded after each axis"
    centres = [(np.arange(new) + 0.5) * old / new for old, new in ((crop.h, height), (crop.w, width))]
    rows, columns = (np.flatnonzero(centre % 1) for centre in centres)  # others lie between two pixels
    nearest = labels[np.ix_(*(centre.astype(int) for centre in centres))]
    found = changes.apply_segmentation(LABEL)
    np.testing.assert_array_equal(found[np.ix_(rows, columns)], nearest[np.ix_(rows, columns)])
    assert len(rows) > height // 2
    assert len(columns) > width // 2


@pytest.mark.parametrize(
    ("sampler", "size"),
    [
        (CropSampler((32, 24), scale_range=(0.5, 0.5)), (32, 24)),  # 40 x 60 becomes 20 x 30
        (CropSampler((80, 60), resized_to=(40, 30)), (40, 30)),
    ],
)
def test_padding_is_scaled_with_the_crop(sampler, size):
    label = sampler.draw((40, 60), np.random.default_rng(0)).apply_segmentation(LABEL)
    assert label.shape == size
    assert (label[20:] == 255).all() and (label[:20] != 255).all()


def test_flips_about_half_of_the_images():
    sampler = CropSampler((40, 60), flip=True)
    flipped = [sampler.draw((40, 60), rng) for rng in rngs(200)]
    mirrored = [len(changes.transforms) == 2 for changes in flipped]
    assert 70 < sum(mirrored) < 130
    changes = flipped[mirrored.index(True)]
    assert isinstance(changes.transforms[-1], T.HFlipTransform)
    np.testing.assert_array_equal(changes.apply_image(IMAGE), IMAGE[:, ::-1])
    assert not any(len(CropSampler((40, 60)).draw((40, 60), rng).transforms) > 1 for rng in rngs(50))


@pytest.mark.parametrize(
    ("make", "key", "value", "remedy"),
    [(lambda value: CropSampler(tuple(value)), "CROP.SIZE", value, "") for value in ([0, 4], [0.9, 0.9], [8])]
    + [(lambda value: CropSampler((8, 8), resized_to=tuple(value)), "CROP_RESIZED_TO", [8, -8], "")]
    + [
        (lambda value: CropSampler((8, 8), scale_range=tuple(value)), "SCALE_RANGE", value, "")
        for value in ([2.0, 1.0], [0.0, 1.0], [1.0])
    ]
    + [(ColorJitter, "COLOR_JITTER", value, "[0, 0, 0]") for value in ([0.1, 0.1], [0.1, -0.1, 0.1])]
    + [
        (lambda value: ColorJitter((0.1, 0.1, 0.1), value), "COLOR_JITTER_PROBABILITY", value, "1")
        for value in (-0.1, 1.5, float("nan"))
    ],
)
def test_settings_out_of_range_are_refused(make, key, value, remedy):
    with expect_error(ConfigError, f"INPUT.{key}", value, remedy):
        make(value)


def test_jitter_draws_factors_in_range_and_any_order():
    jitter = ColorJitter((0.8, 0.0, 2.0))
    draws = [jitter.draw(rng) for rng in rngs(200)]
    factors = {name: [dict(draw)[name] for draw in draws] for name in ("brightness", "contrast", "saturation")}
    assert 0.2 <= min(factors["brightness"]) < 0.3
    assert 1.7 < max(factors["brightness"]) <= 1.8
    assert set(factors["contrast"]) == {1.0}
    assert 0 <= min(factors["saturation"]) < 0.1
    assert 2.9 < max(factors["saturation"]) <= 3.0
    assert len({tuple(name for name, _ in draw) for draw in draws}) == 6


def test_jitter_with_a_share_leaves_the_other_images_as_they_are():
    always, half = (ColorJitter((0.8, 0.8, 0.8), probability) for probability in (1.0, 0.5))
    draws = [(always.draw(one), half.draw(other)) for one, other in zip(rngs(400), rngs(400), strict=True)]
    assert {bool(drawn) for _, drawn in draws} == {True, False}
    assert all(drawn in ([], full) for full, drawn in draws)
    assert 160 < sum(bool(drawn) for _, drawn in draws) < 240
    assert ColorJitter((0.8, 0.8, 0.8), 0.0).draw(next(iter(rngs(1)))) == []


def test_adjusting_colours():
    image = torch.tensor([100, 50, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2).clone()
    grey = round(0.299 * 100 + 0.587 * 50 + 0.114 * 200)
    assert adjust_colors(image, [("brightness", 0.5)])[:, 0, 0].tolist() == [50, 25, 100]
    assert adjust_colors(image, [("brightness", 2.0)])[:, 0, 0].tolist() == [200, 100, 255]
    assert (adjust_colors(image, [("saturation", 0.0)]).int() - grey).abs().max() <= 1
    assert (adjust_colors(image, [("contrast", 0.0)]).int() - grey).abs().max() <= 1
    assert torch.equal(adjust_colors(image, [("brightness", 1.0), ("contrast", 1.0)]), image)
    dark_then_bright = adjust_colors(image, [("brightness", 2.0), ("brightness", 0.5)])
    assert dark_then_bright[:, 0, 0].tolist() == [100, 50, 127]
