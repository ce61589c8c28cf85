"""From a dataset dict to what the network reads: an image tensor and its label tensor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from famix.data.augmentation import ColorJitter, CropSampler, adjust_colors
from famix.data.images import MAX_PIXELS, read_image, require_same_size
from famix.data.labels import LabelReader
from famix.data.records import label_file_of
from famix.data.registration import get_label_readers
from famix.utils.errors import ConfigError

__all__ = ["FAMixDatasetMapper"]

_ROAD = 0  # with which the released program labels what it pads


class FAMixDatasetMapper:
    """Reads an image, for training with its label as a randomly changed crop, for tests whole and alone.

    Args:
        label_readers: dataset name -> reader of its labels; not needed for tests.
        crop: draws scale, crop and flip; None is for tests: the whole image, no label.
        jitter: draws changes of colour; None leaves the colours.
        max_pixels: of a file, see INPUT.MAX_PIXELS.
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
        """Arguments from a config.

        Args:
            cfg: reads INPUT, DATASETS.TRAIN and MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
            is_train: for training rather than for tests.
            is_mining: for mining styles, with or without `is_train`: random crops of INPUT.CROP.SIZE, unscaled and
                otherwise unchanged.

        Raises:
            ConfigError: a key has a value that this mapper cannot work with.
            DatasetError: a dataset is unknown.
        """
        if cfg.INPUT.FORMAT != "RGB":
            raise ConfigError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, expected 'RGB', which CLIP was trained with.")
        if not (is_train or is_mining):
            return {"max_pixels": cfg.INPUT.MAX_PIXELS}
        readers = get_label_readers(cfg.DATASETS.TRAIN, cfg.INPUT.MAX_PIXELS)
        _require_ignore_value(cfg, readers)
        return {
            "label_readers": readers,
            "crop": _crop_sampler(cfg, is_mining),
            "jitter": None if is_mining else _color_jitter(cfg),
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Read one image.

        Args:
            dataset_dict: with `file_name`, and for training `label_file_name` (or, of other code's datasets,
                `sem_seg_file_name`) and `dataset_name`; left as it is.
            rng: source of all randomness; None takes a fresh one.

        Returns:
            The entries of `dataset_dict` and
            image: (3, H, W) uint8, RGB.
            height, width: native size of the image file, in pixels.
            sem_seg: (H, W) int64 train ids; training and mining only.

        Raises:
            DatasetError: a file is missing, damaged or against its dataset's definition, or the label is of another
                size than the image.
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
        """Entries of a sample, from the part of `_read_label`'s result that the crop shows."""
        return {"sem_seg": torch.from_numpy(label.astype(np.int64))}


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # A copy, in the order of memory that the tensor has: Pillow's arrays cannot be written to.
    return torch.from_numpy(image.transpose(2, 0, 1).copy(order="C"))


def _crop_sampler(cfg: CfgNode, is_mining: bool) -> CropSampler:
    crop, resized_to, flip = cfg.INPUT.CROP, cfg.INPUT.CROP_RESIZED_TO, cfg.INPUT.RANDOM_FLIP
    ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if not crop.ENABLED or crop.TYPE != "absolute":
        raise ConfigError(
            f"INPUT.CROP.ENABLED is {crop.ENABLED} and INPUT.CROP.TYPE is {crop.TYPE!r}, expected True and 'absolute': "
            "training and mining work on crops of one size."
        )
    if flip not in ("horizontal", "none"):
        raise ConfigError(f"INPUT.RANDOM_FLIP is {flip!r}, expected 'horizontal' or 'none'.")
    if is_mining:
        return CropSampler(tuple(crop.SIZE), ignore_label=ignore_label)
    return CropSampler(
        crop_size=tuple(crop.SIZE),
        scale_range=tuple(cfg.INPUT.SCALE_RANGE),
        resized_to=tuple(resized_to) if resized_to else None,
        flip=flip == "horizontal",
        ignore_label=_ROAD if cfg.INPUT.RELEASED_PADDING else ignore_label,
    )


def _color_jitter(cfg: CfgNode) -> ColorJitter | None:
    jitter = ColorJitter(tuple(cfg.INPUT.COLOR_JITTER), cfg.INPUT.COLOR_JITTER_PROBABILITY)
    return jitter if any(jitter.strengths) and jitter.probability else None


def _require_ignore_value(cfg: CfgNode, readers: Mapping[str, LabelReader]) -> None:
    expected = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    for name, reader in readers.items():
        if reader.ignore_label != expected:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {expected}, but the dataset '{name}' has the ignore label "
                f"{reader.ignore_label}. Make them equal, here or in the dataset's definition."
            )
