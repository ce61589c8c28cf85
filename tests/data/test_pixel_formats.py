"""Exact decoding of pixels, ids and orientations, by every function that reads them."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from error_matching import expect_error
from famix.data import LabelReader, image_size, read_image
from famix.data.panoptic.segments import read_segments
from famix.inference.images import load_rgb
from famix.utils.errors import DatasetError

SIZE = (5, 7)  # (height, width)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
GRAY = PIXELS[..., 0]
IDS = np.random.default_rng(1).integers(0, 4, SIZE, dtype=np.uint8)
ALL_IDS = LabelReader({number: number % 256 for number in range(65_536)})
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}  # EXIF orientation -> operation that makes the image upright


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, depth: int, color: int, before: bytes = b"", behind: bytes = b"") -> bytes:
    """Encode (H, W) or (H, W, C) integers as a PNG with additional chunks before and behind the pixels."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = (rows[..., None] >> np.arange(depth)[::-1]) & 1
        packed = [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits]
    palette = chunk(b"PLTE", bytes(value % 256 for value in range(3 * 2**depth))) if color == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
    return b"\x89PNG\r\n\x1a\n" + header + before + palette + data + behind + chunk(b"IEND", b"")


def tiff(ids: np.ndarray, depth: int, white_is_zero: bool) -> bytes:
    bits = (ids[..., None] >> np.arange(depth)[::-1]) & 1
    data = np.packbits(bits.reshape(len(ids), -1).astype(np.uint8), axis=1).tobytes()
    tags = [(256, ids.shape[1]), (257, ids.shape[0]), (258, depth), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8), (277, 1), (278, ids.shape[0]), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def pgm(magic: str, ids: np.ndarray, highest: int) -> bytes:
    data = ids.astype(">u2" if highest > 255 else np.uint8).tobytes()
    if magic == "P2":
        data = " ".join(map(str, ids.ravel())).encode()
    return f"{magic} {ids.shape[1]} {ids.shape[0]} {highest}\n".encode() + data + b"\n"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def readers(path: Path) -> list[Callable[[], np.ndarray]]:
    """Return every way to read the pixels of an image file."""
    return [lambda: read_image(path), lambda: load_rgb(path), lambda: load_rgb(Image.open(path))]


RGB, WIDE = Image.fromarray(PIXELS), PIXELS.astype(np.uint16) * 257
WIDE_GRAY = Image.fromarray(WIDE[..., 0])
REFUSED = {
    "16-bit gray PNG": lambda p: saved(p / "a.png", WIDE_GRAY),
    "16-bit RGB PNG": lambda p: write(p / "a.png", png(WIDE, 16, 2)),
    "16-bit RGBA PNG": lambda p: write(p / "a.png", png(np.dstack([WIDE, WIDE[..., :1]]), 16, 6)),
    "16-bit gray and alpha PNG": lambda p: write(p / "a.png", png(WIDE[..., :2], 16, 4)),
    "16-bit gray TIFF": lambda p: saved(p / "a.tif", WIDE_GRAY),
    "16-bit RGB TIFF": lambda p: write(p / "a.tif", cv2.imencode(".tif", WIDE)[1].tobytes()),
    "32-bit TIFF": lambda p: saved(p / "a.tif", Image.fromarray(WIDE[..., 0].astype(np.int32))),
    "float TIFF": lambda p: saved(p / "a.tif", Image.fromarray(WIDE[..., 0].astype(np.float32))),
    "16-bit PGM": lambda p: write(p / "a.pgm", pgm("P5", WIDE[..., 0], 65_535)),
    "10-bit PPM": lambda p: write(p / "a.ppm", b"P6 7 5 1023\n" + bytes(7 * 5 * 6)),
    "CMYK JPEG": lambda p: saved(p / "a.jpg", RGB.convert("CMYK")),
    "CMYK TIFF": lambda p: saved(p / "a.tif", RGB.convert("CMYK")),
    "LAB TIFF": lambda p: saved(p / "a.tif", Image.new("LAB", (7, 5))),
}
TRANSPARENT = {
    "RGBA": lambda p: saved(p / "a.png", Image.fromarray(np.dstack([PIXELS, IDS]))),
    "LA": lambda p: saved(p / "a.png", Image.merge("LA", [RGB.getchannel(0), Image.new("L", RGB.size, 254)])),
    "palette": lambda p: saved(p / "a.png", RGB.quantize(8), transparency=0),
    "color": lambda p: saved(p / "a.png", RGB, transparency=tuple(PIXELS[2, 2].tolist())),
    "gray": lambda p: saved(p / "a.png", RGB.convert("L"), transparency=RGB.convert("L").getpixel((1, 1))),
}


