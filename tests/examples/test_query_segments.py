"""The NumPy functions of the ONNX example equal the query head's own functions."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from famix.modeling.query.inference import instances, panoptic_segments
from run_factory import load_tool

NUM_CLASSES, THINGS, SIZE = 5, (2, 4), (37, 50)  # of an image that is padded to 64 x 64


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_tool("query_segments", "examples")


def random_output(seed: int, num_queries: int = 20) -> tuple[Tensor, Tensor]:
    """Make class logits, some of them confident, and mask logits of blobs."""
    generator = torch.Generator().manual_seed(seed)
    classes = 5 * torch.randn(num_queries, NUM_CLASSES + 1, generator=generator)
    coarse = 4 * torch.randn(1, num_queries, 3, 4, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")[0]
    masks[num_queries // 2] = -9  # a query without a mask
    return classes, masks


def resized(masks: Tensor) -> Tensor:
    full = torch.nn.functional.interpolate(masks[None], (64, 64), mode="bilinear", align_corners=False)[0]
    return full[:, : SIZE[0], : SIZE[1]].sigmoid()


def test_masks_are_resized_like_those_of_the_network(example: ModuleType) -> None:
    _, masks = random_output(0)
    masks[0] = -1000
    got = example.mask_probabilities(masks.numpy(), SIZE)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, resized(masks), atol=1e-6)


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.4), (0.8, 0.3), (1.0, 0.8)])
def test_panoptic_segments_equal_those_of_the_network(example: ModuleType, thresholds: tuple[float, float]) -> None:
    options: dict[str, Any] = dict(zip(("object_threshold", "overlap_threshold"), thresholds, strict=True))
    found = 0
    for seed in range(6):
        classes, masks = random_output(seed)
        expected, described = panoptic_segments(classes, resized(masks), THINGS, **options)
        ids, segments = example.panoptic_segments(classes.numpy(), masks.numpy(), SIZE, THINGS, **options)
        assert (ids == expected.numpy()).mean() > 0.999 and ids.dtype == np.int32
        keys = ("id", "isthing", "category_id")
        assert [[entry[key] for key in keys] for entry in segments] == [
            [entry[key] for key in keys] for entry in described
        ]
        assert [entry["score"] for entry in segments] == pytest.approx(
            [entry["score"] for entry in described], abs=1e-6
        )
        assert [entry["area"] for entry in segments] == [(ids == entry["id"]).sum() for entry in segments]
        found += len(segments)
    assert (found > 6) == (thresholds[0] < 1)


@pytest.mark.parametrize("most", [7, 100])
def test_instances_equal_those_of_the_network(example: ModuleType, most: int) -> None:
    for seed in range(3):
        classes, masks = random_output(seed)
        expected = instances(classes, resized(masks), THINGS, most=most)
        found = example.instances(classes.numpy(), masks.numpy(), SIZE, THINGS, most_instances=most)
        assert [entry["category_id"] for entry in found] == expected.pred_classes.tolist()
        assert len(found) == 38 or most == 7  # without the two of the query without a mask
        assert [entry["score"] for entry in found] == pytest.approx(expected.scores.tolist(), abs=1e-5)
        assert (np.stack([entry["mask"] for entry in found]) == expected.pred_masks.numpy()).mean() > 0.999
