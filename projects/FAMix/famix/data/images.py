"""Image files: safe opening, sizes from headers, and exact decoding of bit depth, orientation and transparency."""

import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from famix.io import require_plain_file
from famix.utils.errors import DatasetError

MAX_PIXELS = 1 << 26
"""Default of INPUT.MAX_PIXELS (8192 x 8192)."""

MOST_PIXELS = 178_956_970
"""Highest allowed value of INPUT.MAX_PIXELS. Pillow refuses larger images."""

_UNSUPPORTED = ".arw .avif .cr2 .dng .exr .heic .heif .jp2 .jxl .nef .psd .tga"
_SUPPORTED = ".apng .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
PICTURE_SUFFIXES = frozenset(f"{_SUPPORTED} {_UNSUPPORTED}".split())
"""Image suffixes, including unsupported formats, so that no image is skipped silently."""

DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, TypeError, AttributeError),
    *(MemoryError, struct.error, zlib.error),
)
"""Exceptions that Pillow may raise for damaged files, depending on where the damage is."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # some of Pillow's other formats run external programs
_LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")
_LOSSLESS_TIFF = (
    *("raw", "packbits", "lzma", "zstd", "group3", "group4", "tiff_ccitt", "tiff_lzw", "tiff_raw_16"),
    *("tiff_adobe_deflate", "tiff_deflate", "tiff_thunderscan"),
)
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # color type -> number of channels
_PNG_INFLATION = 1032  # maximum number of uncompressed bytes per compressed byte
_GIF_INFLATION = 4096  # maximum number of pixels per byte
_PNG_TAIL = 1 << 16  # bytes at the end of a PNG that may contain metadata

_OPAQUE = ("1", "L", "P", "RGB", "RGBX")  # 8-bit modes
_ALPHA = ("LA", "PA", "RGBA", "RGBa")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# INPUT.MAX_PIXELS is checked for each image, so Pillow's own warning is redundant.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


FilePath = str | os.PathLike[str]


@contextmanager
def open_image(path: FilePath, *, whole: bool = False, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file, reading only its header. Errors that Pillow raises in the block become a DatasetError.

    With `whole`, the checksums of a PNG are verified first. Decoding ignores them, so a flipped bit could change an id.

    Raises:
        DatasetError: the file is missing or damaged, is not an image, has several frames, or claims too many pixels.
    """
    try:
        require_plain_file(path)
        if whole:
            with Image.open(path, formats=_FORMATS) as image:
                _check_header(path, image, max_pixels)
                if image.format == "PNG":
                    image.verify()
        with Image.open(path, formats=_FORMATS) as image:
            _check_header(path, image, max_pixels)
            yield image
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"Image file not found: '{path}'.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        claimed = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(f"Image file '{path}'", claimed[1] if claimed else "too many", max_pixels) from error
    except DAMAGE as error:
        cause, remedy = f"damaged, incomplete or not an image ({error})", "Replace it"
        if isinstance(error, UnidentifiedImageError):
            cause = f"damaged, incomplete or not in one of the formats {', '.join(_FORMATS)}"
            remedy = "Replace or convert it"
        elif "MAX_TEXT" in str(error):
            cause = f"blocked by Pillow's metadata limit ({error})"
            remedy = "Remove its metadata, e.g. with exiftool -all= or magick -strip"
        message = f"Cannot read image file '{path}': it is {cause}. {remedy}, or leave it out of the dataset."
        raise DatasetError(message) from error