@pytest.mark.parametrize("kind", [*REFUSED, *TRANSPARENT])
def test_inexact_image_is_refused(tmp_path: Path, kind: str) -> None:
    if kind in TRANSPARENT:
        path = TRANSPARENT[kind](tmp_path)
        reads, value, remedy = readers(path), "transparent", "background"
    else:
        path = REFUSED[kind](tmp_path)
        reads, value, remedy = [*readers(path), lambda: image_size(path)], Image.open(path).mode, "8-bit RGB"
    for read in reads:
        with expect_error(DatasetError, key=str(path), value=value, remedy=remedy):
            read()


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "CMYK", "HSV", "LAB", "YCbCr"])
def test_inexact_pil_image_is_refused(mode: str) -> None:
    with expect_error(DatasetError, key="PIL", value=mode, remedy="8-bit RGB"):
        load_rgb(Image.new(mode, (7, 5)))


def test_wide_panoptic_label_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(WIDE, 16, 2))
    with expect_error(DatasetError, key=str(path), value="16", remedy="COCO's"):
        read_segments(path, [])


EXACT = {
    "RGBA": (lambda p: saved(p / "a.png", RGB.convert("RGBA")), PIXELS),
    "LA": (lambda p: saved(p / "a.png", Image.fromarray(GRAY).convert("LA")), GRAY),
    "unused transparent color": (lambda p: saved(p / "a.png", RGB, transparency=(1, 2, 3)), PIXELS),
    "gray": (lambda p: saved(p / "a.bmp", Image.fromarray(GRAY)), GRAY),
    "1-bit gray": (lambda p: write(p / "a.png", png(IDS & 1, 1, 0)), (IDS & 1) * 255),
    "2-bit gray": (lambda p: write(p / "a.png", png(GRAY >> 6, 2, 0)), (GRAY >> 6) * 85),
    "4-bit gray": (lambda p: write(p / "a.png", png(GRAY >> 4, 4, 0)), (GRAY >> 4) * 17),
    "2-bit palette": (lambda p: write(p / "a.png", png(IDS, 2, 3)), IDS[..., None] * 3 + np.arange(3)),
    "GIF": (lambda p: saved(p / "a.gif", RGB.quantize(256)), np.asarray(RGB.quantize(256).convert("RGB"))),
    "PPM": (lambda p: saved(p / "a.ppm", RGB), PIXELS),
    "TIFF": (lambda p: saved(p / "a.tif", RGB, compression="tiff_lzw"), PIXELS),
    "WebP": (lambda p: saved(p / "a.webp", RGB, lossless=True), PIXELS),
}


@pytest.mark.parametrize("kind", EXACT)
def test_exact_image_becomes_rgb(tmp_path: Path, kind: str) -> None:
    make, expected = EXACT[kind]
    path = make(tmp_path)
    expected = np.broadcast_to(expected[..., None] if expected.ndim == 2 else expected, (*SIZE, 3))
    for read in readers(path):
        np.testing.assert_array_equal(read(), expected)
    assert image_size(path) == SIZE


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [RGB, RGB.transpose(Image.Transpose.ROTATE_180)]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    for read in (read_image, image_size, ALL_IDS.read, load_rgb):
        with expect_error(DatasetError, key=str(path), value="several", remedy="PNG"):
            read(path)
    image = Image.open(path)
    image.seek(1)
    second = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_rgb(image), second, "the current frame of a PIL image counts")


