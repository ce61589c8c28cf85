"""Dataset mapper that reads an image and its label, and augments both.

Augmentations first draw their parameters from a random generator. Applying them is deterministic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from numpy.typing import NDArray

from famix.data.corruption import read_input
from famix.data.images import MOST_PIXELS, require_same_size
from famix.data.layout.split_files import label_file_of
from famix.data.meta_architecture import trains_on
from famix.data.photometric import AutoAugment, ColorJitter, adjust_colors
from famix.data.registration import get_label_readers
from famix.data.sampling.rare_classes import RARE_CLASS
from famix.data.vocabulary import unlabeled_classes
from famix.utils.errors import ConfigError

_PAD_VALUE = 128.0  # mid-gray, as in Detectron2's padded crops
_MOST_REDRAWS = 10  # of a crop that does not show the class drawn for it, as in DAFormer
_ROAD = 0  # label of padded pixels in the reference implementation


@dataclass(frozen=True)
class CropSampler:
    """Random scaling, random cropping of the scaled image, and random horizontal flipping.

    A single resampling of the visible part of the image scales, crops and resizes it, which is much cheaper than
    scaling whole images. If the scaled image is smaller than the crop, the crop is padded at the bottom and right.
    """

    crop_size: tuple[int, int]  # (height, width) of the crop from the scaled image, in pixels
    scale_range: tuple[float, float] = (1.0, 1.0)  # (lowest, highest) factor, drawn uniformly
    resized_to: tuple[int, int] | None = None  # (height, width) of the output; None for `crop_size`
    flip: bool = False  # mirror a random half of the images
    ignore_label: int = 255  # label of padded pixels

    def draw(self, image_size: tuple[int, int], rng: np.random.Generator) -> T.TransformList:
        """Draw transforms for (H, W, 3) images of this size and, via `apply_segmentation`, for their (H, W) labels."""
        scale = rng.uniform(*self.scale_range)
        final = self.resized_to or self.crop_size
        (top, height, shown_height), (left, width, shown_width) = (
            _draw_span(*sizes, scale, rng) for sizes in zip(image_size, self.crop_size, final, strict=True)
        )
        flip = rng.random() < 0.5
        changes: list[T.Transform] = [T.CropTransform(left, top, width, height)]
        if (height, width) != (shown_height, shown_width):
            changes.append(T.ResizeTransform(height, width, shown_height, shown_width))
        if (shown_height, shown_width) != tuple(final):
            right, bottom = final[1] - shown_width, final[0] - shown_height
            changes.append(T.PadTransform(0, 0, right, bottom, pad_value=_PAD_VALUE, seg_pad_value=self.ignore_label))
        if self.flip and flip:
            changes.append(T.HFlipTransform(final[1]))
        return T.TransformList(changes)


def _draw_span(length: int, crop: int, final: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw the start and length of the visible part of an image along one axis, and compute its output length."""
    wanted = max(1, round(crop / scale))
    if wanted <= length:
        return int(rng.integers(length - wanted, endpoint=True)), wanted, final
    return 0, length, min(final, max(1, round(length * scale * final / crop)))


