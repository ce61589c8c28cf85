"""Picture styles for training loops of other projects, as a Detectron2 augmentation and a torch transform.

Picture styles are mined with MODEL.STYLE.STAGE image and MODEL.STYLE.GRID [1, 1]. They change the mean and standard
deviation of an image's channels, so labels, boxes and masks stay valid.
"""

import math
from typing import Any, Self

import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from famix.style.bank import StyleBank
from famix.style.restyler import sample_alpha
from famix.style.statistics import channel_mean_std
from famix.utils.errors import BankError, ConfigError
from famix.utils.messages import counted

_OVERSHOOT = 64  # by which resized floats may leave 0-255
_MOST_NORMALIZED = 4  # above the values of images that are normalized by mean and standard deviation


class PictureTransform(T.Transform):
    """Affine map of the pixel values of each channel, which commutes with flips, crops and other geometric transforms.

    Args:
        scale, shift: one number per channel; a pixel value v becomes scale * v + shift, clipped to [0, 255].
    """

    def __init__(self, scale: ArrayLike, shift: ArrayLike) -> None:
        super().__init__()
        self.scale, self.shift = np.asarray(scale, np.float32), np.asarray(shift, np.float32)

    def apply_image(self, img: NDArray[Any]) -> NDArray[Any]:
        """Return an image (H, W, C) in pixel values 0-255, in its dtype."""
        changed = (img * self.scale + self.shift).clip(0, 255)
        return (changed.round() if np.issubdtype(img.dtype, np.integer) else changed).astype(img.dtype)

    def apply_coords(self, coords: NDArray[Any]) -> NDArray[Any]:
        """Return coordinates unchanged."""
        return coords

    def apply_segmentation(self, segmentation: NDArray[Any]) -> NDArray[Any]:
        """Return labels unchanged."""
        return segmentation

    def inverse(self) -> T.Transform:
        """Return a transform without effect, as for other color transforms of Detectron2."""
        return T.NoOpTransform()


