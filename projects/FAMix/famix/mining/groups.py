"""Which batches are optimised together: neighbours in the pass, as many as keep a device busy.

A group is a fixed range of batch numbers that follows from the settings alone. Whatever stops a pass, and however many
processes share it, a group is mined whole or not at all, so that rounding, which depends on what is computed together,
is the same in every case.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TypeVar

__all__ = ["batches_per_group", "in_groups"]

T = TypeVar("T")

_VALUES = 2**21  # of patches that are optimised together; fewer leave cores idle, more bring nothing but use memory


def batches_per_group(images: int, patches_per_image: int, num_classes: int, values_per_patch: int) -> int:
    """How many batches a group has.

    Args:
        images: of a batch.
        patches_per_image: cells of the grid.
        num_classes: that a style can be mined for; a batch has at most one of each, and one of unlabelled patches.
        values_per_patch: channels times cells of a pooled patch.

    Returns:
        1 or more; 1 wherever a single batch is enough work.
    """
    styles = min(num_classes + 1, images * patches_per_image)
    return max(1, _VALUES // (styles * values_per_patch))


def in_groups(numbered: Iterable[tuple[int, T]], size: int) -> Iterator[list[tuple[int, T]]]:
    """Put neighbours together.

    Args:
        numbered: pairs of a number and anything, by ascending number.
        size: of a group: number n belongs to group n // size.
    """
    for _, group in groupby(numbered, key=lambda pair: pair[0] // size):
        yield list(group)
