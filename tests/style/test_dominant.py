from collections import Counter

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.style import dominant_labels, patch_classes
from famix.utils.errors import ConfigError


def dominant_by_loop(labels, grid):
    """Count, then take the most frequent id, of several the smallest."""
    result = torch.empty(len(labels), *grid, dtype=torch.int64)
    for image, label in enumerate(labels):
        for row, band in enumerate(label.tensor_split(grid[0], 0)):
            for col, patch in enumerate(band.tensor_split(grid[1], 1)):
                counts = Counter(patch.flatten().tolist())
                result[image, row, col] = min(counts, key=lambda i: (-counts[i], i))
    return result


@pytest.mark.parametrize(
    ("size", "grid"), [((9, 9), (3, 3)), ((8, 10), (2, 5)), ((7, 11), (3, 2)), ((5, 4), (5, 4)), ((6, 6), (1, 1))]
)
@pytest.mark.parametrize("ids", [(0, 1, 2, 255), tuple(range(256))])
def test_equals_a_plain_loop(size, grid, ids):
    draw = torch.randint(len(ids), (3, *size), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor(ids)[draw]
    got = dominant_labels(labels, grid)
    assert got.dtype == torch.int64
    assert torch.equal(got, dominant_by_loop(labels, grid))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_type(dtype):
    labels = torch.tensor([[[3, 255], [255, 4]]], dtype=torch.uint8).to(dtype)
    assert dominant_labels(labels, (1, 1)).tolist() == [[[255]]]
    assert dominant_labels(labels, (2, 2)).tolist() == [[[3, 255], [255, 4]]]


@pytest.mark.parametrize(
    ("row", "winner"),
    [([7, 2, 7, 2], 2), ([255, 0, 0, 255], 0), ([255, 255, 255, 0], 255), ([9, 8, 7, 6], 6), ([254, 255], 254)],
)
def test_ties_go_to_the_smallest_id_and_255_counts(row, winner):
    assert dominant_labels(torch.tensor([[row]]), (1, 1)).item() == winner


@pytest.mark.parametrize("ignore", [-1, -100, 256, 1000])
def test_an_ignore_label_outside_the_ids_competes_as_the_largest(ignore):
    def winner(*row):
        return dominant_labels(torch.tensor([[row]]), (1, 1), ignore).item()

    assert winner(ignore, ignore, 255) == ignore
    assert winner(ignore, 255) == 255
    assert winner(ignore, 0) == 0
    assert winner(ignore, 5, 5) == 5


def test_outside_ignore_labels_of_a_batch_stay_in_their_patch():
    labels = torch.tensor([[[-1, 255], [0, -1]], [[1, -1], [255, 3]]])
    assert torch.equal(dominant_labels(labels, (2, 2), -1), labels)


@pytest.mark.parametrize("ignore", [-1, 11, 255, 300])
def test_patch_classes_call_unlabelled_patches_255(ignore):
    labels = torch.tensor([[[ignore, ignore, 2, 3, 3, ignore]]])
    assert patch_classes(labels, (1, 2), ignore).tolist() == [[[255, 3]]]
    assert dominant_labels(labels, (1, 2), ignore).tolist() == [[[ignore, 3]]]


@pytest.mark.parametrize("wrong", [-1, 256, 300, -300])
@pytest.mark.parametrize("ignore_label", [255, 65535])
def test_ids_that_would_count_for_another_patch_are_refused(wrong, ignore_label):
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[1, 2, 2] = wrong
    with expect_error(ConfigError, "labels", wrong, "train ids"):
        dominant_labels(labels, (2, 2), ignore_label)


def test_labels_are_integers_of_three_axes():
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    for wrong in (labels[0], labels[None], labels.float(), labels.bool()):
        with expect_error(ConfigError, "labels", tuple(wrong.shape)):
            dominant_labels(wrong, (2, 2))
    assert dominant_labels(labels - 1, (1, 1), ignore_label=-1).flatten().tolist() == [-1, -1]


@pytest.mark.parametrize(
    "labels", [np.zeros((1, 4, 4), np.uint8), [[[0]]], None], ids=lambda value: type(value).__name__
)
def test_labels_that_are_no_tensor_are_refused(labels):
    with expect_error(ConfigError, "labels", type(labels).__name__, "torch.as_tensor"):
        dominant_labels(labels, (2, 2))
