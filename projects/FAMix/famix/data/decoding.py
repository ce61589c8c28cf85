"""Exact decoding of opened images: depth, orientation and transparency, by one rule for files and PIL images."""

import re
import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from famix.utils.errors import DatasetError

__all__ = [
    "DAMAGE",
    "header_orientation",
    "require_colors",
    "rgb_pixels",
    "sixteen_bit_colors",
    "stored_ids",
    "turn",
    "upright",
    "upright_size",
]

# Exceptions of Pillow on damaged files; the type depends on the place of the damage.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, TypeError, AttributeError, MemoryError),
    *(struct.error, zlib.error),
)

_OPAQUE = ("1", "L", "P", "RGB", "RGBX")  # modes of 8-bit colours
_ALPHA = {"LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}  # mode -> the one with plain alpha
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
_IMAGE_WIDTH, _IMAGE_HEIGHT = 256, 257  # tags of TIFF
_TAIL = 1 << 16  # bytes at the end of a PNG that may contain metadata


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it as its metadata (EXIF, XMP or TIFF tag) says.

    The orientation is read after the pixels: a PNG may store it behind them, and Pillow turns a TIFF while decoding.
    """
    if isinstance(image, TiffImageFile):
        # Pillow would map a file with a known name into memory, with the sides of the turned image.
        name, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = name
    else:
        image.load()
    return turn(image, _orientation(image))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) in pixels of the result of `upright`, without decoding."""
    width, height = image.size
    if isinstance(image, TiffImageFile):  # Pillow has swapped the sides for some places of the tag only
        width, height = (int(image.tag_v2[tag]) for tag in (_IMAGE_WIDTH, _IMAGE_HEIGHT))
    return (width, height) if header_orientation(image) in _SIDEWAYS else (height, width)


def header_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, of an image that is opened but not decoded."""
    orientation = _orientation(image)
    file = getattr(image, "fp", None)
    if orientation != 1 or image.format != "PNG" or file is None:
        return orientation
    place = file.tell()  # Pillow reads the last chunks of a PNG after its pixels
    try:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL))
        tail = file.read()
    finally:
        file.seek(place)
    for found in re.finditer(rb"eXIf|iTXt|zTXt|tEXt", tail):
        chunks = _chunks(tail, found.start() - 4)
        if chunks:
            # A PNG of one pixel, with the chunks before the pixel, where Pillow finds them without decoding.
            stream = BytesIO()
            Image.new("1", (1, 1)).save(stream, "PNG")
            content = stream.getvalue()
            return _orientation(Image.open(BytesIO(content[:33] + chunks + content[33:]), formats=("PNG",)))
    return 1


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a decoded image upright by its EXIF orientation; 1 keeps it."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def rgb_pixels(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Decode an image to 8-bit RGB.

    Args:
        image: an opened image, at the frame to decode.
        name: of the image in errors.

    Returns:
        (H, W, 3) uint8, upright, read-only.

    Raises:
        DatasetError: if 8-bit RGB cannot represent the image exactly.
    """
    require_colors(image, name)
    image = upright(image)
    if image.mode in _ALPHA:
        image = image.convert(_ALPHA[image.mode])
    elif "transparency" in image.info:  # a palette entry or a color of an image without an alpha channel
        image = image.convert("RGBA")
    if image.mode in _ALPHA and image.getchannel("A").getextrema()[0] != 255:
        raise DatasetError(
            f"{name} must be opaque, got transparent pixels (mode {image.mode}). Put it on a background, e.g. with Pillow's "
            "Image.alpha_composite, and save it as RGB."
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def require_colors(image: Image.Image, name: str) -> None:
    """Raise a DatasetError unless 8-bit RGB can represent an opened image, transparency aside."""
    wide = sixteen_bit_colors(image)
    if wide or image.mode not in (*_OPAQUE, *_ALPHA):
        depth = " with 16 bits per channel" if wide else ""
        raise DatasetError(
            f"{name} must have 8 bits per channel in grey, palette or RGB, got mode {image.mode}{depth}. Convert it to "
            "8-bit RGB: the scaling of its values affects results."
        )


def sixteen_bit_colors(image: Image.Image) -> bool:
    """Whether Pillow would reduce the channels of an opened image to 8 bits."""
    codec, raw_mode, highest = _encoding(image)
    if codec.startswith("ppm"):
        return highest > 255 and image.mode == "RGB"
    return re.fullmatch(r"(L|RGB|CMYK)[A-Za-z]*;16[BLN]", raw_mode) is not None


def stored_ids(image: Image.Image) -> NDArray[np.generic]:
    """Decode an opened image with one channel to the numbers (H, W) in the file, upright; indices for a palette.

    Pillow stretches grey with less than 8 bits to 0-255, and mirrors it if 0 is white in the file; this undoes both.
    """
    codec, raw_mode, highest = _encoding(image)
    flags = raw_mode.partition(";")[2]
    stretched = 65535 if image.mode == "I" else 255
    if not codec.startswith("ppm"):
        highest = {"2": 3, "4": 15}.get(flags[:1], stretched) if image.mode == "L" else stretched
    is_mirrored = image.mode in ("1", "L") and "I" in flags
    pixels = np.asarray(upright(image))
    if pixels.dtype == np.bool_:
        return (pixels != is_mirrored).astype(np.uint8)
    if is_mirrored:
        pixels = 255 - pixels
    if highest == stretched:
        return pixels
    return np.rint(pixels * (highest / stretched)).astype(pixels.dtype)


def _encoding(image: Image.Image) -> tuple[str, str, int]:
    """Codec, raw mode (such as L;4 or RGB;16B) and highest value (of PGM and PPM) of an image before it is decoded."""
    tile = getattr(image, "tile", None)
    if not tile:
        return "", "", 255
    codec, arguments = tile[0][0], tile[0][3]
    entries = arguments if isinstance(arguments, tuple) else (arguments,)
    raw_mode = entries[0] if entries and isinstance(entries[0], str) else ""
    highest = entries[1] if codec.startswith("ppm") and len(entries) > 1 else 65535 if image.mode == "I" else 255
    return codec, raw_mode, int(highest)


def _orientation(image: Image.Image) -> int:
    try:
        # The method of the PNG class would decode the image first.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except DAMAGE:  # frequent in collections of photographs, which are usable all the same
        return 1
    return next((orientation for orientation in _TURNS if value == orientation), 1)


def _chunks(data: bytes, start: int) -> bytes:
    """The chunks from a place to the end mark of a PNG; empty if no chunk starts there."""
    place = start
    while 0 <= place <= len(data) - 12:
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return data[start:place]
        if not kind.isalpha() or kind == b"IDAT":  # Pillow reads chunks before the pixels itself
            break
        place += 12 + length
    return b""
