"""Random augmentation of training images: `draw` samples parameters from a random generator, applying them is pure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from detectron2.data import transforms as T
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from famix.utils.errors import ConfigError

__all__ = ["ColorJitter", "CropSampler", "adjust_colors"]

_PAD_VALUE = 128.0  # a mid grey of 0-255, as in Detectron2's own padding crops


@dataclass(frozen=True)
class CropSampler:
    """Draws a random scale, a random crop of the scaled image, and a random horizontal flip.

    Scaling, cropping and resizing the crop are one resampling of the visible part of the image, which is much cheaper
    than scaling whole images. If the scaled image is smaller than the crop, the crop is padded at the bottom and right.

    Attributes:
        crop_size: (height, width) of the crop of the scaled image, in pixels.
        scale_range: (lowest, highest) scale factor, drawn uniformly.
        resized_to: (height, width) in pixels that the crop is resized to; None keeps its size.
        flip: mirror half of the images.
        ignore_label: label of padded pixels.

    Raises:
        ConfigError: if a size or a factor is not positive, or the range is descending.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float] = (1.0, 1.0)
    resized_to: tuple[int, int] | None = None
    flip: bool = False
    ignore_label: int = 255

    def __post_init__(self) -> None:
        for key, size in (("INPUT.CROP.SIZE", self.crop_size), ("INPUT.CROP_RESIZED_TO", self.resized_to)):
            if size is not None and (len(size) != 2 or any(int(side) != side or side < 1 for side in size)):
                raise ConfigError(f"{key} must be [height, width] in pixels, positive integers, got {list(size)}.")
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ConfigError(
                f"INPUT.SCALE_RANGE must be [lowest, highest] with 0 < lowest <= highest, got {list(self.scale_range)}."
            )

    def draw(self, image_size: tuple[int, int], rng: np.random.Generator) -> T.TransformList:
        """Draw the geometric transforms of one image.

        Args:
            image_size: (height, width) of the image, in pixels.
            rng: source of randomness.

        Returns:
            Transforms for (H, W, 3) images and, with `apply_segmentation`, (H, W) labels. Their results have the size
            `resized_to`, or `crop_size`.
        """
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
    """Draw start and length of the visible part of an image along one axis, and its length in the result.

    `length` is that of the image, `crop` of the crop of the scaled image, `final` of the resized crop, in pixels.
    """
    wanted = max(1, round(crop / scale))
    if wanted <= length:
        return int(rng.integers(length - wanted, endpoint=True)), wanted, final
    return 0, length, min(final, max(1, round(length * scale * final / crop)))


_ADJUSTMENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
}


@dataclass(frozen=True)
class ColorJitter:
    """Draws changes of brightness, contrast and saturation.

    Attributes:
        strengths: v >= 0 of brightness, contrast and saturation; the factor is drawn from [max(0, 1 - v), 1 + v].
        probability: of jittering an image, in [0, 1].

    Raises:
        ConfigError: unless there are three non-negative strengths and a probability in [0, 1].
    """

    strengths: tuple[float, float, float]
    probability: float = 1.0

    def __post_init__(self) -> None:
        if len(self.strengths) != len(_ADJUSTMENTS) or min(self.strengths) < 0:
            raise ConfigError(
                "INPUT.COLOR_JITTER must be three non-negative numbers (brightness, contrast, saturation), got "
                f"{list(self.strengths)}. [0, 0, 0] disables it."
            )
        if not 0 <= self.probability <= 1:
            raise ConfigError(
                f"INPUT.COLOR_JITTER_PROBABILITY must be a number from 0 to 1, got {self.probability}. "
                "1 jitters every image."
            )

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draw (name, factor) in random order for one image; empty for an image that stays unchanged."""
        strengths = np.asarray(self.strengths, dtype=float)
        factors = rng.uniform(np.maximum(0, 1 - strengths), 1 + strengths)
        names = list(_ADJUSTMENTS)
        order = rng.permutation(len(names))
        # The probability is drawn last, so that it does not affect the other draws.
        if self.probability < 1 and rng.random() >= self.probability:
            return []
        return [(names[place], float(factors[place])) for place in order]


def adjust_colors(image: Tensor, changes: list[tuple[str, float]]) -> Tensor:
    """Apply the result of `ColorJitter.draw` to an image (3, H, W) uint8 RGB, and return a new one."""
    for name, factor in changes:
        if factor != 1:
            image = _ADJUSTMENTS[name](image, factor)
    return image
