"""Segments from the outputs of an exported query head, with NumPy only.

Shapes: Q queries, K classes, masks of h x w cells for an image of H x W pixels.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIDE = 4
"""Pixels per cell of the mask logits along each axis."""

Array = NDArray[Any]


def panoptic_segments(
    class_logits: Array,
    mask_logits: Array,
    size: tuple[int, int],
    things: Collection[int],
    *,
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Array, list[dict[str, Any]]]:
    """Combine masks into non-overlapping segments. Each pixel belongs to the query with the highest score there.

    Args:
        class_logits: (Q, K + 1), the last of which is "no object".
        mask_logits: (Q, h, w).
        size: (H, W).
        things: train ids of thing classes. Segments of the same stuff class are merged.
        object_threshold: queries with a lower class probability are dropped.
        overlap_threshold: queries are dropped if a smaller fraction of their mask is left.

    Returns:
        (H, W) int32 segment ids, 0 outside all segments, and a dict with "id", "isthing", "category_id" (train id), "score"
        and "area" in pixels for each segment, in the order of the queries.
    """
    probabilities = softmax(class_logits)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    kept = (labels < class_logits.shape[1] - 1) & (scores > object_threshold)
    labels, scores = labels[kept], scores[kept]
    panoptic = np.zeros(size, np.int32)
    segments: list[dict[str, Any]] = []
    if not len(labels):
        return panoptic, segments
    masks = mask_probabilities(mask_logits[kept], size)
    owners = (scores[:, None, None] * masks).argmax(axis=0)
    stuff: dict[int, dict[str, Any]] = {}
    for query, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        won, inside = owners == query, masks[query] >= 0.5
        visible = won & inside
        if not visible.any() or won.sum() / inside.sum() < overlap_threshold:
            continue
        segment = stuff.get(label)
        if segment is None:
            segment = {
                "id": len(segments) + 1,
                "isthing": label in things,
                "category_id": label,
                "score": score,
                "area": 0,
            }
            segments.append(segment)
            if label not in things:
                stuff[label] = segment
        panoptic[visible] = segment["id"]
        segment["area"] += int(visible.sum())
    return panoptic, segments


def instances(
    class_logits: Array, mask_logits: Array, size: tuple[int, int], things: Collection[int], *, most_instances: int
) -> list[dict[str, Any]]:
    """Return the most confident instances, whose masks may overlap.

    Args:
        class_logits, mask_logits, size, things: see `panoptic_segments`.
        most_instances: maximum number of instances.

    Returns:
        Dicts with "mask" (H, W) bool, "category_id" (train id) and "score", by descending class probability. The score is
        the class probability times the mean mask probability inside the mask.
    """
    thing_ids = np.array(sorted(things))
    probabilities = softmax(class_logits)[:, thing_ids].ravel()
    best = np.argsort(-probabilities, kind="stable")[:most_instances]
    queries, labels = best // len(thing_ids), thing_ids[best % len(thing_ids)]
    masks: dict[int, Array] = {}
    quality: dict[int, float] = {}
    for query in np.unique(queries).tolist():
        mask = mask_probabilities(mask_logits[query : query + 1], size)[0]
        masks[query] = mask > 0.5
        quality[query] = float(mask[masks[query]].mean()) if masks[query].any() else 0.0
    return [
        {"mask": masks[query], "category_id": label, "score": probability * quality[query]}
        for query, label, probability in zip(
            queries.tolist(), labels.tolist(), probabilities[best].tolist(), strict=True
        )
        if masks[query].any()
    ]


def mask_probabilities(mask_logits: Array, size: tuple[int, int]) -> Array:
    """Resize mask logits (Q, h, w) bilinearly to the image, and return probabilities (Q, H, W)."""
    for axis, length in ((1, size[0]), (2, size[1])):
        last = mask_logits.shape[axis] - 1
        places = np.clip((np.arange(length, dtype=np.float32) + 0.5) / STRIDE - 0.5, 0, last)
        low = places.astype(np.int64)
        weights = (places - np.floor(places)).reshape((-1, 1) if axis == 1 else (-1,))
        lower, upper = mask_logits.take(low, axis), mask_logits.take(np.minimum(low + 1, last), axis)
        mask_logits = lower + weights * (upper - lower)
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-mask_logits)))


def softmax(logits: Array) -> Array:
    """Return probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
