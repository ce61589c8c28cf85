"""Images in any of the forms that people have them in."""

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from famix.data.decoding import DAMAGE, rgb_pixels
from famix.data.images import MAX_PIXELS, read_image, require_pixels
from famix.utils.errors import DatasetError

__all__ = ["ImageSource", "RGBImage", "load_rgb"]

RGBImage = NDArray[np.uint8]  # (H, W, 3), red first
ImageSource = str | os.PathLike[str] | Image.Image | RGBImage


def load_rgb(image: ImageSource, max_pixels: int = MAX_PIXELS) -> RGBImage:
    """Read an image, turned upright as its metadata says.

    Args:
        image: path of a file, a PIL image (of several frames the current one), or an array (H, W, 3) uint8 in RGB order.
            OpenCV's arrays are BGR: reverse them with `image[..., ::-1]`.
        max_pixels: that a file or a PIL image may have, see INPUT.MAX_PIXELS.

    Returns:
        (H, W, 3) uint8, RGB; not a copy where an array was given.

    Raises:
        DatasetError: the file is missing, damaged or no image, the image is too large or cannot be represented exactly
            in 8-bit RGB (see `famix.data.read_image`), or the array has another shape or type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, max_pixels=max_pixels)
    if isinstance(image, Image.Image):
        return _from_pillow(image, max_pixels)
    if not isinstance(image, np.ndarray):
        raise DatasetError(
            f"got an image of type {type(image).__name__}, expected a path, a PIL image or a NumPy array"
        )
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or image.dtype != np.uint8:
        raise DatasetError(
            f"got an image of shape {image.shape} and type {image.dtype}, expected (height, width, 3) in uint8, RGB; "
            "stack the channels last, and scale values to 0-255"
        )
    return image


def _from_pillow(image: Image.Image, max_pixels: int) -> RGBImage:
    name = f"The PIL image {getattr(image, 'filename', '')}".rstrip()
    require_pixels(image.size, name, max_pixels)
    try:
        return rgb_pixels(image, name)
    except DatasetError:
        raise
    except DAMAGE as error:  # Pillow decodes a file only now
        raise DatasetError(
            f"{name} cannot be decoded: {error}. Replace the file, it is damaged or incomplete."
        ) from error
