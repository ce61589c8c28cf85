"""Image files: opening them safely, reading them, and reading their size from the header."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from famix.data.decoding import DAMAGE, require_colors, rgb_pixels, upright_size
from famix.io import require_plain_file
from famix.utils.errors import DatasetError

__all__ = [
    "MAX_PIXELS",
    "MOST_PIXELS",
    "PICTURE_SUFFIXES",
    "image_size",
    "open_image",
    "open_label",
    "read_image",
    "require_pixels",
    "require_same_size",
]

MAX_PIXELS = 1 << 26
"""Default of INPUT.MAX_PIXELS, 8192 x 8192."""

MOST_PIXELS = 178_956_970
"""Highest value of INPUT.MAX_PIXELS; Pillow refuses larger images."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # Pillow supports more, some of which start programs

PICTURE_SUFFIXES = frozenset(
    (
        *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
        *(".arw", ".avif", ".cr2", ".dng", ".exr", ".heic"),  # not supported, from here on
        *(".heif", ".jp2", ".jxl", ".nef", ".psd", ".tga"),
    )
)
"""Of picture files, also in formats that are not supported, so that no picture is left out silently."""

_LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")
_LOSSLESS_TIFF = (
    *("raw", "packbits", "lzma", "zstd", "group3", "group4", "tiff_ccitt", "tiff_lzw", "tiff_raw_16"),
    *("tiff_adobe_deflate", "tiff_deflate", "tiff_thunderscan"),
)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the color types of PNGs
_INFLATION = 1032  # maximal bytes per compressed byte of a PNG
_GIF_INFLATION = 4096  # maximal pixels per byte of a GIF

# INPUT.MAX_PIXELS is checked for each image; Pillow's warning would only precede the error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextmanager
def open_image(
    path: str | os.PathLike[str], *, whole: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open an image file, reading only its header, and explain all errors that Pillow raises in the block.

    Args:
        path: the file.
        whole: first verify the checksums of a PNG. Decoding ignores them, and a flipped bit changes an id of a label.
        max_pixels: limit for the size in the header.

    Yields:
        The opened image; it is closed afterwards.

    Raises:
        DatasetError: if the file is missing, damaged or not an image, has several frames, or claims too many pixels.
    """
    try:
        require_plain_file(path)
        if whole:
            with Image.open(path, formats=_FORMATS) as image:
                _require_header(path, image, max_pixels)
                if image.format == "PNG":
                    image.verify()
        with Image.open(path, formats=_FORMATS) as image:
            _require_header(path, image, max_pixels)
            yield image
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"Image file {path} does not exist.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        claimed = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(f"Image file {path}", claimed[1] if claimed else "more", max_pixels) from error
    except DAMAGE as error:
        cause, remedy = (
            f"it is damaged, incomplete or not an image: {error}",
            "Replace it, or leave it out of the dataset",
        )
        if isinstance(error, UnidentifiedImageError):
            cause = f"it is damaged, incomplete or not in one of the formats {', '.join(_FORMATS)}"
            remedy = "Replace or convert it, or leave it out of the dataset"
        elif "MAX_TEXT" in str(error):
            cause = f"its metadata exceed Pillow's limit: {error}"
            remedy = "Save it without metadata, e.g. with exiftool -all= or magick -strip"
        raise DatasetError(f"Image file {path} cannot be read, {cause}. {remedy}.") from error


@contextmanager
def open_label(
    path: str | os.PathLike[str], *, whole: bool = True, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open a file of ids, see `open_image`.

    Raises:
        DatasetError: see `open_image`, or if the format may change ids.
    """
    with open_image(path, whole=whole, max_pixels=max_pixels) as image:
        compression = image.info.get("compression", "raw") if image.format == "TIFF" else "raw"
        if image.format not in _LOSSLESS or compression not in _LOSSLESS_TIFF:
            form = image.format if image.format not in _LOSSLESS else f"{image.format} with {compression} compression"
            raise DatasetError(
                f"Label {path} must be in a lossless format ({', '.join(_LOSSLESS)}), got {form}, which changes ids. "
                "Use the published file, or create it again as a PNG."
            )
        yield image


def require_pixels(size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise a DatasetError if a header claims more pixels than INPUT.MAX_PIXELS allows.

    Args:
        size: (width, height), in Pillow's order.
        name: of the image or video in the error.
        max_pixels: the limit.
    """
    if size[0] * size[1] > max_pixels:
        raise _too_large(name, f"{size[0]} x {size[1]} (width x height) = {size[0] * size[1]}", max_pixels)


def _too_large(name: str, claimed: str, max_pixels: int) -> DatasetError:
    return DatasetError(
        f"{name} claims to be too large: INPUT.MAX_PIXELS allows {max_pixels} pixels, got {claimed}. Raise INPUT.MAX_PIXELS "
        "if the picture is sound, or leave it out."
    )


def _require_header(path: str | os.PathLike[str], image: Image.Image, max_pixels: int) -> None:
    require_pixels(image.size, f"Image file {path}", max_pixels)
    # More pixels than the bytes of a PNG or GIF can hold would fill the memory with nothing.
    size, fits = os.path.getsize(path), True
    if image.format == "PNG":
        with open(path, "rb") as file:
            header = file.read(26)
        if header[12:16] != b"IHDR":
            raise ValueError("its PNG header has the wrong place")
        bits = header[24] * _CHANNELS.get(header[25], 1)
        fits = image.height * (image.width * bits // 8) <= _INFLATION * size
    elif image.format == "GIF":
        fits = image.height * image.width <= _GIF_INFLATION * size
    if not fits:
        raise DatasetError(
            f"Image file {path} claims to be too large: its header says {image.width} x {image.height} pixels (width x "
            f"height), more than its {size} bytes can hold. Replace it, or leave it out of the dataset."
        )
    # The further pictures of a camera's JPEG (MPO) are previews and depth maps of the first.
    if image.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(image, "is_animated", False):
        raise DatasetError(
            f"Image file {path} must have one frame, got several ({image.format}). Save the right one as a PNG, or convert "
            "an animation to a video."
        )


def read_image(
    path: str | os.PathLike[str], image_format: str = "RGB", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read an image, turned upright by its metadata.

    Args:
        path: the file.
        image_format: order of the channels, RGB or BGR.
        max_pixels: limit of INPUT.MAX_PIXELS.

    Returns:
        (H, W, 3) uint8, read-only.

    Raises:
        DatasetError: if the file is missing, damaged, too large or not an image, or if 8-bit RGB cannot represent it
            exactly: more than 8 bits per channel, CMYK, transparency, several frames.
    """
    with open_image(path, whole=True, max_pixels=max_pixels) as image:
        pixels = rgb_pixels(image, f"Image file {path}")
    return pixels if image_format == "RGB" else pixels[:, :, ::-1]


def image_size(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels of the result of `read_image`, from the header.

    Raises:
        DatasetError: as for `read_image`, as far as the header tells.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        require_colors(image, f"Image file {path}")
        return upright_size(image)


def require_same_size(
    image_file: str, image_shape: tuple[int, ...], label_file: str, label_shape: tuple[int, ...]
) -> None:
    """Raise a DatasetError unless an image and its label have the same (height, width) in pixels."""
    if image_shape != label_shape:
        raise DatasetError(
            f"Image {image_file} and its label {label_file} must have the same size, got {image_shape[0]} x "
            f"{image_shape[1]} and {label_shape[0]} x {label_shape[1]} pixels (height x width). Correct the files, or list "
            "the image under 'skip' in the dataset's definition."
        )
