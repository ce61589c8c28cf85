"""Dataset mapper for panoptic models: random crops with training targets for their heads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances

from famix.data.classes import require_same_things
from famix.data.mapper import FAMixDatasetMapper, make_segments
from famix.data.meta_architecture import trains_on
from famix.data.panoptic.segments import Segment, read_segments, semantic_labels


class PanopticDatasetMapper(FAMixDatasetMapper):
    """Mapper from a dataset dict to a random crop with panoptic targets. Classes and instances are cropped together.

    For models that train on centers, samples contain the targets of Detectron2's Panoptic-DeepLab. For models that train on
    segments, they contain "segments" (see `make_segments`): one per thing instance and one per stuff class, without crowds.
    For other models, they contain "sem_seg" (H, W) int64 and "instances", a Detectron2 `Instances` object without crowds. It has
    `gt_boxes`, `gt_masks` (BitMasks) and `gt_classes`, the index of the class among the things. Segments of the classes in
    DATASETS.UNLABELED become void.

    Args:
        cfg: config in which all training datasets are panoptic.

    Raises:
        ConfigError: a key has an invalid value, or a training dataset is not panoptic.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self._things = require_same_things(cfg.DATASETS.TRAIN).things
        self._generate_centers = None
        if "centers" in trains_on(cfg):
            from detectron2.projects.panoptic_deeplab.target_generator import (  # the package requires panopticapi
                PanopticDeepLabTargetGenerator,
            )

            self._generate_centers = PanopticDeepLabTargetGenerator(
                ignore_label=self._ignore_label,
                thing_ids=self._things,
                sigma=cfg.INPUT.GAUSSIAN_SIGMA,
                ignore_stuff_in_offset=cfg.INPUT.IGNORE_STUFF_IN_OFFSET,
                small_instance_area=cfg.INPUT.SMALL_INSTANCE_AREA,
                small_instance_weight=cfg.INPUT.SMALL_INSTANCE_WEIGHT,
                ignore_crowd_in_semantic=cfg.INPUT.IGNORE_CROWD_IN_SEMANTIC,
            )

    def _read_label(self, dataset_dict: dict[str, Any]) -> tuple[str, np.ndarray]:
        label_file, segments = dataset_dict["pan_seg_file_name"], dataset_dict["segments_info"]
        numbers = read_segments(label_file, segments, dataset_dict.get("void_segments", ()), self._max_pixels)
        # A number needs two bytes. The third is 0, but padding fills it with the ignore label, which is usually not 0.
        return label_file, np.stack([numbers & 255, numbers >> 8, np.zeros_like(numbers)], axis=2).astype(np.uint8)

    def _train_ids(self, dataset_dict: dict[str, Any], label: np.ndarray) -> np.ndarray:
        segments = dataset_dict["segments_info"]
        return semantic_labels(self._numbers(label, segments), segments, self._ignore_label)

    def _numbers(self, label: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
        """Return the segment numbers (H, W) int32 in a label array, and 0 for padding and unlabeled classes."""
        numbers = np.where(label[..., 2] == 0, label[..., 0] + np.int32(256) * label[..., 1], 0).astype(np.int32)
        if self._unlabeled:
            is_labeled = [True, *(segment["category_id"] not in self._unlabeled for segment in segments)]
            numbers *= np.array(is_labeled)[numbers]
        return numbers

    def _make_targets(self, dataset_dict: dict[str, Any], label: np.ndarray) -> dict[str, Any]:
        segments = dataset_dict["segments_info"]
        numbers = self._numbers(label, segments)
        visible = [{**segments[number - 1], "id": int(number)} for number in np.unique(numbers) if number]
        if self._generate_centers is not None:
            return self._generate_centers(numbers, visible)
        semantic = torch.from_numpy(semantic_labels(numbers, segments, self._ignore_label).astype(np.int64))
        if self._makes_segments:
            return {"sem_seg": semantic, "segments": self._join_segments(numbers, visible)}
        chosen = [entry for entry in visible if entry["category_id"] in self._things and not entry["iscrowd"]]
        own_numbers = np.array([entry["id"] for entry in chosen], dtype=numbers.dtype)
        masks = BitMasks(torch.from_numpy(numbers[None] == own_numbers[:, None, None]))
        instances = Instances(numbers.shape, gt_boxes=masks.get_bounding_boxes(), gt_masks=masks)
        classes = [self._things.index(entry["category_id"]) for entry in chosen]
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        return {"sem_seg": semantic, "instances": instances}

    def _join_segments(self, numbers: np.ndarray, visible: list[dict[str, Any]]) -> Instances:
        """Return the target segments. All segments of a stuff class are merged into one."""
        places: dict[tuple[int, int], int] = {}  # (train id, number of the instance or 0) -> place in the result
        place_of = np.zeros(numbers.max() + 1, dtype=np.int32)
        for entry in visible:
            if not entry["iscrowd"]:
                instance = entry["id"] if entry["category_id"] in self._things else 0
                place_of[entry["id"]] = places.setdefault((entry["category_id"], instance), len(places) + 1)
        masks = place_of[numbers] == np.arange(1, len(places) + 1)[:, None, None]
        return make_segments(masks, [train_id for train_id, _ in places])
