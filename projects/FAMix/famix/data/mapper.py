"""Dataset mappers: from a dataset dict to the tensors of an image and its targets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from famix.data.augmentation import ColorJitter, CropSampler, adjust_colors
from famix.data.classes import is_panoptic, require_same_things
from famix.data.images import MAX_PIXELS, MOST_PIXELS, read_image, require_same_size
from famix.data.labels import LabelReader
from famix.data.panoptic.segments import decode_numbers, encode_numbers, read_segments
from famix.data.panoptic.targets import MakeTargets, center_targets, instance_targets
from famix.data.records import label_file_of
from famix.data.registration import get_label_readers
from famix.utils.errors import ConfigError
from famix.utils.meta_architecture import trains_on

__all__ = ["FAMixDatasetMapper", "PanopticDatasetMapper", "build_train_mapper"]

_ROAD = 0  # label of padding in the released program


class FAMixDatasetMapper:
    """Reads an image: for training a random crop with its label, for tests the whole image.

    Args:
        label_readers: dataset name -> reader of its labels; not needed for tests.
        crop: draws scale, crop and flip; None, for tests, returns the whole image without label.
        jitter: draws changes of color; None keeps the colors.
        max_pixels: limit of INPUT.MAX_PIXELS.
    """

    @configurable
    def __init__(
        self,
        *,
        label_readers: Mapping[str, LabelReader] | None = None,
        crop: CropSampler | None = None,
        jitter: ColorJitter | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._max_pixels = max_pixels
        self._label_readers = label_readers or {}
        self._crop = crop
        self._jitter = jitter

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True, is_mining: bool = False) -> dict[str, Any]:
        """Read INPUT, DATASETS.TRAIN and MODEL.SEM_SEG_HEAD.IGNORE_VALUE.

        Args:
            cfg: the config.
            is_train: for training rather than for tests.
            is_mining: for mining styles: random crops of INPUT.CROP.SIZE without scaling and color changes.

        Raises:
            ConfigError: if a key has an unsupported value.
            DatasetError: if a dataset is unknown.
        """
        if cfg.INPUT.FORMAT != "RGB":
            raise ConfigError(f"INPUT.FORMAT must be 'RGB', which CLIP was trained with, got {cfg.INPUT.FORMAT!r}.")
        if not 0 < cfg.INPUT.MAX_PIXELS <= MOST_PIXELS:
            raise ConfigError(
                f"INPUT.MAX_PIXELS must be in [1, {MOST_PIXELS}], the limit of Pillow, got {cfg.INPUT.MAX_PIXELS}. Omit it for "
                "the default."
            )
        if not (is_train or is_mining):
            return {"max_pixels": cfg.INPUT.MAX_PIXELS}
        readers = get_label_readers(cfg.DATASETS.TRAIN, cfg.INPUT.MAX_PIXELS)
        expected = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        for name, reader in readers.items():
            if reader.ignore_label != expected:
                raise ConfigError(
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE must be {reader.ignore_label}, the ignore label of '{name}', got "
                    f"{expected}. Change the key, or 'ignore_label' in the dataset's definition."
                )
        jitter = ColorJitter(tuple(cfg.INPUT.COLOR_JITTER), cfg.INPUT.COLOR_JITTER_PROBABILITY)
        has_jitter = not is_mining and any(jitter.strengths) and jitter.probability
        return {
            "label_readers": readers,
            "crop": _crop_sampler(cfg, is_mining),
            "jitter": jitter if has_jitter else None,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Read one image.

        Args:
            dataset_dict: with `file_name` and, for training, `dataset_name` and `label_file_name` (or
                `sem_seg_file_name`, for datasets that other code registered); stays unchanged.
            rng: source of all randomness; None creates one.

        Returns:
            The entries of `dataset_dict` and
            image: (3, H, W) uint8, RGB.
            height, width: native size of the image file, in pixels.
            sem_seg: (H, W) int64 train ids; training and mining only.

        Raises:
            DatasetError: if a file is missing, damaged or does not match its dataset's definition, or if image and label
                differ in size.
        """
        image = read_image(dataset_dict["file_name"], max_pixels=self._max_pixels)
        result = {**dataset_dict, "height": image.shape[0], "width": image.shape[1]}
        if self._crop is None:
            return {**result, "image": _to_tensor(image)}
        label = self._read_label(dataset_dict, image.shape[:2])
        rng = np.random.default_rng() if rng is None else rng
        transforms = self._crop.draw(image.shape[:2], rng)
        result["image"] = _to_tensor(transforms.apply_image(image))
        result |= self._make_targets(dataset_dict, transforms.apply_segmentation(label))
        if self._jitter is not None:
            result["image"] = adjust_colors(result["image"], self._jitter.draw(rng))
        return result

    def _read_label(self, dataset_dict: dict[str, Any], image_shape: tuple[int, ...]) -> np.ndarray:
        label_file = label_file_of(dataset_dict)
        label = self._label_readers[dataset_dict["dataset_name"]].read(label_file)
        require_same_size(dataset_dict["file_name"], image_shape, label_file, label.shape)
        return label

    def _make_targets(self, dataset_dict: dict[str, Any], label: np.ndarray) -> dict[str, Any]:
        """Entries of a sample from the cropped result of `_read_label`."""
        return {"sem_seg": torch.from_numpy(label.astype(np.int64))}


class PanopticDatasetMapper(FAMixDatasetMapper):
    """Reads an image with its panoptic label as a random crop; classes and instances are transformed alike.

    Args:
        make_targets: see famix.data.panoptic.targets.
        options: arguments of FAMixDatasetMapper.
    """

    @configurable
    def __init__(self, *, make_targets: MakeTargets, **options: Any) -> None:
        super().__init__(**options)
        self._targets_of = make_targets

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:  # type: ignore[override]  # for training alone
        """Read the keys of FAMixDatasetMapper; all training datasets must be panoptic."""
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
    """Training mapper for MODEL.META_ARCHITECTURE.

    Targets of instances are made for architectures that train on them, from datasets that have them.
    """
    if trains_on(cfg) != {"sem_seg"} and all(map(is_panoptic, cfg.DATASETS.TRAIN)):
        return PanopticDatasetMapper(cfg)
    return FAMixDatasetMapper(cfg, is_train=True)


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # A copy in the memory order of the tensor: Pillow's arrays are read-only.
    return torch.from_numpy(image.transpose(2, 0, 1).copy(order="C"))


def _crop_sampler(cfg: CfgNode, is_mining: bool) -> CropSampler:
    crop, resized_to, flip = cfg.INPUT.CROP, cfg.INPUT.CROP_RESIZED_TO, cfg.INPUT.RANDOM_FLIP
    ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    for key, value, expected in (("ENABLED", crop.ENABLED, True), ("TYPE", crop.TYPE, "absolute")):
        if value != expected:
            raise ConfigError(
                f"INPUT.CROP.{key} must be {expected!r}, since training and mining use crops of one size, got {value!r}."
            )
    if flip not in ("horizontal", "none"):
        raise ConfigError(f"INPUT.RANDOM_FLIP must be 'horizontal' or 'none', got {flip!r}.")
    if is_mining:
        return CropSampler(tuple(crop.SIZE), ignore_label=ignore_label)
    return CropSampler(
        crop_size=tuple(crop.SIZE),
        scale_range=tuple(cfg.INPUT.SCALE_RANGE),
        resized_to=tuple(resized_to) if resized_to else None,
        flip=flip == "horizontal",
        ignore_label=_ROAD if cfg.INPUT.RELEASED_PADDING else ignore_label,
    )
