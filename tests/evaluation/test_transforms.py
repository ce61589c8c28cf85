"""Sizes and pixels of transforms, by hand and against Pillow, and the spans of sliding windows."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from famix.evaluation.protocols.transforms import (
    ReleasedResizeCrop,
    ResizeCrop,
    SlidingWindow,
    resize_bilinear,
    resize_image,
    resize_labels,
)

CITYSCAPES, MAPILLARY, PORTRAIT, BDD = (1024, 2048), (2448, 3264), (3264, 2448), (720, 1280)


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        (ResizeCrop(), (37, 11), (37, 11)),
        (ResizeCrop(0.5), CITYSCAPES, (512, 1024)),
        (ResizeCrop(0.5), (5, 7), (3, 4)),  # .5 ends upwards: 2.5 -> 3, 3.5 -> 4
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
        (ResizeCrop(long=1024, short=512), PORTRAIT, (683, 512)),  # limits follow the orientation
        (ResizeCrop(long=1024, short=512), (100, 150), (512, 768)),  # small images grow
    ],
)
def test_sizes(transform, size, expected):
    assert transform.resized_size(size) == expected
    assert transform.output_size(size) == (transform.crop or expected)


def grid(height, width):
    return np.arange(height * width).reshape(height, width)


def apply(transform, pixels):
    """Transform pixels as an image and as labels."""
    image = transform.apply_image(torch.from_numpy(pixels[None]), pixels.shape)
    return image[0].numpy(), transform.apply_labels(pixels, 255)


def test_crops_by_hand():
    image, labels = apply(ResizeCrop(crop=(2, 4)), grid(4, 6))
    assert image.tolist() == labels.tolist() == [[7, 8, 9, 10], [13, 14, 15, 16]]
    image, labels = apply(ResizeCrop(crop=(4, 2)), 1 + grid(2, 4))
    assert image.tolist() == [[0, 0], [2, 3], [6, 7], [0, 0]]
    assert labels.tolist() == [[255, 255], [2, 3], [6, 7], [255, 255]]


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (5, 4), (7, 7), (9, 2)])
@pytest.mark.parametrize("crop", [(4, 4), (5, 3), (1, 6)])
def test_images_and_labels_are_cropped_alike(size, crop):
    image, labels = apply(ResizeCrop(crop=crop), 1 + grid(*size))
    assert (labels == np.where(image == 0, 255, image)).all()
    assert (image > 0).sum() == min(size[0], crop[0]) * min(size[1], crop[1])
    for transform in (ResizeCrop(0.5, floor=True), ResizeCrop(short=9), ResizeCrop(height=6, crop=crop)):
        image, labels = apply(transform, 1 + grid(*size))
        assert image.shape == labels.shape == transform.output_size(size)


def test_a_view_scales_the_crop_or_resamples_once():
    pixels = torch.from_numpy(grid(8, 12)[None]).float()
    view = ResizeCrop(crop=(4, 8)).apply_image(pixels, (8, 12), scale=0.5)
    torch.testing.assert_close(view, resize_image(pixels[:, 2:6, 2:10], (2, 4)))
    pixels = torch.rand(3, 20, 30)
    view = ResizeCrop(long=24, short=16).apply_image(pixels, (20, 30), scale=0.5)
    torch.testing.assert_close(view, resize_image(pixels, (8, 12)))


def released_crop(picture, size, resampling):
    """Truncate the width, pad both sides by the whole difference, and crop the center of the unpadded image."""
    width, height = picture.size
    picture = picture.resize((int(width / height * size), size), resampling)
    width = picture.size[0]
    if width < size:
        picture = ImageOps.expand(picture, border=(size - width, 0, size - width, 0), fill=0)
    left = round((width - size) / 2.0)
    return np.asarray(picture.crop((left, 0, left + size, size)))


@pytest.mark.parametrize("size", [(40, 61), (31, 95), (48, 48), (61, 40), (63, 44), (90, 17), (33, 2)])
def test_the_released_crop(size):
    """Landscapes, squares, and portraits, of which the narrowest fall out of the crop."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(256, size=(*size, 3)).astype(np.uint8), random.integers(19, size=size)
    transform = ReleasedResizeCrop(height=24, crop=(24, 24))
    view = transform.apply_image(torch.from_numpy(pixels).permute(2, 0, 1), size)
    expected = released_crop(Image.fromarray(pixels), 24, Image.Resampling.BICUBIC)
    assert view.dtype == torch.uint8 and (view.permute(1, 2, 0).numpy() == expected).all()
    truth = released_crop(Image.fromarray(labels.astype(np.uint8)), 24, Image.Resampling.NEAREST)
    for dtype in (np.uint8, np.int64):
        got = transform.apply_labels(labels.astype(dtype), 0)
        assert got.dtype == dtype and (got == truth).all()


def test_resizing_of_labels_and_to_the_same_size():
    image, labels = torch.zeros(3, 4, 5, dtype=torch.uint8), np.zeros((4, 5), np.uint8)
    assert resize_image(image, (4, 5)) is image and resize_bilinear(image, (4, 5)) is image
    assert resize_labels(labels, (4, 5)) is labels
    labels = np.array([[0, 1, 2, 3, 4, 5]], np.uint8)
    assert resize_labels(labels, (1, 3)).tolist() == [[1, 3, 5]]  # a center between two pixels takes the second
    assert resize_labels(labels, (1, 2)).tolist() == [[1, 4]]
    assert resize_labels(labels[:, :2], (2, 4)).tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("new_size", [(8, 14), (31, 40), (64, 9), (1, 1)])
def test_labels_and_images_as_pillow(new_size):
    for size in ((17, 29), (30, 11), (61, 47)):
        pixels = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
        expected = Image.fromarray(pixels).resize(new_size[::-1], Image.Resampling.NEAREST)
        got = resize_labels(pixels, new_size)
        assert got.dtype == np.uint8 and (got == np.asarray(expected)).all()
        expected = Image.fromarray(pixels.astype(np.float32)).resize(new_size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resize_image(torch.from_numpy(pixels)[None], new_size)[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("window", "length", "expected"),
    [
        (SlidingWindow(4, 3), 10, [(0, 4), (3, 7), (6, 10)]),
        (SlidingWindow(4, 3), 11, [(0, 4), (3, 7), (6, 10), (7, 11)]),  # the last one is moved inwards
        (SlidingWindow(4, 4), 8, [(0, 4), (4, 8)]),
        (SlidingWindow(4, 3), 4, [(0, 4)]),
        (SlidingWindow(4, 3), 5, [(0, 4), (1, 5)]),
        (SlidingWindow(4, 3), 2, [(0, 2)]),  # the window shrinks
        (SlidingWindow(512, 341), 2048, [(0, 512), (341, 853), (682, 1194), (1023, 1535), (1364, 1876), (1536, 2048)]),
        (SlidingWindow(1024, 683), 2048, [(0, 1024), (683, 1707), (1024, 2048)]),
    ],
)
def test_spans(window, length, expected):
    assert [(span.start, span.stop) for span in window.spans(length)] == expected
    assert window.count((length, 1)) == len(expected)