def test_first_image_of_a_camera_jpeg_counts(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RGB, format="MPO", save_all=True, append_images=[RGB.resize((4, 3))])
    assert read_image(path).shape == (*SIZE, 3)


# Orientation


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def raw_profile(orientation: int) -> bytes:
    content = exif(orientation).tobytes()
    text = f"\nexif\n{len(content)}\n{content.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def exif_chunk(orientation: int) -> bytes:
    return chunk(b"eXIf", exif(orientation).tobytes()[6:])


CHUNKS = {
    "eXIf": exif_chunk,
    "XMP": lambda o: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o)),
    "raw profile": raw_profile,
}
COMMENT, BEST = chunk(b"tEXt", b"Comment\0a comment"), {"quality": 100, "subsampling": 0}
PLACES = {
    "JPEG EXIF": lambda p, o: saved(p / "a.jpg", RGB, exif=exif(o), **BEST),
    "JPEG XMP": lambda p, o: saved(p / "a.jpg", RGB, xmp=xmp(o), **BEST),
    "TIFF tag": lambda p, o: saved(p / "a.tif", RGB, tiffinfo={274: o}),
    "compressed TIFF": lambda p, o: saved(p / "a.tif", RGB, tiffinfo={274: o}, compression="tiff_lzw"),
    "TIFF XMP": lambda p, o: saved(p / "a.tif", RGB, tiffinfo={700: xmp(o)}),
    "WebP EXIF": lambda p, o: saved(p / "a.webp", RGB, exif=exif(o), lossless=True),
    "WebP XMP": lambda p, o: saved(p / "a.webp", RGB, xmp=xmp(o), lossless=True),
}
for kind, make in CHUNKS.items():
    PLACES[f"PNG {kind}"] = lambda p, o, make=make: write(p / "a.png", png(PIXELS, 8, 2, COMMENT + make(o)))
    PLACES[f"late PNG {kind}"] = lambda p, o, make=make: write(p / "a.png", png(PIXELS, 8, 2, COMMENT, make(o)))


def require_upright(path: Path, orientation: int) -> None:
    plain = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    expected = TURNS[orientation](PIXELS)
    assert np.abs(plain.astype(int) - expected).max() < 40, "the file must be one that other programs rotate, too"
    for read in readers(path):
        np.testing.assert_array_equal(read(), plain)
    loaded = Image.open(path)
    loaded.load()
    np.testing.assert_array_equal(load_rgb(loaded), plain)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("place", PLACES)
def test_orientation_is_applied_once(tmp_path: Path, place: str) -> None:
    for orientation in TURNS:
        require_upright(PLACES[place](tmp_path, orientation), orientation)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_invalid_orientation_is_ignored(tmp_path: Path, value: int) -> None:
    require_upright(PLACES["PNG eXIf"](tmp_path, value), 1)
    require_upright(PLACES["TIFF tag"](tmp_path, value), 1)


def test_damaged_exif_data_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(PIXELS, 8, 2, before=chunk(b"eXIf", b"MM\0*\xff\xff")))
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert image_size(path) == SIZE


@pytest.mark.parametrize("orientation", TURNS)
def test_label_is_rotated_like_an_image(tmp_path: Path, orientation: int) -> None:
    expected = TURNS[orientation](IDS)
    segments = [{"id": number, "category_id": 0} for number in range(1, 4)]
    wide = np.dstack([IDS, IDS * 0, IDS * 0]).astype(np.uint16)
    for where in ("before", "behind"):
        turned = {where: exif_chunk(orientation)}
        gray = write(tmp_path / "gray.png", png(IDS, 2, 0, **turned))
        np.testing.assert_array_equal(ALL_IDS.read(gray), expected)
        assert ALL_IDS.size_of(gray) == expected.shape
        for depth in (8, 16):
            colors = write(tmp_path / "colors.png", png(wide, depth, 2, **turned))
            np.testing.assert_array_equal(LabelReader(ALL_IDS.label_ids, channel=0).read(colors), expected)
        panoptic = write(tmp_path / "panoptic.png", png(wide, 8, 2, **turned))
        np.testing.assert_array_equal(read_segments(panoptic, segments), expected)
    tagged = saved(tmp_path / "a.tif", Image.fromarray(IDS), tiffinfo={274: orientation})
    np.testing.assert_array_equal(ALL_IDS.read(tagged), expected)
    assert ALL_IDS.size_of(tagged) == expected.shape


