"""Picture styles for training loops of other projects, as a Detectron2 augmentation and a torch transform.

Picture styles are mined with MODEL.STYLE.STAGE image and MODEL.STYLE.GRID [1, 1]. They change the mean and standard
deviation of an image's channels, so labels, boxes and masks stay valid.
"""

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
        ConfigError: `probability` or `beta` is out of range.
    """

    def __init__(
        self,
        bank: StyleBank,
        probability: float = 0.5,
        beta: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        stage = bank.metadata.get("stage", "image")
        if not len(bank) or bank.num_channels != 3 or stage != "image":
            raise BankError(
                f"The bank must contain picture styles, got {counted(len(bank), 'style')} with {counted(bank.num_channels, 'channel')} of stage "
                f"{stage}. Mine it with MODEL.STYLE.STAGE image."
            )
        if not 0 <= probability <= 1:
            raise ConfigError(f"probability must be in [0, 1], got {probability}. Use 1 to restyle every image.")
        if beta is not None and not beta > 0:
            raise ConfigError(f"beta must be greater than 0 or None, got {beta}. The paper uses 0.1.")
        self.bank, self.probability, self.beta, self.generator = bank, probability, beta, generator

    @classmethod
    def load(cls, path: str, **options: Any) -> Self:
        """Read the bank from a file. `options` are arguments of the constructor."""
        return cls(StyleBank.load(path), **options)

    def draw(self, image: Tensor) -> PictureTransform | None:
        """Draw a change for an image (3, H, W) in pixel values 0-255, RGB. None leaves the image unchanged.

        Raises:
            ConfigError: the image is not a tensor of this shape.
        """
        if not isinstance(image, Tensor) or image.dim() != 3 or len(image) != 3:
            got = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ConfigError(f"image must be a tensor (3, H, W), got {got}. Transform images one by one.")
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


class PictureStyleAugmentation(T.Augmentation):
    """Detectron2 augmentation that gives each image a random style of a bank.

    Args:
        styles: the torch transform.
        image_format: "RGB", or "BGR", the default of Detectron2's mappers.
    """

    def __init__(self, styles: PictureStyles, image_format: str = "BGR") -> None:
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ConfigError(f"image_format must be RGB or BGR, got {image_format!r}. Use INPUT.FORMAT of the config.")
        self.styles, self.image_format = styles, image_format

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Draw a transform for an image (H, W, 3) in pixel values 0-255."""
        step = 1 if self.image_format == "RGB" else -1
        change = self.styles.draw(torch.from_numpy(image[..., ::step].transpose(2, 0, 1).copy()))
        if change is None:
            return T.NoOpTransform()
        return PictureTransform(change.scale[::step], change.shift[::step])
