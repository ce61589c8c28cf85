"""Images: reading them whole, and their size from the header alone."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.data import detection_utils
from PIL import ExifTags, Image

from famix.errors import DatasetError
from famix.intake import require_plain_file

__all__ = ["image_size", "open_image", "read_image", "require_same_size"]

# What Pillow raises on damaged files; it looks at content, so the type depends on where the damage is.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, TypeError, AttributeError, MemoryError),
    *(struct.error, zlib.error),
)
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # Pillow knows more, some of which start programs
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNGs
_INFLATION = 1032  # bytes that the compression of PNGs makes of one, at most
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


@contextmanager
def _explain_unreadable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what Pillow raises on a bad file into an error that names the file."""
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"Image file {path} does not exist.") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"Image file {path} claims to be too large to open safely: {error}") from error
    except _DAMAGE as error:
        raise DatasetError(
            f"Image file {path} cannot be read, it is damaged, incomplete or no image: {error}. "
            "Replace it, or leave it out of the dataset."
        ) from error


@contextmanager
def open_image(path: str | os.PathLike[str], *, whole: bool = False) -> Iterator[Image.Image]:
    """Open an image file with only its header read, and explain every error that Pillow raises meanwhile.

    Args:
        path: the file.
        whole: first compare the checksums that a PNG has. Decoding compares none, so that a flipped bit becomes another
            id of a label.

    Yields:
        The opened image; it is closed afterwards.

    Raises:
        DatasetError: the file is missing, damaged, no image, or of a size that only an attack would have.
    """
    with _explain_unreadable(path):
        require_plain_file(path)
        if whole:
            with Image.open(path, formats=_FORMATS) as image:
                _require_content(path, image)
                if image.format == "PNG":
                    image.verify()
        with Image.open(path, formats=_FORMATS) as image:
            _require_content(path, image)
            yield image


def _require_content(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Raise where a PNG claims more pixels than its bytes can hold: Pillow would make them all of nothing."""
    if image.format != "PNG":
        return
    with open(path, "rb") as file:
        header = file.read(26)
    if header[12:16] != b"IHDR":
        raise ValueError("its header is not where that of a PNG is")
    bits = header[24] * _CHANNELS.get(header[25], 1)
    needed = image.height * (image.width * bits // 8)
    if needed > _INFLATION * os.path.getsize(path):
        raise DatasetError(
            f"Image file {path} claims to be too large: its header says {image.width} x {image.height} pixels (width x "
            f"height), more than its {os.path.getsize(path)} bytes can hold. Replace it, or leave it out of the dataset."
        )


def read_image(path: str | os.PathLike[str], image_format: str = "RGB") -> np.ndarray:
    """Read an image, turned upright as its EXIF data says.

    Args:
        path: the file.
        image_format: order of the channels, RGB or BGR.

    Returns:
        (H, W, 3) uint8, not writable.

    Raises:
        DatasetError: the file is missing, damaged, no image, or of a size that only an attack would have.
    """
    with open_image(path, whole=True):
        return detection_utils.read_image(os.fspath(path), format=image_format)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size that `read_image` would return, without decoding the pixels.

    Args:
        path: the file.

    Returns:
        (height, width) in pixels.

    Raises:
        DatasetError: the file is missing, damaged or no image.
    """
    with open_image(path) as image:
        width, height = image.size
        # Asked only where the header has EXIF data: Pillow decodes a whole PNG to look for it.
        if "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
            return width, height
        return height, width


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
