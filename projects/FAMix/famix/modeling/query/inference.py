"""Semantic, panoptic and instance segmentation from classified masks, in the output formats of Detectron2.

Shapes: Q queries, K classes, masks of H x W pixels.
"""

from collections.abc import Collection
from typing import Any

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor

_MASK_THRESHOLD = 0.5


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Sum the masks, weighted with the class probabilities of their queries.

    Args:
        classes: class logits (..., Q, K + 1), the last of which is "no object".
        masks: mask probabilities (..., Q, H, W).

    Returns:
        (..., K, H, W) scores, at least 0.
    """
    return torch.einsum("...qk,...qhw->...khw", classes.softmax(dim=-1)[..., :-1], masks)


def panoptic_segments(
    classes: Tensor,
    masks: Tensor,
    things: Collection[int],
    *,
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Combine masks into non-overlapping segments. Each pixel belongs to the query with the highest score there.

    Args:
        classes: class logits (Q, K + 1), the last of which is "no object".
        masks: mask probabilities (Q, H, W).
        things: train ids of thing classes. Segments of the same stuff class are merged.
        object_threshold: queries with a lower class probability are dropped.
        overlap_threshold: queries are dropped if a smaller fraction of their mask is left.

    Returns:
        (H, W) int32 segment ids, 0 outside all segments, and a dict with "id", "isthing", "category_id" and "score" for each
        segment, in the order of the queries.
    """
    scores, labels = classes.softmax(dim=-1).max(dim=-1)
    kept = (labels < classes.shape[-1] - 1) & (scores > object_threshold)
    scores, labels, masks = scores[kept], labels[kept], masks[kept]
    if not len(labels):
        return torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device), []
    owners = (scores[:, None, None] * masks).argmax(dim=0)
    inside = masks >= _MASK_THRESHOLD
    owned = inside.gather(0, owners[None])[0]
    total = inside.flatten(1).sum(dim=1)
    won, visible = (places.bincount(minlength=len(labels)) for places in (owners.flatten(), owners[owned]))
    # Like Mask2Former, compare all the pixels that a query has won with the pixels inside its mask.
    valid = (visible > 0) & (won / total.clamp(min=1) >= overlap_threshold)
    ids = [0] * len(labels)
    segments: list[dict[str, Any]] = []
    stuff_ids: dict[int, int] = {}
    for query, (is_valid, label, score) in enumerate(
        zip(valid.tolist(), labels.tolist(), scores.tolist(), strict=True)
    ):
        if is_valid:
            ids[query] = stuff_ids.get(label, len(segments) + 1)
            if ids[query] > len(segments):
                is_thing = label in things
                segments.append({"id": ids[query], "isthing": is_thing, "category_id": label, "score": score})
                if not is_thing:
                    stuff_ids[label] = ids[query]
    panoptic = torch.tensor(ids, dtype=torch.int32, device=masks.device)[owners]
    return panoptic.masked_fill_(~owned, 0), segments


def instances(classes: Tensor, masks: Tensor, things: Collection[int], *, most: int) -> Instances:
    """Return the most confident instances. Each query can yield one instance per thing class.

    Args:
        classes: class logits (Q, K + 1), the last of which is "no object".
        masks: mask probabilities (Q, H, W).
        things: train ids of thing classes.
        most: maximum number of instances.

    Returns:
        Instances without empty masks, by descending class probability, with `pred_masks` (N, H, W) bool, `pred_boxes`,
        `pred_classes` (train ids) and `scores`, the class probability times the mean mask probability inside the mask.
    """
    ids = torch.tensor(sorted(things), device=classes.device)
    probabilities = classes.softmax(dim=-1)[:, ids]
    found = probabilities.flatten().topk(min(most, probabilities.numel()))
    queries = found.indices // len(ids)
    labels = ids[found.indices % len(ids)]
    used, places = queries.unique(return_inverse=True)
    inside = masks[used] > _MASK_THRESHOLD
    areas = inside.flatten(1).sum(dim=1)
    quality = (masks[used] * inside).flatten(1).sum(dim=1) / areas.clamp(min=1)
    visible = areas[places] > 0
    places = places[visible]
    binary = BitMasks(inside[places])
    return Instances(
        tuple(masks.shape[-2:]),
        pred_masks=binary.tensor,
        pred_boxes=binary.get_bounding_boxes(),
        pred_classes=labels[visible],
        scores=found.values[visible] * quality[places],
    )
