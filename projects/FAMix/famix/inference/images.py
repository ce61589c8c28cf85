"""Images in any of the forms that people have them in."""

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from famix.data.images import read_image
from famix.errors import DatasetError

__all__ = ["ImageSource", "RGBImage", "load_rgb"]

RGBImage = NDArray[np.uint8]  # (H, W, 3), red first
ImageSource = str | os.PathLike[str] | Image.Image | RGBImage


def load_rgb(image: ImageSource) -> RGBImage:
    """Read an image, turned upright as its EXIF data says.

    Args:
        image: path of a file, a PIL image of any mode, or an array (H, W, 3) uint8 in RGB order. OpenCV's arrays are
            BGR: reverse them with `image[..., ::-1]`.

    Returns:
        (H, W, 3) uint8, RGB; not a copy where an array was given.

    Raises:
        DatasetError: the file is missing, damaged or no image, or the array has another shape or type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
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
