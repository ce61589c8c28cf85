from collections import Counter

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.style import dominant_labels, patch_classes
from famix.utils.errors import ConfigError

LABELS = torch.zeros(2, 4, 4, dtype=torch.int64)


def dominant_by_loop(labels, grid):
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
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int16, torch.int32])
def test_equals_plain_loop(size, grid, ids, dtype):
    draw = torch.randint(len(ids), (3, *size), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor(ids)[draw].to(dtype)
    got = dominant_labels(labels, grid)
    assert got.dtype == torch.int64 and torch.equal(got, dominant_by_loop(labels, grid))


@pytest.mark.parametrize(
    ("row", "ignore", "winner"),
    [([7, 2, 7, 2], 255, 2), ([255, 0, 0, 255], 255, 0), ([255, 255, 255, 0], 255, 255), ([254, 255], 255, 254)]
    # Outside the ids, the ignore label counts as the largest.
    + [(row, ignore, winner) for ignore in (-1, -100, 256, 1000)
       for row, winner in (([ignore, ignore, 255], ignore), ([ignore, 255], 255), ([ignore, 0], 0), ([ignore, 5, 5], 5))],
)  # fmt: skip
def test_ties_go_to_the_smallest_id(row, ignore, winner):
    assert dominant_labels(torch.tensor([[row]]), (1, 1), ignore).item() == winner


def test_foreign_ignore_labels_stay_in_their_patch():
    labels = torch.tensor([[[-1, 255], [0, -1]], [[1, -1], [255, 3]]])
    assert torch.equal(dominant_labels(labels, (2, 2), -1), labels)


@pytest.mark.parametrize("ignore", [-1, 11, 255, 300])
def test_patch_classes_map_the_ignore_label_to_255(ignore):
    labels = torch.tensor([[[ignore, ignore, 2, 3, 3, ignore]]])
    assert patch_classes(labels, (1, 2), ignore).tolist() == [[[255, 3]]]
    assert dominant_labels(labels, (1, 2), ignore).tolist() == [[[ignore, 3]]]


@pytest.mark.parametrize("wrong", [-1, 256, 300, -300])
@pytest.mark.parametrize("ignore_label", [255, 65535])
def test_rejects_ids_out_of_range(wrong, ignore_label):
    labels = LABELS.clone()
    labels[1, 2, 2] = wrong
    with expect_error(ConfigError, "labels", wrong, "train ids"):
        dominant_labels(labels, (2, 2), ignore_label)


def test_rejects_other_types_and_shapes():
    for wrong in (LABELS[0], LABELS[None], LABELS.float(), LABELS.bool()):
        with expect_error(ConfigError, "labels", tuple(wrong.shape)):
            dominant_labels(wrong, (2, 2))
    for wrong in (np.zeros((1, 4, 4), np.uint8), [[[0]]], None):
        with expect_error(ConfigError, "labels", type(wrong).__name__, "torch.as_tensor"):
            dominant_labels(wrong, (2, 2))
