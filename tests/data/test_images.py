import numpy as np
import pytest
from PIL import Image

from data_factory import write_image
from famix.data import image_size, read_image
from famix.errors import DatasetError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_reads_rgb(tmp_path):
    path = write_image(tmp_path / "a.png", PIXELS)
    np.testing.assert_array_equal(read_image(path), PIXELS)
    np.testing.assert_array_equal(read_image(path, "BGR"), PIXELS[:, :, ::-1])
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_converts_to_rgb(tmp_path, mode):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert read_image(path).shape == (20, 30, 3)
    assert read_image(path).dtype == np.uint8


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_turns_upright_as_exif_says(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6  # must be turned clockwise by a quarter
    image.save(path, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    assert image_size(path) == read_image(path).shape[:2] == (30, 20)
    if suffix == "png":
        np.testing.assert_array_equal(read_image(path), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_image(tmp_path, suffix):
    path = write_image(tmp_path / f"a.{suffix}", PIXELS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=rf"a\.{suffix} cannot be read, it is damaged"):
        read_image(path)
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_missing_empty_and_foreign_files(tmp_path, read):
    with pytest.raises(DatasetError, match=r"a\.png does not exist"):
        read(tmp_path / "a.png")
    for content in (b"", b"hello"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DatasetError, match=r"a\.png cannot be read"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, image_size])
def test_refuses_decompression_bombs(tmp_path, monkeypatch, read):
    path = write_image(tmp_path / "a.png", PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"a\.png claims to be too large"):
        read(path)
