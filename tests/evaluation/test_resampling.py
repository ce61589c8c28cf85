"""Resized pixels beside Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from famix.evaluation.protocols.transforms import resize_bilinear, resize_image, resize_labels


def test_what_has_the_size_already_is_left_alone():
    image, labels = torch.zeros(3, 4, 5, dtype=torch.uint8), np.zeros((4, 5), np.uint8)
    assert resize_image(image, (4, 5)) is image
    assert resize_bilinear(image, (4, 5)) is image
    assert resize_labels(labels, (4, 5)) is labels


def test_labels_take_the_nearest_pixel():
    labels = np.array([[0, 1, 2, 3, 4, 5]], np.uint8)
    assert resize_labels(labels, (1, 3)).tolist() == [[1, 3, 5]]
    assert resize_labels(labels, (1, 2)).tolist() == [[1, 4]]
    assert resize_labels(labels[:, :2], (2, 4)).tolist() == [[0, 0, 1, 1]] * 2
    assert resize_labels(labels, (1, 3)).dtype == np.uint8


@pytest.mark.parametrize("size", [(17, 29), (30, 11), (61, 47), (5, 5)])
@pytest.mark.parametrize("new_size", [(8, 14), (31, 40), (64, 9), (1, 1)])
def test_labels_as_pillow(size, new_size):
    labels = np.random.default_rng(0).integers(0, 19, size).astype(np.uint8)
    expected = Image.fromarray(labels).resize(new_size[::-1], Image.Resampling.NEAREST)
    assert (resize_labels(labels, new_size) == np.asarray(expected)).all()


@pytest.mark.parametrize("new_size", [(8, 14), (31, 40), (64, 9), (17, 58)])
def test_images_as_pillow(new_size):
    pixels = np.random.default_rng(0).integers(0, 256, (17, 29)).astype(np.float32)
    expected = Image.fromarray(pixels).resize(new_size[::-1], Image.Resampling.BILINEAR)
    got = resize_image(torch.from_numpy(pixels)[None].to(torch.uint8), new_size)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got[0].numpy(), np.asarray(expected), atol=1e-3)


def test_scores_as_detectron2():
    scores = torch.rand(3, 8, 12)
    expected = torch.nn.functional.interpolate(scores[None], (5, 20), mode="bilinear", align_corners=False)[0]
    assert torch.equal(resize_bilinear(scores, (5, 20)), expected)