@contextmanager
def open_label(path: FilePath, *, whole: bool = True, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open a label file like `open_image`. Lossy formats, which may change ids, also raise a DatasetError."""
    with open_image(path, whole=whole, max_pixels=max_pixels) as image:
        compression = image.info.get("compression", "raw") if image.format == "TIFF" else "raw"
        if image.format not in _LOSSLESS or compression not in _LOSSLESS_TIFF:
            form = image.format if image.format not in _LOSSLESS else f"{image.format} with {compression} compression"
            raise DatasetError(
                f"Label '{path}' must be in a lossless format ({', '.join(_LOSSLESS)}), got {form}, which changes ids. "
                "Use the published file, or regenerate it as a PNG."
            )
        yield image


def require_pixels(size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise a DatasetError if the (width, height) in a header exceeds the number of pixels in INPUT.MAX_PIXELS."""
    if size[0] * size[1] > max_pixels:
        raise _too_large(name, f"{size[0]} x {size[1]} (width x height) = {size[0] * size[1]}", max_pixels)


def _too_large(name: str, claimed: str, max_pixels: int) -> DatasetError:
    return DatasetError(
        f"{name} is too large: it claims {claimed} pixels, but INPUT.MAX_PIXELS allows {max_pixels}. Raise "
        "INPUT.MAX_PIXELS if the file is intact, or leave it out."
    )


def _check_header(path: FilePath, image: Image.Image, max_pixels: int) -> None:
    require_pixels(image.size, f"Image file '{path}'", max_pixels)
    # A small PNG or GIF that claims more pixels than its bytes can encode would exhaust the memory.
    size, fits = os.path.getsize(path), True
    if image.format == "PNG":
        with open(path, "rb") as file:
            header = file.read(26)
        if header[12:16] != b"IHDR":
            raise ValueError("its PNG header is misplaced")
        bits = header[24] * _PNG_CHANNELS.get(header[25], 1)
        fits = image.height * (image.width * bits // 8) <= _PNG_INFLATION * size
    elif image.format == "GIF":
        fits = image.height * image.width <= _GIF_INFLATION * size
    if not fits:
        raise DatasetError(
            f"Image file '{path}' is damaged: its header claims {image.width} x {image.height} pixels (width x "
            f"height), more than its {size} bytes can encode. Replace it, or leave it out of the dataset."
        )
    # The additional images in a camera's JPEG (MPO) are previews and depth maps of the first.
    if image.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(image, "is_animated", False):
        raise DatasetError(
            f"Image file '{path}' must have one frame, got several ({image.format}). Save the desired frame as a PNG, "
            "or convert the animation to a video."
        )


def read_image(path: FilePath, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as a read-only RGB array (H, W, 3) uint8, rotated upright according to its metadata.

    Raises:
        DatasetError: the file is missing, damaged, not an image or larger than `max_pixels`, or cannot be represented
            exactly in 8-bit RGB (more than 8 bits per channel, CMYK, transparency, several frames).
    """
    with open_image(path, whole=True, max_pixels=max_pixels) as image:
        return rgb_pixels(image, f"Image file '{path}'")


def image_size(path: FilePath, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the (height, width) of `read_image`'s result, reading only the header. Raises the errors it reveals."""
    with open_image(path, max_pixels=max_pixels) as image:
        _require_colors(image, f"Image file '{path}'")
        return upright_size(image)


def require_same_size(
    image_file: str, image_shape: tuple[int, ...], label_file: str, label_shape: tuple[int, ...]
) -> None:
    """Raise a DatasetError unless an image and its label have the same (height, width) in pixels."""
    if image_shape != label_shape:
        raise DatasetError(
            f"Image '{image_file}' and its label '{label_file}' differ in size: {image_shape[0]} x {image_shape[1]} "
            f"and {label_shape[0]} x {label_shape[1]} pixels (height x width). Correct the files, or list the image "
            "under 'skip' in the dataset definition."
        )


def rgb_pixels(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Decode an opened image to an upright, read-only RGB array (H, W, 3) uint8.

    Raises:
        DatasetError: the image, called `name` in the message, cannot be represented exactly in 8-bit RGB.
    """
    _require_colors(image, name)
    image = upright(image)
    if image.mode in _ALPHA or "transparency" in image.info:  # an alpha channel, or a transparent color
        mode, image = image.mode, image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            raise DatasetError(
                f"{name} must be opaque, got transparent pixels (mode {mode}). Blend it with a background, e.g. with "
                "Pillow's Image.alpha_composite, and save it as RGB."
            )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _require_colors(image: Image.Image, name: str) -> None:
    """Raise a DatasetError unless 8-bit RGB can represent an opened image, apart from transparency."""
    wide = has_wide_colors(image)
    if wide or image.mode not in (*_OPAQUE, *_ALPHA):
        depth = " with 16 bits per channel" if wide else ""
        raise DatasetError(
            f"{name} must have 8 bits per channel in gray, palette or RGB, got mode {image.mode}{depth}. Convert it to "
            "8-bit RGB yourself, because the scaling of its values affects the results."
        )


def has_wide_colors(image: Image.Image) -> bool:
    """Return whether an opened image has 16-bit channels, which Pillow would reduce to 8 bits."""
    return image.mode != "I" and _encoding(image)[1] > 255


def stored_ids(image: Image.Image) -> NDArray[np.generic]:
    """Decode an opened one-channel image to an upright array (H, W) of the stored numbers, e.g. palette indices.

    Pillow stretches gray values with fewer than 8 bits to 0-255, and inverts them if 0 is white in the file. This
    function undoes both.
    """
    raw_mode, highest = _encoding(image)
    is_inverted = image.mode in ("1", "L") and "I" in raw_mode.partition(";")[2]
    stretched = 65535 if image.mode == "I" else 255
    pixels = np.asarray(upright(image))
    if pixels.dtype == np.bool_:
        return (pixels != is_inverted).astype(np.uint8)
    if is_inverted:
        pixels = 255 - pixels
    if highest >= stretched:
        return pixels
    return np.rint(pixels * (highest / stretched)).astype(pixels.dtype)


def _encoding(image: Image.Image) -> tuple[str, int]:
    """Return the raw mode (such as L;4 or RGB;16B) and the highest value of an image that has not been decoded."""
    tiles = getattr(image, "tile", None)
    codec, *_, arguments = tiles[0] if tiles else ("", ())
    entries = arguments if isinstance(arguments, tuple) else (arguments,)
    raw_mode = entries[0] if entries and isinstance(entries[0], str) else ""
    if codec.startswith("ppm") and len(entries) > 1:
        return raw_mode, int(entries[1])
    if image.mode == "L" and raw_mode[:3] in ("L;2", "L;4"):
        return raw_mode, 3 if raw_mode[2] == "2" else 15
    is_wide = image.mode == "I" or re.fullmatch(r"(L|RGB|CMYK)[A-Za-z]*;16[BLN]", raw_mode)
    return raw_mode, 65535 if is_wide else 255


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and rotate it upright according to its metadata (EXIF, XMP or TIFF tag).

    The orientation is read after decoding, because PNGs may store it after the pixels, and Pillow rotates TIFFs itself.
    """
    if isinstance(image, TiffImageFile):
        # Given a file name, Pillow would memory-map the file using the height and width of the rotated image.
        name, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = name
    else:
        image.load()
    return turn(image, _orientation(image))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (height, width) in pixels of the result of `upright` without decoding the image."""
    width, height = image.size
    if isinstance(image, TiffImageFile):  # Pillow swaps height and width only for some tag positions
        width, height = (int(image.tag_v2[tag]) for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
    return (width, height) if header_orientation(image) >= 5 else (height, width)


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate a decoded image upright according to its EXIF orientation (1 to 8)."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def header_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8) of an opened image. Only PNGs with metadata after the pixels are decoded."""
    if isinstance(image, PngImageFile) and image.fp is not None:
        place = image.fp.tell()
        image.fp.seek(0, os.SEEK_END)
        image.fp.seek(max(0, image.fp.tell() - _PNG_TAIL))
        has_late_metadata = re.search(rb"eXIf|iTXt|zTXt|tEXt", image.fp.read())
        image.fp.seek(place)
        if has_late_metadata:
            image.load()
    return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        # The PNG class's own method would decode the image first.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except DAMAGE:  # damaged EXIF data is common, and the pixels are intact
        return 1
    return next((orientation for orientation in _TURNS if value == orientation), 1)