class PictureStyles(nn.Module):
    """Torch transform that gives each image a random style of a bank.

    Args:
        bank: bank of picture styles. Their classes are not used.
        probability: fraction of restyled images, in [0, 1].
        beta: parameter > 0 of alpha ~ Beta(beta, beta), the weight of the image's own statistics per channel; None uses the
            style alone.
        generator: random number generator on the CPU; None uses torch's global generator, as torchvision does.

    Raises:
        BankError: the bank is empty or contains styles of features.
        ConfigError: an argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        bank: StyleBank,
        probability: float = 0.5,
        beta: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(bank, StyleBank):
            raise ConfigError(
                f"bank must be a StyleBank, got {type(bank).__name__}. Use PictureStyles.load to read a file."
            )
        stage = bank.metadata.get("stage", "image")
        if not len(bank) or bank.num_channels != 3 or stage != "image":
            raise BankError(
                f"The bank must contain picture styles, got {counted(len(bank), 'style')} with {counted(bank.num_channels, 'channel')} of stage "
                f"{stage}. Mine it with MODEL.STYLE.STAGE image."
            )
        if not (isinstance(probability, int | float | np.floating) and 0 <= probability <= 1):
            raise ConfigError(f"probability must be in [0, 1], got {probability!r}. Use 1 to restyle every image.")
        if beta is not None and not (isinstance(beta, int | float | np.floating) and 0 < beta < math.inf):
            raise ConfigError(f"beta must be a number greater than 0 or None, got {beta!r}. The paper uses 0.1.")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ConfigError(
                f"generator must be a torch.Generator or None, got {generator!r}. Use torch.Generator().manual_seed."
            )
        self.bank, self.probability, self.beta, self.generator = bank, probability, beta, generator

    @classmethod
    def load(cls, path: str, **options: Any) -> Self:
        """Read the bank from a file. `options` are arguments of the constructor."""
        return cls(StyleBank.load(path), **options)

    def draw(self, image: Tensor) -> PictureTransform | None:
        """Draw a change for an image (3, H, W) in pixel values 0-255, RGB. None leaves the image unchanged.

        Raises:
            ConfigError: the image is not a tensor of this shape and range. Floats may exceed the range a little, as resized
                images do.
        """
        if not isinstance(image, Tensor) or image.dim() != 3 or len(image) != 3 or not image.numel():
            got = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ConfigError(f"image must be a tensor (3, H, W), got {got}. Transform images one by one.")
        _check_pixels(image)
        seed = int(torch.randint(1 << 62, (), generator=self.generator))
        generator = torch.Generator().manual_seed(seed)
        if torch.rand((), generator=generator) >= self.probability:
            return None
        row = int(torch.randint(len(self.bank), (), generator=generator))
        own_mean, own_std = (values.double().flatten().cpu() for values in channel_mean_std(image[None].float()))
        alpha: Tensor = torch.zeros(3, dtype=torch.float64)
        if self.beta is not None:
            alpha = sample_alpha((1, 3), self.beta, generator).flatten()
        mean, std = (values[row].double().cpu() for values in (self.bank.mean, self.bank.std))
        scale = torch.lerp(std, own_std, alpha) / own_std
        shift = torch.lerp(mean, own_mean, alpha) - scale * own_mean
        return PictureTransform(scale.tolist(), shift.tolist())

    def forward(self, image: Tensor) -> Tensor:
        """Restyle an image (3, H, W) in pixel values 0-255, RGB, of any dtype and device."""
        change = self.draw(image)
        if change is None:
            return image
        scale, shift = (
            torch.from_numpy(values).to(image.device).view(3, 1, 1) for values in (change.scale, change.shift)
        )
        changed = (image * scale + shift).clamp(0, 255)
        return (changed if image.is_floating_point() else changed.round()).to(image.dtype)


def _check_pixels(image: Tensor) -> None:
    """Raise ConfigError unless an image contains pixel values 0-255."""
    if image.dtype == torch.uint8:  # has no others
        return
    if image.dtype in (torch.bool, torch.int8) or image.is_complex():
        raise ConfigError(f"image must have pixel values 0-255, got {image.dtype}. Convert it to uint8 or float32.")
    low, high = (value.item() for value in image.float().aminmax())
    in_range = low >= -_OVERSHOOT and high <= 255 + _OVERSHOOT  # False for NaN
    scaled = image.is_floating_point() and low < high and (high <= 1 or (low < 0 and high <= _MOST_NORMALIZED))
    if not in_range or scaled:
        raise ConfigError(
            f"image must have pixel values 0-255, got {low:g} to {high:g}. Multiply values in 0-1 by 255, and restyle images "
            "before they are normalized."
        )


class PictureStyleAugmentation(T.Augmentation):
    """Detectron2 augmentation that gives each image a random style of a bank.

    Args:
        styles: the torch transform.
        image_format: "RGB", or "BGR", the default of Detectron2's mappers.
    """

    def __init__(self, styles: PictureStyles, image_format: str = "BGR") -> None:
        super().__init__()
        if not isinstance(styles, PictureStyles):
            raise ConfigError(f"styles must be PictureStyles, got {type(styles).__name__}. Use PictureStyles.load.")
        if image_format not in ("RGB", "BGR"):
            raise ConfigError(f"image_format must be RGB or BGR, got {image_format!r}. Use INPUT.FORMAT of the config.")
        self.styles, self.image_format = styles, image_format

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Draw a transform for an image (H, W, 3) in pixel values 0-255. Other images raise ConfigError."""
        if not (
            isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype.kind in "uif"
        ):
            got = f"shape {image.shape}, {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ConfigError(f"image must be an array (H, W, 3) of numbers, got {got}. Read images in color.")
        step = 1 if self.image_format == "RGB" else -1
        change = self.styles.draw(torch.from_numpy(image[..., ::step].transpose(2, 0, 1).copy()))
        if change is None:
            return T.NoOpTransform()
        return PictureTransform(change.scale[::step], change.shift[::step])
