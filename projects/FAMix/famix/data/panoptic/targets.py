"""Training targets of panoptic heads, from a crop of a panoptic label."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances
from numpy.typing import NDArray

from famix.data.classes import PanopticClasses
from famix.data.panoptic.segments import Segment, semantic_labels, visible_segments

__all__ = ["center_targets", "instance_targets"]

MakeTargets = Callable[[NDArray[np.int32], list[Segment]], dict[str, Any]]
"""Maps the numbers (H, W) of a crop and all segments of the image to entries of a sample; see `read_segments`."""


def center_targets(cfg: CfgNode, classes: PanopticClasses) -> MakeTargets:
    """Semantic labels, centers of instances and offsets to them, by Detectron2's generator for Panoptic-DeepLab.

    Args:
        cfg: reads INPUT.{GAUSSIAN_SIGMA, IGNORE_STUFF_IN_OFFSET, SMALL_INSTANCE_AREA, SMALL_INSTANCE_WEIGHT,
            IGNORE_CROWD_IN_SEMANTIC} and MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
        classes: of the dataset.

    Returns:
        A function that returns "sem_seg" (H, W) int64, "center" (H, W), "offset" (2, H, W) and the weights of their
        losses.
    """
    from detectron2.projects.panoptic_deeplab.target_generator import (  # its package needs panopticapi
        PanopticDeepLabTargetGenerator,
    )

    generate = PanopticDeepLabTargetGenerator(
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        thing_ids=classes.things,
        sigma=cfg.INPUT.GAUSSIAN_SIGMA,
        ignore_stuff_in_offset=cfg.INPUT.IGNORE_STUFF_IN_OFFSET,
        small_instance_area=cfg.INPUT.SMALL_INSTANCE_AREA,
        small_instance_weight=cfg.INPUT.SMALL_INSTANCE_WEIGHT,
        ignore_crowd_in_semantic=cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC,
    )
    return partial(_center_entries, generate)  # a closure could not be pickled for a loader's workers


def _center_entries(
    generate: Callable[..., dict[str, Any]], numbers: NDArray[np.int32], segments: list[Segment]
) -> dict[str, Any]:
    return generate(numbers, visible_segments(numbers, segments))


def instance_targets(cfg: CfgNode, classes: PanopticClasses) -> MakeTargets:
    """Semantic labels, and the boxes and masks of instances.

    Args:
        cfg: reads MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
        classes: of the dataset.

    Returns:
        A function that returns "sem_seg" (H, W) int64 and "instances": Detectron2's Instances with `gt_boxes`, `gt_masks`
        (BitMasks) and `gt_classes`, the index of the class among the things. Crowds are excluded.
    """
    place_of = {train_id: place for place, train_id in enumerate(classes.things)}
    return partial(_instance_entries, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, place_of)


def _instance_entries(
    ignore_label: int, place_of: Mapping[int, int], numbers: NDArray[np.int32], segments: list[Segment]
) -> dict[str, Any]:
    chosen = [
        segment
        for segment in visible_segments(numbers, segments)
        if segment["category_id"] in place_of and not segment["iscrowd"]
    ]
    own_numbers = np.array([segment["id"] for segment in chosen], dtype=numbers.dtype)
    masks = BitMasks(torch.from_numpy(numbers[None] == own_numbers[:, None, None]))
    instances = Instances(numbers.shape)
    instances.gt_boxes = masks.get_bounding_boxes()
    instances.gt_masks = masks
    instances.gt_classes = torch.tensor([place_of[segment["category_id"]] for segment in chosen], dtype=torch.int64)
    semantic = semantic_labels(numbers, segments, ignore_label).astype(np.int64)
    return {"sem_seg": torch.from_numpy(semantic), "instances": instances}