# Ids


def random_ids(depth: int) -> np.ndarray:
    return np.random.default_rng(depth).integers(0, 2**depth, (6, 11))


RANGES = {highest: np.arange(highest + 1)[None] for highest in (3, 33, 254, 255, 1000)}
FILES = {
    **{f"PNG {d} {c}": (png(random_ids(d), d, c), random_ids(d)) for d in (1, 2, 4) for c in (0, 3)},
    "PNG 8 0": (png(random_ids(8), 8, 0), random_ids(8)),
    "PNG 8 3": (png(random_ids(8) % 80, 8, 3), random_ids(8) % 80),
    **{f"TIFF {d} {w}": (tiff(random_ids(d), d, w), random_ids(d)) for d in (1, 2, 4, 8) for w in (False, True)},
    **{f"{m} {top}": (pgm(m, ids, top), ids) for m in ("P2", "P5") for top, ids in RANGES.items()},
    "PBM": (b"P1 4 1\n0 1 1 0\n", np.array([[0, 1, 1, 0]])),
}


@pytest.mark.parametrize("kind", FILES)
def test_ids_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    content, ids = FILES[kind]
    np.testing.assert_array_equal(ALL_IDS.read(write(tmp_path / "a", content)), ids % 256)


@pytest.mark.parametrize("channel", [0, 2])
@pytest.mark.parametrize("depth", [2, 8])
def test_channel_of_a_palette_is_that_of_its_colors(tmp_path: Path, channel: int, depth: int) -> None:
    path = write(tmp_path / "a.png", png(IDS, depth, 3))
    np.testing.assert_array_equal(LabelReader(ALL_IDS.label_ids, channel=channel).read(path), IDS * 3 + channel)


LOSSY = {
    "JPEG": lambda p: saved(p / "a.jpg", Image.fromarray(IDS)),
    "JPEG by another name": lambda p: saved(p / "a.png", Image.fromarray(IDS), format="JPEG"),
    "WEBP": lambda p: saved(p / "a.webp", RGB),
    "TIFF of JPEG": lambda p: saved(p / "a.tif", Image.fromarray(IDS), compression="jpeg"),
}


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_label_is_refused(tmp_path: Path, kind: str) -> None:
    path, by_channel = LOSSY[kind](tmp_path), LabelReader(ALL_IDS.label_ids, channel=0)
    for read in (ALL_IDS.read, by_channel.read, ALL_IDS.size_of, lambda path: read_segments(path, [])):
        with expect_error(DatasetError, key=str(path), value=kind.split()[0], remedy="PNG"):
            read(path)


@pytest.mark.parametrize("suffix", ["jp2", "avif"])
def test_unsupported_format_names_the_supported_ones(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", RGB)
    for read in (read_image, ALL_IDS.read):
        with expect_error(DatasetError, key=str(path), remedy="PNG"):
            read(path)


# Text


LONG = chunk(b"tEXt", b"Comment\0" + b"a" * (1 << 20))
BOMB = zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (chunk(b"zTXt", b"Comment\0\0" + BOMB), "PngImagePlugin.MAX_TEXT_CHUNK"),
        (chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB), "PngImagePlugin.MAX_TEXT_CHUNK"),
        (LONG * 70, "MAX_TEXT_MEMORY"),
    ],
)
@pytest.mark.parametrize("where", ["before", "behind"])
def test_excessive_metadata_are_named(tmp_path: Path, where: str, text: bytes, value: str) -> None:
    path = write(tmp_path / "a.png", png(IDS, 8, 0, **{where: text}))
    for read in (read_image, load_rgb, ALL_IDS.read):
        with expect_error(DatasetError, key=str(path), value=value, remedy="metadata"):
            read(path)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_long_text_is_skipped(tmp_path: Path, where: str) -> None:
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", png(PIXELS, 8, 2, **{where: LONG}))), PIXELS)
