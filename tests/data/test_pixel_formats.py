"""One reader decides depth, orientation and size; what it cannot represent exactly is refused by name."""

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
IDS = np.random.default_rng(1).integers(0, 4, SIZE, dtype=np.uint8)
ALL_IDS = LabelReader({number: number for number in range(256)})
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}  # what an EXIF orientation asks for


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, depth: int, color: int, before: bytes = b"", behind: bytes = b"") -> bytes:
    """A PNG of (H, W) or (H, W, C) whole numbers, with further chunks before and behind its pixels."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = (rows[..., None] >> np.arange(depth)[::-1]) & 1
        packed = [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits]
    palette = chunk(b"PLTE", bytes(value % 256 for value in range(3 * 2**depth))) if color == 3 else b""
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)),
            before + palette,
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed))),
            behind + chunk(b"IEND", b""),
        ]
    )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def readers(path: Path) -> list[Callable[[], np.ndarray]]:
    """Every way from a file to the pixels of an image."""
    return [
        lambda: read_image(path),
        lambda: read_image(path, "BGR")[:, :, ::-1],
        lambda: load_rgb(path),
        lambda: load_rgb(Image.open(path)),
    ]


# Depth and colours

RGB, WIDE = Image.fromarray(PIXELS), PIXELS.astype(np.uint16) * 257
REFUSED = {
    "16-bit grey PNG": lambda p: saved(p / "a.png", Image.fromarray(WIDE[..., 0])),
    "16-bit RGB PNG": lambda p: write(p / "a.png", png(WIDE, 16, 2)),
    "16-bit RGBA PNG": lambda p: write(p / "a.png", png(np.dstack([WIDE, WIDE[..., :1]]), 16, 6)),
    "16-bit grey and alpha PNG": lambda p: write(p / "a.png", png(WIDE[..., :2], 16, 4)),
    "16-bit grey TIFF": lambda p: saved(p / "a.tif", Image.fromarray(WIDE[..., 0])),
    "32-bit TIFF": lambda p: saved(p / "a.tif", Image.fromarray(WIDE[..., 0].astype(np.int32))),
    "float TIFF": lambda p: saved(p / "a.tif", Image.fromarray(WIDE[..., 0].astype(np.float32))),
    "16-bit PGM": lambda p: write(p / "a.pgm", b"P5 7 5 65535\n" + WIDE[..., 0].tobytes()),
    "10-bit PPM": lambda p: write(p / "a.ppm", b"P6 7 5 1023\n" + bytes(7 * 5 * 6)),
    "CMYK JPEG": lambda p: saved(p / "a.jpg", RGB.convert("CMYK")),
    "CMYK TIFF": lambda p: saved(p / "a.tif", RGB.convert("CMYK")),
    "LAB TIFF": lambda p: saved(p / "a.tif", Image.new("LAB", (7, 5))),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_images_of_more_than_eight_bits_or_other_colours_are_refused(tmp_path: Path, kind: str) -> None:
    path = REFUSED[kind](tmp_path)
    for read in [*readers(path), lambda: image_size(path)]:
        with expect_error(DatasetError, key=str(path), value=Image.open(path).mode, remedy="8-bit RGB"):
            read()


def test_sixteen_bit_tiffs_and_panoptic_labels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(WIDE, 16, 2))
    with expect_error(DatasetError, key=str(path), value="16", remedy="COCO's"):
        read_segments(path, [])
    path = tmp_path / "a.tiff"
    assert cv2.imwrite(str(path), WIDE)
    with expect_error(DatasetError, key=str(path), value="16", remedy="8-bit RGB"):
        read_image(path)


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "CMYK", "HSV", "LAB", "YCbCr"])
def test_pil_images_of_other_modes_are_refused(mode: str) -> None:
    with expect_error(DatasetError, key="PIL", value=mode, remedy="8-bit RGB"):
        load_rgb(Image.new(mode, (7, 5)))


TRANSPARENT = {
    "RGBA": lambda p: saved(p, Image.fromarray(np.dstack([PIXELS, IDS]))),
    "LA": lambda p: saved(p, Image.merge("LA", [RGB.getchannel(0), Image.new("L", RGB.size, 254)])),
    "palette": lambda p: saved(p, RGB.quantize(8), transparency=0),
    "colour": lambda p: saved(p, RGB, transparency=tuple(PIXELS[2, 2].tolist())),
    "grey": lambda p: saved(p, RGB.convert("L"), transparency=RGB.convert("L").getpixel((1, 1))),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_images_with_transparent_pixels_are_refused(tmp_path: Path, kind: str) -> None:
    path = TRANSPARENT[kind](tmp_path / "a.png")
    for read in readers(path):
        with expect_error(DatasetError, key=str(path), value="transparent", remedy="background"):
            read()


GREY2, GREY4 = PIXELS[..., 0] >> 6, PIXELS[..., 0] >> 4
EXACT = {
    "RGBA": (lambda p: saved(p / "a.png", RGB.convert("RGBA")), PIXELS),
    "LA": (lambda p: saved(p / "a.png", Image.fromarray(PIXELS[..., 0]).convert("LA")), PIXELS[..., 0]),
    "an unused transparent colour": (lambda p: saved(p / "a.png", RGB, transparency=(1, 2, 3)), PIXELS),
    "grey": (lambda p: saved(p / "a.bmp", Image.fromarray(PIXELS[..., 0])), PIXELS[..., 0]),
    "1-bit grey": (lambda p: write(p / "a.png", png(IDS & 1, 1, 0)), (IDS & 1) * 255),
    "2-bit grey": (lambda p: write(p / "a.png", png(GREY2, 2, 0)), GREY2 * 85),
    "4-bit grey": (lambda p: write(p / "a.png", png(GREY4, 4, 0)), GREY4 * 17),
    "2-bit palette": (lambda p: write(p / "a.png", png(IDS, 2, 3)), IDS[..., None] * 3 + np.arange(3)),
    "GIF": (
        lambda p: saved(p / "a.gif", RGB.quantize(256)),
        np.asarray(RGB.quantize(256).convert("RGB")),
    ),
    "PPM": (lambda p: saved(p / "a.ppm", RGB), PIXELS),
    "TIFF": (lambda p: saved(p / "a.tif", RGB, compression="tiff_lzw"), PIXELS),
    "WebP": (lambda p: saved(p / "a.webp", RGB, lossless=True), PIXELS),
}


@pytest.mark.parametrize("kind", EXACT)
def test_other_images_become_rgb_exactly(tmp_path: Path, kind: str) -> None:
    make, expected = EXACT[kind]
    path = make(tmp_path)
    expected = np.broadcast_to(expected[..., None] if expected.ndim == 2 else expected, (*SIZE, 3))
    for read in readers(path):
        np.testing.assert_array_equal(read(), expected)
    assert image_size(path) == SIZE


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_files_of_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [RGB, RGB.transpose(Image.Transpose.ROTATE_180)]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    for read in (read_image, image_size, ALL_IDS.read, load_rgb):
        with expect_error(DatasetError, key=str(path), value="several", remedy="PNG"):
            read(path)
    image = Image.open(path)
    image.seek(1)
    second = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_rgb(image), second, "a program that goes through frames means the current one")


def test_the_first_picture_of_a_camera_s_jpeg_counts(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RGB, format="MPO", save_all=True, append_images=[RGB.resize((4, 3))])
    assert read_image(path).shape == (*SIZE, 3)


# Orientation


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def exif_chunk(orientation: int) -> bytes:
    return chunk(b"eXIf", exif(orientation).tobytes()[6:])


def xmp_chunk(orientation: int) -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation))


def raw_profile(orientation: int) -> bytes:
    content = exif(orientation).tobytes()
    text = f"\nexif\n{len(content)}\n{content.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


PLACES = {
    "JPEG EXIF": ("jpg", lambda o: {"exif": exif(o), "quality": 100, "subsampling": 0}),
    "JPEG XMP": ("jpg", lambda o: {"xmp": xmp(o), "quality": 100, "subsampling": 0}),
    "TIFF tag": ("tif", lambda o: {"tiffinfo": {274: o}}),
    "compressed TIFF": ("tif", lambda o: {"tiffinfo": {274: o}, "compression": "tiff_lzw"}),
    "TIFF XMP": ("tif", lambda o: {"tiffinfo": {700: xmp(o)}}),
    "WebP EXIF": ("webp", lambda o: {"exif": exif(o), "lossless": True}),
    "WebP XMP": ("webp", lambda o: {"xmp": xmp(o), "lossless": True}),
}
CHUNKS = {"eXIf": exif_chunk, "XMP": xmp_chunk, "raw profile": raw_profile}


def require_upright(path: Path, orientation: int) -> None:
    plain = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    expected = TURNS[orientation](PIXELS)
    assert np.abs(plain.astype(int) - expected).max() < 40, "the test needs a file that other programs turn, too"
    for read in readers(path):
        np.testing.assert_array_equal(read(), plain)
    loaded = Image.open(path)
    loaded.load()
    np.testing.assert_array_equal(load_rgb(loaded), plain)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_the_orientation_counts_once(tmp_path: Path, place: str, orientation: int) -> None:
    suffix, options = PLACES[place]
    require_upright(saved(tmp_path / f"a.{suffix}", RGB, **options(orientation)), orientation)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("place", CHUNKS)
@pytest.mark.parametrize("where", ["before", "behind"])
def test_chunks_before_and_behind_the_pixels_of_a_png(tmp_path: Path, place: str, where: str, orientation: int) -> None:
    chunks = {"before": chunk(b"tEXt", b"Comment\0a comment"), "behind": b""}
    chunks[where] += CHUNKS[place](orientation)
    require_upright(write(tmp_path / "a.png", png(PIXELS, 8, 2, **chunks)), orientation)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_turn_nothing(tmp_path: Path, value: int) -> None:
    require_upright(write(tmp_path / "a.png", png(PIXELS, 8, 2, before=exif_chunk(value))), 1)
    require_upright(saved(tmp_path / "a.tif", RGB, tiffinfo={274: value}), 1)


def test_damaged_exif_data_loses_no_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(PIXELS, 8, 2, before=chunk(b"eXIf", b"MM\0*\xff\xff")))
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert image_size(path) == SIZE


@pytest.mark.parametrize("orientation", TURNS)
def test_labels_turn_as_images_do(tmp_path: Path, orientation: int) -> None:
    expected = TURNS[orientation](IDS)
    segments = [{"id": number, "category_id": 0} for number in range(1, 4)]
    wide = np.dstack([IDS, IDS * 0, IDS * 0]).astype(np.uint16)
    for where in ("before", "behind"):
        turned = {where: exif_chunk(orientation)}
        grey = write(tmp_path / "grey.png", png(IDS, 2, 0, **turned))
        np.testing.assert_array_equal(ALL_IDS.read(grey), expected)
        assert ALL_IDS.size_of(grey) == expected.shape
        for depth in (8, 16):
            colours = write(tmp_path / "colours.png", png(wide, depth, 2, **turned))
            np.testing.assert_array_equal(LabelReader(ALL_IDS.label_ids, channel=0).read(colours), expected)
        panoptic = write(tmp_path / "panoptic.png", png(wide, 8, 2, **turned))
        np.testing.assert_array_equal(read_segments(panoptic, segments), expected)
    tiff = saved(tmp_path / "a.tif", Image.fromarray(IDS), tiffinfo={274: orientation})
    np.testing.assert_array_equal(ALL_IDS.read(tiff), expected)
    for image in (read_image(tiff), load_rgb(tiff), load_rgb(Image.open(tiff))):
        np.testing.assert_array_equal(image[..., 0], expected)
    assert ALL_IDS.size_of(tiff) == expected.shape


# Ids


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("color", [0, 3])
def test_small_depths_keep_the_ids(tmp_path: Path, depth: int, color: int) -> None:
    ids = np.random.default_rng(depth).integers(0, min(2**depth, 80), (6, 11))
    path = write(tmp_path / "a.png", png(ids, depth, color))
    np.testing.assert_array_equal(ALL_IDS.read(path), ids)


def tiff(ids: np.ndarray, depth: int, white_is_zero: bool) -> bytes:
    bits = (ids[..., None] >> np.arange(depth)[::-1]) & 1
    data = np.packbits(bits.reshape(len(ids), -1).astype(np.uint8), axis=1).tobytes()
    tags = [(256, ids.shape[1]), (257, ids.shape[0]), (258, depth), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8), (277, 1), (278, ids.shape[0]), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_ids_in_tiffs(tmp_path: Path, depth: int, white_is_zero: bool) -> None:
    ids = np.random.default_rng(depth).integers(0, 2**depth, (6, 16))
    path = write(tmp_path / "a.tif", tiff(ids, depth, white_is_zero))
    np.testing.assert_array_equal(ALL_IDS.read(path), ids)


@pytest.mark.parametrize("highest", [3, 33, 254, 255])
@pytest.mark.parametrize("magic", ["P5", "P2"])
def test_ids_in_pgm_files_of_any_highest_value(tmp_path: Path, highest: int, magic: str) -> None:
    ids = np.arange(highest + 1, dtype=np.uint8)[None]
    data = ids.tobytes() if magic == "P5" else " ".join(map(str, ids.ravel())).encode()
    path = write(tmp_path / "a.pgm", f"{magic} {highest + 1} 1 {highest}\n".encode() + data + b"\n")
    np.testing.assert_array_equal(ALL_IDS.read(path), ids)


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (b"P5 3 1 1000\n" + np.array([0, 700, 999], ">u2").tobytes(), [[0, 1, 2]]),
        (b"P1 4 1\n0 1 1 0\n", [[0, 1, 1, 0]]),
    ],
    ids=["PGM of 16 bits", "PBM"],
)
def test_ids_in_other_netpbm_files(tmp_path: Path, content: bytes, ids: list[list[int]]) -> None:
    path = write(tmp_path / "a.pnm", content)
    np.testing.assert_array_equal(LabelReader({0: 0, 1: 1, 700: 1, 999: 2}).read(path), ids)


@pytest.mark.parametrize("channel", [0, 2])
@pytest.mark.parametrize("depth", [2, 8])
def test_a_channel_of_a_palette_is_that_of_its_colours(tmp_path: Path, channel: int, depth: int) -> None:
    path = write(tmp_path / "a.png", png(IDS, depth, 3)[:2000])
    reader = LabelReader(ALL_IDS.label_ids, channel=channel)
    np.testing.assert_array_equal(reader.read(path), IDS * 3 + channel)


LOSSY = {
    "JPEG": lambda p: saved(p / "a.jpg", Image.fromarray(IDS)),
    "JPEG by another name": lambda p: saved(p / "a.png", Image.fromarray(IDS), format="JPEG"),
    "WEBP": lambda p: saved(p / "a.webp", RGB),
    "TIFF of JPEG": lambda p: saved(p / "a.tif", Image.fromarray(IDS), compression="jpeg"),
}


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("channel", [None, 0])
def test_labels_in_lossy_formats_are_refused(tmp_path: Path, kind: str, channel: int | None) -> None:
    path = LOSSY[kind](tmp_path)
    reader = LabelReader(ALL_IDS.label_ids, channel=channel)
    for read in (reader.read, reader.size_of, lambda path: read_segments(path, [])):
        with expect_error(DatasetError, key=str(path), value=kind.split()[0], remedy="PNG"):
            read(path)


@pytest.mark.parametrize("suffix", ["jp2", "avif"])
def test_other_formats_are_named(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", RGB)
    for read in (read_image, ALL_IDS.read):
        with expect_error(DatasetError, key=str(path), remedy="PNG"):
            read(path)


# Text


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_text_of_pngs_is_read_or_named(tmp_path: Path, where: str, kind: str) -> None:
    compressed = zlib.compress(bytes(2_000_000))
    key = b"Comment\0" + (b"\0" if kind == "zTXt" else b"\1\0\0\0" if kind == "iTXt" else b"")
    content = key + (b"a" * 2_000_000 if kind == "tEXt" else compressed)
    path = write(tmp_path / "a.png", png(PIXELS, 8, 2, **{where: chunk(kind.encode(), content)}))
    if kind == "tEXt":
        np.testing.assert_array_equal(read_image(path), PIXELS)
        return
    for read in (read_image, load_rgb, ALL_IDS.read):
        with expect_error(DatasetError, key=str(path), value="PngImagePlugin.MAX_TEXT_CHUNK", remedy="metadata"):
            read(path)


def test_very_much_text_of_pngs_is_named(tmp_path: Path) -> None:
    text = chunk(b"tEXt", b"Comment\0" + b"a" * (1 << 20)) * 70
    path = write(tmp_path / "a.png", png(PIXELS, 8, 2, before=text))
    for read in (read_image, image_size):
        with expect_error(DatasetError, key=str(path), value="MAX_TEXT_MEMORY", remedy="metadata"):
            read(path)
