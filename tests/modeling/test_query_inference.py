"""Segments made from classified masks, compared with Mask2Former's loops over queries."""

from typing import Any

import pytest
import torch
from torch import Tensor

from famix.modeling.query.inference import instances, panoptic_segments, semantic_scores

SIZE = (12, 17)
THINGS = (2, 4)
NUM_CLASSES = 5


def random_output(seed: int, num_queries: int = 20) -> tuple[Tensor, Tensor]:
    """Make class logits and mask probabilities of blobs, with some confident queries and some without an object."""
    generator = torch.Generator().manual_seed(seed)
    classes = 5 * torch.randn(num_queries, NUM_CLASSES + 1, generator=generator)
    coarse = 4 * torch.randn(1, num_queries, 3, 4, generator=generator)
    return classes, torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0].sigmoid()


def plain_panoptic(
    classes: Tensor, masks: Tensor, object_threshold: float, overlap_threshold: float
) -> tuple[Tensor, Any]:
    """Follow Mask2Former's panoptic_inference."""
    scores, labels = classes.softmax(-1).max(-1)
    keep = labels.ne(NUM_CLASSES) & (scores > object_threshold)
    scores, labels, masks = scores[keep], labels[keep], masks[keep]
    panoptic, segments, stuff = torch.zeros(SIZE, dtype=torch.int32), [], {}
    if not len(labels):
        return panoptic, segments
    owners = (scores.view(-1, 1, 1) * masks).argmax(0)
    for query, label in enumerate(labels.tolist()):
        area, original = (owners == query).sum().item(), (masks[query] >= 0.5).sum().item()
        mask = (owners == query) & (masks[query] >= 0.5)
        if area > 0 and original > 0 and mask.sum().item() > 0:
            if area / original < overlap_threshold:
                continue
            if label not in THINGS:
                if label in stuff:
                    panoptic[mask] = stuff[label]
                    continue
                stuff[label] = len(segments) + 1
            panoptic[mask] = len(segments) + 1
            segments.append({"id": len(segments) + 1, "isthing": label in THINGS, "category_id": label})
    return panoptic, segments


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.4), (0.8, 0.3), (1.0, 0.8)])
def test_panoptic_segments_equal_a_plain_loop(thresholds: tuple[float, float]) -> None:
    found = 0
    for seed in range(12):
        classes, masks = random_output(seed)
        object_threshold, overlap_threshold = thresholds
        panoptic, segments = panoptic_segments(
            classes, masks, THINGS, object_threshold=object_threshold, overlap_threshold=overlap_threshold
        )
        expected, expected_segments = plain_panoptic(classes, masks, *thresholds)
        assert panoptic.dtype == torch.int32 and torch.equal(panoptic, expected)
        assert [{key: x[key] for key in ("id", "isthing", "category_id")} for x in segments] == expected_segments
        assert all(object_threshold < x["score"] <= 1 for x in segments)
        found += len(segments)
    assert bool(found) == (thresholds[0] < 1)


def test_semantic_scores_weight_masks_with_class_probabilities() -> None:
    classes, masks = random_output(0)
    scores = semantic_scores(classes, masks)
    assert scores.shape == (NUM_CLASSES, *SIZE)
    probabilities = classes.softmax(-1)
    for label in range(NUM_CLASSES):
        expected = sum(probabilities[query, label] * masks[query] for query in range(len(masks)))
        torch.testing.assert_close(scores[label], expected)


def test_instances_equal_a_plain_loop() -> None:
    classes, masks = random_output(1)
    masks[3] = 0.1  # empty
    probabilities = classes.softmax(-1)
    candidates = sorted(
        ((probabilities[query, label].item(), query, label) for query in range(len(masks)) for label in THINGS),
        reverse=True,
    )
    expected = [entry for entry in candidates[:9] if entry[1] != 3]
    found = instances(classes, masks, THINGS, most=9)
    assert found.image_size == SIZE and found.pred_classes.tolist() == [label for *_, label in expected]
    for place, (probability, query, _) in enumerate(expected):
        inside = masks[query] > 0.5
        assert torch.equal(found.pred_masks[place], inside)
        assert found.scores[place].item() == pytest.approx(probability * masks[query][inside].mean().item(), rel=1e-5)
        rows, columns = inside.nonzero(as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.pred_boxes.tensor[place].tolist() == [float(side) for side in box]
    assert len(instances(classes, masks * 0, THINGS, most=100)) == 0
