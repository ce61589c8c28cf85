"""Sizes under each rule, by hand, and which pixels a frame shows."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from famix.evaluation.protocols.transforms import ReleasedResizeCrop, ResizeCrop, resize_image

CITYSCAPES, MAPILLARY, PORTRAIT, BDD = (1024, 2048), (2448, 3264), (3264, 2448), (720, 1280)


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        (ResizeCrop(), (37, 11), (37, 11)),
        (ResizeCrop(0.5), CITYSCAPES, (512, 1024)),
        (ResizeCrop(0.5), (5, 7), (3, 4)),  # .5 ends upwards: 2.5 -> 3, 3.5 -> 4
        (ResizeCrop(0.5), (1, 9), (1, 5)),
        (ResizeCrop(0.01), (9, 300), (1, 3)),  # never below 1
        (ResizeCrop(short=1024), BDD, (1024, 1820)),  # 1280 * 1024 / 720 = 1820.4
        (ResizeCrop(short=1024), PORTRAIT, (1365, 1024)),
        (ResizeCrop(height=1536), MAPILLARY, (1536, 2048)),
        (ResizeCrop(height=1536), PORTRAIT, (1536, 1152)),
        (ReleasedResizeCrop(height=1536, crop=(1536, 1536)), (1000, 1500), (1536, 2304)),
        (ReleasedResizeCrop(height=1536, crop=(1536, 1536)), (2448, 3265), (1536, 2048)),  # 2048.63
        (ReleasedResizeCrop(height=1536, crop=(1536, 1536)), (1080, 1367), (1536, 1944)),  # 1944.18
        (ResizeCrop(0.5, floor=True), (5, 7), (2, 3)),
        (ResizeCrop(0.5, floor=True), (1, 8), (1, 4)),
        (ResizeCrop(long=1024, short=512), CITYSCAPES, (512, 1024)),
        (ResizeCrop(long=1024, short=512), MAPILLARY, (512, 683)),  # the height limits: 3264 * 512 / 2448 = 682.7
        (ResizeCrop(long=1024, short=512), (1000, 5000), (205, 1024)),  # the width limits: 1000 * 1024 / 5000 = 204.8
        (ResizeCrop(long=1024, short=512), PORTRAIT, (683, 512)),  # a landscape on its side
        (ResizeCrop(long=1024, short=512), (100, 150), (512, 768)),  # small images grow
    ],
)
def test_size(transform, size, expected):
    assert transform.resized_size(size) == expected
    assert transform.output_size(size) == (transform.crop or expected)


def test_image_and_labels_get_the_size():
    for transform in (ResizeCrop(0.5), ResizeCrop(0.5, floor=True), ResizeCrop(short=9), ResizeCrop(long=40, short=20)):
        for size in ((15, 22), (22, 15)):
            expected = transform.output_size(size)
            assert transform.apply_image(torch.zeros(3, *size, dtype=torch.uint8), size).shape == (3, *expected)
            assert transform.apply_labels(np.zeros(size, np.uint8), 255).shape == expected


def test_a_crop_has_the_crops_size_whatever_the_image_has():
    frame = ResizeCrop(height=6, crop=(6, 6))
    for size in [(12, 20), (3, 2), (12, 12), (5, 7)]:
        assert frame.output_size(size) == (6, 6)
        assert frame.apply_image(torch.zeros(1, *size), size).shape == (1, 6, 6)
        assert frame.apply_labels(np.zeros(size, np.int64), 255).shape == (6, 6)
    assert frame.resized_size((12, 20)) == (6, 10)


# Pixels: image and labels in which every pixel has its own value


def grid(height, width):
    return np.arange(height * width).reshape(height, width)


def shown(frame, pixels):
    """What a frame makes of pixels as an image, and as labels."""
    image = frame.apply_image(torch.from_numpy(pixels[None]), pixels.shape)
    return image[0].numpy(), frame.apply_labels(pixels, 255)


def test_crop_from_the_centre():
    image, labels = shown(ResizeCrop(crop=(2, 4)), grid(4, 6))
    expected = [[7, 8, 9, 10], [13, 14, 15, 16]]
    assert image.tolist() == labels.tolist() == expected


def test_padding_is_black_and_has_the_label_that_is_asked_for():
    image, labels = shown(ResizeCrop(crop=(4, 2)), 1 + grid(2, 4))
    assert image.tolist() == [[0, 0], [2, 3], [6, 7], [0, 0]]
    assert labels.tolist() == [[255, 255], [2, 3], [6, 7], [255, 255]]


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (4, 5), (5, 4), (7, 7), (9, 2)])
@pytest.mark.parametrize("crop", [(4, 4), (5, 3), (1, 6)])
def test_image_and_labels_are_cropped_alike(size, crop):
    image, labels = shown(ResizeCrop(crop=crop), 1 + grid(*size))
    assert image.shape == labels.shape == crop
    assert (labels == np.where(image == 0, 255, image)).all()
    assert (image > 0).sum() == min(size[0], crop[0]) * min(size[1], crop[1])


def test_a_view_is_a_scale_of_the_crop():
    pixels = torch.from_numpy(grid(8, 12)[None]).float()
    view = ResizeCrop(crop=(4, 8)).apply_image(pixels, (8, 12), scale=0.5)
    torch.testing.assert_close(view, resize_image(pixels[:, 2:6, 2:10], (2, 4)))


def test_without_a_crop_a_view_is_one_resampling():
    pixels = torch.rand(3, 20, 30)
    view = ResizeCrop(long=24, short=16).apply_image(pixels, (20, 30), scale=0.5)
    torch.testing.assert_close(view, resize_image(pixels, (8, 12)))


def test_the_frame_follows_the_files_size_not_the_tensors():
    """Something before may have resized the image."""
    assert ResizeCrop(0.5).apply_image(torch.zeros(3, 10, 10), (40, 60)).shape == (3, 20, 30)


def test_image_and_labels_stay_aligned():
    """The edge of an object lies at the same place in both."""
    edge = np.zeros((40, 60), np.uint8)
    edge[10:, 24:] = 1
    for frame in (
        ResizeCrop(0.5),
        ResizeCrop(short=60),
        ResizeCrop(height=20, crop=(16, 16)),
        ResizeCrop(long=50, short=30),
    ):
        image, labels = shown(frame, edge.astype(np.float32))[0], frame.apply_labels(edge, 255)
        assert ((image > 0.5) == (labels == 1)).mean() > 0.96


# The crop of the released programs, written out with Pillow


def released_crop(picture, size, resampling, fill):
    """A height of `size`, the width truncated; padded on both sides by all that is missing; a crop of the unpadded centre."""
    width, height = picture.size
    picture = picture.resize((int(width / height * size), size), resampling)
    width = picture.size[0]
    if width < size:
        picture = ImageOps.expand(picture, border=(size - width, 0, size - width, 0), fill=fill)
    left = round((width - size) / 2.0)
    return np.asarray(picture.crop((left, 0, left + size, size)))


@pytest.mark.parametrize("size", [(40, 61), (31, 95), (48, 48), (61, 40), (63, 44), (90, 17), (33, 2)])
def test_the_released_crop(size):
    """Landscapes, squares, and portraits, of which the narrowest are not seen at all."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(256, size=(*size, 3)).astype(np.uint8), random.integers(19, size=size)
    frame = ReleasedResizeCrop(height=24, crop=(24, 24))
    view = frame.apply_image(torch.from_numpy(pixels).permute(2, 0, 1), size)
    expected = released_crop(Image.fromarray(pixels), 24, Image.Resampling.BICUBIC, 0)
    assert view.dtype == torch.uint8 and (view.permute(1, 2, 0).numpy() == expected).all()
    truth = released_crop(Image.fromarray(labels.astype(np.uint8)), 24, Image.Resampling.NEAREST, 0)
    for dtype in (np.uint8, np.int64):
        got = frame.apply_labels(labels.astype(dtype), 0)
        assert got.dtype == dtype and (got == truth).all()


def test_a_portrait_in_the_released_crop_lies_to_the_right():
    frame = ReleasedResizeCrop(height=4, crop=(4, 4))
    labels = np.array([[1, 2]] * 4, np.uint8)
    assert (
        frame.apply_labels(labels, 255).tolist() == [[255, 255, 255, 1]] * 4
    )  # 2 + 1 columns of padding, and 2 is cut off
    assert ResizeCrop(height=4, crop=(4, 4)).apply_labels(labels, 255).tolist() == [[255, 1, 2, 255]] * 4