class FAMixDatasetMapper:
    """Mapper from a dataset dict to a labeled random crop for training, or to the whole image for testing.

    Args:
        cfg: config; uses INPUT and, for training, DATASETS.TRAIN, DATASETS.UNLABELED, MODEL.SEM_SEG_HEAD.IGNORE_VALUE and
            DATALOADER.RARE_CLASS.MIN_PIXELS.
        is_train: whether the samples are for training rather than testing.
        is_mining: whether the samples are for style mining, i.e. random crops of INPUT.CROP.SIZE without scaling, flips
            or color changes.

    If the model trains on segments, training samples contain one segment per class (see `make_segments`).

    Raises:
        ConfigError: a key has an invalid value.
        DatasetError: a dataset is unknown.
    """

    def __init__(self, cfg: CfgNode, is_train: bool = True, is_mining: bool = False) -> None:
        options, ignore_label = cfg.INPUT, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        _check_input(options, is_train or is_mining)
        self._max_pixels: int = options.MAX_PIXELS
        self._ignore_label: int = ignore_label
        self._crop: CropSampler | None = None
        self._jitter: ColorJitter | None = None
        self._auto_augment: AutoAugment | None = None
        self._least_pixels = cfg.DATALOADER.RARE_CLASS.MIN_PIXELS / 2  # of the drawn class in a crop, as in DAFormer
        self._makes_segments = is_train and not is_mining and "segments" in trains_on(cfg)
        if not (is_train or is_mining):
            return
        self._label_readers = get_label_readers(cfg.DATASETS.TRAIN, options.MAX_PIXELS)
        for name, reader in self._label_readers.items():
            if reader.ignore_label != ignore_label:
                raise ConfigError(
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_label}, but the ignore label of dataset '{name}' is "
                    f"{reader.ignore_label}. Change the config key, or 'ignore_label' in the dataset definition."
                )
        self._unlabeled = unlabeled_classes(cfg)
        if is_mining:
            self._crop = CropSampler(tuple(options.CROP.SIZE), ignore_label=ignore_label)
            return
        self._crop = CropSampler(
            tuple(options.CROP.SIZE),
            scale_range=tuple(options.SCALE_RANGE),
            resized_to=tuple(options.CROP_RESIZED_TO) if options.CROP_RESIZED_TO else None,
            flip=options.RANDOM_FLIP == "horizontal",
            ignore_label=_ROAD if options.RELEASED_PADDING else ignore_label,
        )
        if any(options.COLOR_JITTER) and options.COLOR_JITTER_PROBABILITY:
            self._jitter = ColorJitter(tuple(options.COLOR_JITTER), options.COLOR_JITTER_PROBABILITY)
        if options.AUTO_AUGMENT.NAME:
            self._auto_augment = AutoAugment.from_config(options.AUTO_AUGMENT)

    def __call__(self, dataset_dict: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Create the sample for one dataset dict.

        Args:
            dataset_dict: dataset dict with `file_name` and, for training, `dataset_name` and `label_file_name` (or
                `sem_seg_file_name` if other code registered the dataset). It is not modified. If it contains `rare_class`,
                a train id, the crop is drawn again, up to ten times, until it shows enough pixels of this class.
            rng: random generator for all draws; None creates a new one.

        Returns:
            The entries of `dataset_dict`, "image" (3, H, W) uint8 in RGB, "height" and "width" of the image file and,
            for training and mining, "sem_seg" (H, W) int64 train ids.

        Raises:
            DatasetError: a file is missing, is damaged or does not match its dataset definition, or the image and its
                label differ in size.
        """
        image = read_input(dataset_dict, self._max_pixels)
        result = {**dataset_dict, "height": image.shape[0], "width": image.shape[1]}
        if self._crop is None:
            return {**result, "image": _to_tensor(image)}
        label_file, label = self._read_label(dataset_dict)
        require_same_size(dataset_dict["file_name"], image.shape[:2], label_file, label.shape[:2])
        rng = np.random.default_rng() if rng is None else rng
        transforms = self._crop.draw(image.shape[:2], rng)
        if RARE_CLASS in dataset_dict:
            for _ in range(_MOST_REDRAWS):
                train_ids = self._train_ids(dataset_dict, transforms.apply_segmentation(label))
                if (train_ids == dataset_dict[RARE_CLASS]).sum() >= self._least_pixels:
                    break
                transforms = self._crop.draw(image.shape[:2], rng)
        result["image"] = _to_tensor(transforms.apply_image(image))
        result |= self._make_targets(dataset_dict, transforms.apply_segmentation(label))
        if self._jitter is not None:
            result["image"] = adjust_colors(result["image"], self._jitter.draw(rng))
        if self._auto_augment is not None:
            result["image"] = self._auto_augment(result["image"], rng)
        if self._makes_segments:
            result["point_seed"] = int(rng.integers(1 << 62))
        return result

    def _read_label(self, dataset_dict: dict[str, Any]) -> tuple[str, np.ndarray]:
        """Return the label's path, and its content as an array that can be resampled without blending."""
        label_file = label_file_of(dataset_dict)
        label = self._label_readers[dataset_dict["dataset_name"]].read(label_file)
        if self._unlabeled:
            targets = np.arange(256, dtype=np.uint8)
            targets[list(self._unlabeled)] = self._ignore_label
            label = targets[label]
        return label_file, label

    def _train_ids(self, dataset_dict: dict[str, Any], label: np.ndarray) -> np.ndarray:
        """Return the train ids (H, W) of a cropped label array from `_read_label`."""
        return label

    def _make_targets(self, dataset_dict: dict[str, Any], label: np.ndarray) -> dict[str, Any]:
        """Return the target entries of a sample, given the cropped label array from `_read_label`."""
        targets: dict[str, Any] = {"sem_seg": torch.from_numpy(label.astype(np.int64))}
        if self._makes_segments:
            classes = np.setdiff1d(label, self._ignore_label)
            targets["segments"] = make_segments(label == classes[:, None, None], classes.tolist())
        return targets


def make_segments(masks: NDArray[np.bool_], classes: Sequence[int]) -> Instances:
    """Return the training target "segments": `gt_masks`, BitMasks (N, H, W), and `gt_classes` (N,) int64 train ids.

    Args:
        masks: (N, H, W).
        classes: train ids of the N segments, things and stuff.
    """
    gt_classes = torch.tensor(classes, dtype=torch.int64)
    return Instances(masks.shape[1:], gt_masks=BitMasks(torch.from_numpy(masks)), gt_classes=gt_classes)


def _check_input(options: CfgNode, labeled: bool) -> None:
    """Raise a ConfigError for an invalid INPUT value. Most keys matter only for labeled samples."""

    def is_size(value: Sequence[float]) -> bool:
        return len(value) == 2 and all(int(side) == side >= 1 for side in value)

    scales, jitter, resized_to = options.SCALE_RANGE, options.COLOR_JITTER, options.CROP_RESIZED_TO
    size = "[height, width] in pixels, as positive integers"
    rules = [
        ("FORMAT", options.FORMAT == "RGB", "'RGB', the format that CLIP was trained on"),
        ("MAX_PIXELS", 0 < options.MAX_PIXELS <= MOST_PIXELS, f"in [1, {MOST_PIXELS}] (Pillow's limit)"),
    ]
    if labeled:
        rules += [
            ("CROP.ENABLED", options.CROP.ENABLED, "True, because training and mining use crops of one size"),
            ("CROP.TYPE", options.CROP.TYPE == "absolute", "'absolute'"),
            ("CROP.SIZE", is_size(options.CROP.SIZE), size),
            ("CROP_RESIZED_TO", not resized_to or is_size(resized_to), f"{size}, or empty"),
            (
                "SCALE_RANGE",
                len(scales) == 2 and 0 < scales[0] <= scales[1],
                "[lowest, highest] with 0 < lowest <= highest",
            ),
            ("RANDOM_FLIP", options.RANDOM_FLIP in ("horizontal", "none"), "'horizontal' or 'none'"),
            ("COLOR_JITTER", len(jitter) == 3 and min(jitter) >= 0, "three numbers >= 0 ([0, 0, 0] disables jitter)"),
            ("COLOR_JITTER_PROBABILITY", 0 <= options.COLOR_JITTER_PROBABILITY <= 1, "a number from 0 to 1"),
        ]
    for key, is_valid, constraint in rules:
        if not is_valid:
            raise ConfigError(f"INPUT.{key} must be {constraint}, got {attrgetter(key)(options)!r}.")


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # Copy into the tensor's memory order, because Pillow's arrays are read-only.
    return torch.from_numpy(image.transpose(2, 0, 1).copy(order="C"))
