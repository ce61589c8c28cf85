"""From a dataset dict with a panoptic label to what a panoptic network trains with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from famix.data.augmentation import ColorJitter, CropSampler
from famix.data.classes import is_panoptic, require_same_things
from famix.data.images import MAX_PIXELS, require_same_size
from famix.data.labels import LabelReader
from famix.data.mapper import FAMixDatasetMapper
from famix.data.panoptic.segments import decode_numbers, encode_numbers, read_segments
from famix.data.panoptic.targets import MakeTargets, center_targets, instance_targets
from famix.utils.meta_architecture import trains_on

__all__ = ["PanopticDatasetMapper", "build_train_mapper"]


class PanopticDatasetMapper(FAMixDatasetMapper):
    """Reads an image with its panoptic label as a randomly transformed crop.

    Args:
        make_targets: see famix.data.panoptic.targets.
        crop: draws scale, crop and flip.
        jitter: draws changes of colour; None leaves the colours.
        label_readers: unused, see FAMixDatasetMapper.
        max_pixels: of a file, see INPUT.MAX_PIXELS.
    """

    @configurable
    def __init__(
        self,
        *,
        make_targets: MakeTargets,
        crop: CropSampler,
        jitter: ColorJitter | None = None,
        label_readers: Mapping[str, LabelReader] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(label_readers=label_readers, crop=crop, jitter=jitter, max_pixels=max_pixels)
        self._targets_of = make_targets

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:  # type: ignore[override]  # for training alone
        """Arguments from a config.

        Raises:
            ConfigError: a key has a value that cannot work, or a dataset is not panoptic.
        """
        classes = require_same_things(cfg.DATASETS.TRAIN)
        make = center_targets if "centers" in trains_on(cfg) else instance_targets
        return {**super().from_config(cfg, is_train=True), "make_targets": make(cfg, classes)}

    def _read_label(self, dataset_dict: dict[str, Any], image_shape: tuple[int, ...]) -> np.ndarray:
        label_file, segments = dataset_dict["pan_seg_file_name"], dataset_dict["segments_info"]
        numbers = read_segments(label_file, segments, dataset_dict.get("void_segments", ()), self._max_pixels)
        require_same_size(dataset_dict["file_name"], image_shape, label_file, numbers.shape)
        return encode_numbers(numbers)

    def _make_targets(self, dataset_dict: dict[str, Any], label: np.ndarray) -> dict[str, Any]:
        return self._targets_of(decode_numbers(label), dataset_dict["segments_info"])


def build_train_mapper(cfg: CfgNode) -> FAMixDatasetMapper:
    """The mapper that MODEL.META_ARCHITECTURE trains with.

    Boxes, masks and centres of instances are made for architectures that learn them, from datasets that have them;
    otherwise there are semantic labels alone.
    """
    if trains_on(cfg) != {"sem_seg"} and all(map(is_panoptic, cfg.DATASETS.TRAIN)):
        return PanopticDatasetMapper(cfg)
    return FAMixDatasetMapper(cfg, is_train=True)
