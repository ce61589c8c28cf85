"""Image files: opening them safely, reading them whole, and their size from the header alone."""

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
"""Highest value of INPUT.MAX_PIXELS: Pillow refuses larger images."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # Pillow knows more, some of which start programs

_READ_SUFFIXES = (
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_REFUSED_SUFFIXES = (
    *(".arw", ".avif", ".cr2", ".dng", ".exr", ".heic"),
    *(".heif", ".jp2", ".jxl", ".nef", ".psd", ".tga"),
)

PICTURE_SUFFIXES = frozenset((*_READ_SUFFIXES, *_REFUSED_SUFFIXES))
"""Of files that are pictures, also in formats that are not read: what is meant as an image is never left out in silence."""

_LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")
_LOSSLESS_TIFF = (
    *("raw", "packbits", "lzma", "zstd", "group3", "group4", "tiff_ccitt", "tiff_lzw", "tiff_raw_16"),
    *("tiff_adobe_deflate", "tiff_deflate", "tiff_thunderscan"),
)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNGs
_INFLATION = 1032  # bytes that the compression of PNGs makes of one, at most
_GIF_INFLATION = 4096  # pixels that a byte of a GIF stands for, at most

# INPUT.MAX_PIXELS is checked for every image; Pillow's warning would stand before the error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextmanager
def _explain_unreadable(path: str | os.PathLike[str], max_pixels: int) -> Iterator[None]:
    """Turn what Pillow raises on a bad file into an error that names the file."""
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"Image file {path} does not exist.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        claimed = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(f"Image file {path}", claimed[1] if claimed else "more", max_pixels) from error
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"Image file {path} cannot be read, it is damaged, incomplete or none of {', '.join(_FORMATS)}. Replace or "
            "convert it, or leave it out of the dataset."
        ) from error
    except DAMAGE as error:
        if "MAX_TEXT" in str(error):
            raise DatasetError(
                f"Image file {path} cannot be read, it has more text or other metadata than Pillow takes: {error}. Save it "
                "without metadata, e.g. with exiftool -all= or magick -strip."
            ) from error
        raise DatasetError(
            f"Image file {path} cannot be read, it is damaged, incomplete or no image: {error}. "
            "Replace it, or leave it out of the dataset."
        ) from error


@contextmanager
def open_image(
    path: str | os.PathLike[str], *, whole: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open an image file with only its header read, and explain every error that Pillow raises meanwhile.

    Args:
        path: the file.
        whole: first compare the checksums that a PNG has. Decoding compares none, so that a flipped bit becomes another
            id of a label.
        max_pixels: that the header may claim.

    Yields:
        The opened image; it is closed afterwards.

    Raises:
        DatasetError: the file is missing, damaged, no image, has several frames, or claims too many pixels.
    """
    with _explain_unreadable(path, max_pixels):
        require_plain_file(path)
        if whole:
            with Image.open(path, formats=_FORMATS) as image:
                _require_header(path, image, max_pixels)
                if image.format == "PNG":
                    image.verify()
        with Image.open(path, formats=_FORMATS) as image:
            _require_header(path, image, max_pixels)
            yield image


@contextmanager
def open_label(
    path: str | os.PathLike[str], *, whole: bool = True, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open a file whose pixels are ids; see `open_image`.

    Raises:
        DatasetError: see `open_image`, or the format may change pixels.
    """
    with open_image(path, whole=whole, max_pixels=max_pixels) as image:
        compression = image.info.get("compression", "raw") if image.format == "TIFF" else "raw"
        if image.format not in _LOSSLESS or compression not in _LOSSLESS_TIFF:
            form = image.format if image.format not in _LOSSLESS else f"{image.format} with {compression} compression"
            raise DatasetError(
                f"Label {path} must be in a lossless format ({', '.join(_LOSSLESS)}), got {form}, which changes ids. "
                "Take the published file, or make it anew as a PNG."
            )
        yield image


def require_pixels(size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise where a header claims more pixels than INPUT.MAX_PIXELS allows.

    Args:
        size: (width, height), as Pillow says it.
        name: of the image or video in the error.
        max_pixels: that it may have.

    Raises:
        DatasetError: names the key, the size and the remedy.
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
    _require_content(path, image)
    # The further pictures of a camera's JPEG (MPO) are previews and depths of the first.
    if image.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(image, "is_animated", False):
        raise DatasetError(
            f"Image file {path} must have one frame, got several ({image.format}). Save the one that is meant as a PNG, or "
            "convert an animation to a video."
        )


def _require_content(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Raise where a PNG or GIF claims more pixels than its bytes can hold: memory would be filled with nothing."""
    size = os.path.getsize(path)
    if image.format == "PNG":
        with open(path, "rb") as file:
            header = file.read(26)
        if header[12:16] != b"IHDR":
            raise ValueError("its header is not where that of a PNG is")
        bits = header[24] * _CHANNELS.get(header[25], 1)
        fits = image.height * (image.width * bits // 8) <= _INFLATION * size
    else:
        fits = image.format != "GIF" or image.height * image.width <= _GIF_INFLATION * size
    if not fits:
        raise DatasetError(
            f"Image file {path} claims to be too large: its header says {image.width} x {image.height} pixels (width x "
            f"height), more than its {size} bytes can hold. Replace it, or leave it out of the dataset."
        )


def read_image(
    path: str | os.PathLike[str], image_format: str = "RGB", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read an image, turned upright as its metadata says.

    Args:
        path: the file.
        image_format: order of the channels, RGB or BGR.
        max_pixels: that it may have, see INPUT.MAX_PIXELS.

    Returns:
        (H, W, 3) uint8, not writable.

    Raises:
        DatasetError: the file is missing, damaged, no image, too large, or 8-bit RGB cannot represent it exactly: more
            than 8 bits a channel, CMYK and the like, transparency, or several frames.
    """
    with open_image(path, whole=True, max_pixels=max_pixels) as image:
        pixels = rgb_pixels(image, f"Image file {path}")
    return pixels if image_format == "RGB" else pixels[:, :, ::-1]


def image_size(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Size that `read_image` would return, without decoding the pixels.

    Args:
        path: the file.
        max_pixels: that it may have, see INPUT.MAX_PIXELS.

    Returns:
        (height, width) in pixels.

    Raises:
        DatasetError: as for `read_image`, as far as the header tells.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        require_colors(image, f"Image file {path}")
        return upright_size(image)


def require_same_size(
    image_file: str, image_shape: tuple[int, ...], label_file: str, label_shape: tuple[int, ...]
) -> None:
    """Raise unless an image and its label have the same size.

    Args:
        image_file, label_file: the files, named in the error.
        image_shape, label_shape: (height, width) in pixels.

    Raises:
        DatasetError: the sizes differ.
    """
    if image_shape != label_shape:
        raise DatasetError(
            f"Image {image_file} is {image_shape[0]} x {image_shape[1]} pixels (height x width), but its label "
            f"{label_file} is {label_shape[0]} x {label_shape[1]}. They must agree: mend the files, or list the "
            "image under 'skip' in the dataset's definition."
        )
