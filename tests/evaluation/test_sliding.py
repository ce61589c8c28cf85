"""Windows by hand, and their mean beside a plain loop."""

import pytest
import torch

from famix.evaluation.protocols.inference import slide
from famix.evaluation.protocols.transforms import SlidingWindow


def starts(window, length):
    return [(span.start, span.stop) for span in window.spans(length)]


@pytest.mark.parametrize(
    ("window", "length", "expected"),
    [
        (SlidingWindow(4, 3), 10, [(0, 4), (3, 7), (6, 10)]),
        (SlidingWindow(4, 3), 11, [(0, 4), (3, 7), (6, 10), (7, 11)]),  # the last one is moved inwards
        (SlidingWindow(4, 4), 8, [(0, 4), (4, 8)]),
        (SlidingWindow(4, 3), 4, [(0, 4)]),
        (SlidingWindow(4, 3), 5, [(0, 4), (1, 5)]),
        (SlidingWindow(4, 3), 2, [(0, 2)]),  # the window shrinks
        (SlidingWindow(1, 1), 3, [(0, 1), (1, 2), (2, 3)]),
        (SlidingWindow(512, 341), 2048, [(0, 512), (341, 853), (682, 1194), (1023, 1535), (1364, 1876), (1536, 2048)]),
        (SlidingWindow(1024, 683), 2048, [(0, 1024), (683, 1707), (1024, 2048)]),
    ],
)
def test_spans(window, length, expected):
    assert starts(window, length) == expected


@pytest.mark.parametrize("window", [SlidingWindow(3, 1), SlidingWindow(3, 2), SlidingWindow(3, 3), SlidingWindow(5, 4)])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 12, 13])
def test_every_pixel_is_in_a_window(window, length):
    covered = torch.zeros(length)
    for span in window.spans(length):
        covered[span] += 1
        assert span.stop - span.start == min(window.size, length) and span.start >= 0 and span.stop <= length
    assert covered.min() >= 1


def test_count():
    assert SlidingWindow(512, 341).count((1024, 2048)) == 3 * 6
    assert SlidingWindow(1024, 683).count((1024, 2048)) == 3
    assert SlidingWindow(512, 341).count((400, 300)) == 1


def position_dependent(windows):
    """Scores that depend on where in its window a pixel lies, so that the order of things shows."""
    height, width = windows[0].shape[-2:]
    ramp = torch.arange(height)[:, None] * 100.0 + torch.arange(width)
    return [torch.stack([window.sum(0) + ramp, window.mean(0) * ramp, ramp]) for window in windows]


def plain_loop(image, size, stride):
    """The mean over windows, pixel by pixel."""
    (_, height, width), found = image.shape, {}
    tops = sorted({min(top, max(height - size, 0)) for top in range(0, height + stride, stride)})
    lefts = sorted({min(left, max(width - size, 0)) for left in range(0, width + stride, stride)})
    for top in tops:
        for left in lefts:
            part = image[:, top : min(top + size, height), left : min(left + size, width)]
            scores = position_dependent([part])[0]
            for row in range(part.shape[1]):
                for column in range(part.shape[2]):
                    found.setdefault((top + row, left + column), []).append(scores[:, row, column])
    result = torch.empty(3, height, width)
    for (row, column), scores in found.items():
        result[:, row, column] = torch.stack(scores).mean(0)
    return result


@pytest.mark.parametrize("shape", [(2, 11, 17), (1, 17, 6), (5, 4, 4), (3, 2, 9), (3, 5, 5), (3, 1, 1)])
@pytest.mark.parametrize("window", [SlidingWindow(4, 3), SlidingWindow(4, 4), SlidingWindow(5, 1)])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_as_a_plain_loop(shape, window, batch_size):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    got = slide(image, window, position_dependent, batch_size)
    torch.testing.assert_close(got, plain_loop(image, window.size, window.stride))


def test_two_overlapping_windows_by_hand():
    scores = iter([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    got = slide(
        torch.zeros(1, 1, 5), SlidingWindow(3, 2), lambda windows: [torch.tensor([[next(scores)]]) for _ in windows]
    )
    assert got.tolist() == [[[1.0, 2.0, 6.5, 20.0, 30.0]]]


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (7, [6])])
def test_windows_come_in_batches(batch_size, sizes):
    got = []

    def predict(windows):
        got.append(len(windows))
        return [window.clone() for window in windows]

    image = torch.rand(2, 4, 6)
    torch.testing.assert_close(slide(image, SlidingWindow(2, 2), predict, batch_size), image)
    assert got == sizes
