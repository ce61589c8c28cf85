"""Sliding windows: one map of scores from overlapping parts of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from famix.evaluation.protocols.resampling import Size, size_of

__all__ = ["Window", "slide"]


@dataclass(frozen=True)
class Window:
    """A square window and its steps, in pixels.

    The last window of a row or column is moved inwards, so that every window lies inside the image. Along a side that
    is shorter than the window, the window shrinks to it.

    Attributes:
        size: side of the window.
        stride: from one window to the next, 1 to `size`.
    """

    size: int
    stride: int

    def spans(self, length: int) -> list[slice]:
        """What the windows cover of a side of `length` pixels, in order."""
        last = max(length - self.size, 0)
        starts = [*range(0, last, self.stride), last]
        return [slice(start, start + min(self.size, length)) for start in starts]

    def count(self, size: Size) -> int:
        """Number of windows on an image of a size."""
        return len(self.spans(size[0])) * len(self.spans(size[1]))


def slide(
    image: Tensor, window: Window, predict: Callable[[list[Tensor]], list[Tensor]], batch_size: int = 1
) -> Tensor:
    """Mean of the windows' scores at every pixel.

    Only one map of the image's size is held, and the scores of one batch of windows.

    Args:
        image: (C, H, W).
        window: size and steps.
        predict: gives scores (K, h, w) for every part (C, h, w) of the image in its list.
        batch_size: windows that `predict` gets at once, at least 1.

    Returns:
        (K, H, W) of the scores' type.
    """
    rows, columns = (window.spans(side) for side in size_of(image))
    places = list(product(rows, columns))
    total: Tensor | None = None
    for first in range(0, len(places), batch_size):
        total = _add(total, image, places[first : first + batch_size], predict)
    assert total is not None
    heights, widths = (
        _coverage(total, spans, side) for spans, side in zip((rows, columns), size_of(image), strict=True)
    )
    return total.div_(heights[:, None] * widths)


def _add(
    total: Tensor | None,
    image: Tensor,
    places: list[tuple[slice, slice]],
    predict: Callable[[list[Tensor]], list[Tensor]],
) -> Tensor:
    # A function of its own, so that the scores of a batch are gone before the next is predicted.
    scores = predict([image[:, rows, columns] for rows, columns in places])
    if total is None:
        total = scores[0].new_zeros((len(scores[0]), *image.shape[-2:]))
    for (rows, columns), part in zip(places, scores, strict=True):
        total[:, rows, columns] += part
    return total


def _coverage(like: Tensor, spans: list[slice], length: int) -> Tensor:
    """How many spans cover each pixel of a side."""
    count = torch.zeros(length, dtype=like.dtype, device=like.device)
    for span in spans:
        count[span] += 1
    return count
