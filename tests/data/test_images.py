"""Damaged images, and INPUT.MAX_PIXELS in every function that opens an image."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from data_factory import data_config, make_dataset, registered, write_image, write_label
from error_matching import expect_error, explains
from famix.data import FAMixDatasetMapper, LabelReader, get_dataset_dicts, image_size, read_image, verify_datasets
from famix.data.check import inspect_headers
from famix.data.images import MAX_PIXELS
from famix.data.panoptic.segments import read_segments
from famix.evaluation import build_evaluator
from famix.inference.images import load_rgb
from famix.utils.errors import DatasetError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_image(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path / f"a.{suffix}", PIXELS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=rf"a\.{suffix}': it is damaged"):
        read_image(path)
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_missing_or_foreign_file(tmp_path: Path, read) -> None:
    with pytest.raises(DatasetError, match=r"not found: .*a\.png"):
        read(tmp_path / "a.png")
    for content in (b"", b"hello"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DatasetError, match=r"Cannot read .*a\.png"):
            read(tmp_path / "a.png")


READERS = {
    "image": read_image,
    "size": image_size,
    "Predictor": load_rgb,
    "PIL": lambda path, limit: load_rgb(Image.open(path), limit),
    "label": lambda path, limit: LabelReader({0: 0}, max_pixels=limit).read(path),
    "label's size": lambda path, limit: LabelReader({0: 0}, max_pixels=limit).size_of(path),
    "panoptic": lambda path, limit: read_segments(path, [], max_pixels=limit),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm", "gif"])
def test_limit_of_pixels_for_every_format(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path / f"a.{suffix}", PIXELS)
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    for read in READERS.values():
        with expect_error(DatasetError, key="INPUT.MAX_PIXELS", value=599, remedy="Raise INPUT.MAX_PIXELS") as caught:
            read(path, 599)
        explains(str(caught.value), key=str(path), value="30 x 20")


def gif(path: Path, side: int) -> Path:
    """Write 37 bytes that claim any size."""
    screen = struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    path.write_bytes(b"GIF89a" + screen + b",\0\0\0\0" + struct.pack("<HHB", side, side, 0) + b"\2\2D\1\0;")
    return path


@pytest.mark.parametrize("side", [8193, 13_300, 60_000])
def test_small_file_with_large_claims_is_not_decoded(tmp_path: Path, side: int, monkeypatch) -> None:
    path = gif(tmp_path / "a.gif", side)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for name, read in READERS.items():
        if name != "PIL" or side < 60_000:  # which Pillow refuses to open
            with expect_error(DatasetError, key="INPUT.MAX_PIXELS", value=side * side, remedy="Raise INPUT.MAX_PIXELS"):
                read(path, MAX_PIXELS)
    found = inspect_headers([{"file_name": path, "sem_seg_file_name": path}], LabelReader({0: 0}))
    assert "unreadable image" in found.counts


def test_gif_with_more_pixels_than_its_bytes_encode(tmp_path: Path, monkeypatch) -> None:
    path = gif(tmp_path / "a.gif", 8000)
    with monkeypatch.context() as context:
        context.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        with expect_error(DatasetError, key=str(path), value="8000 x 8000", remedy="Replace"):
            read_image(path)
    Image.new("P", (4000, 4000)).save(path)
    assert read_image(path).shape == (4000, 4000, 3)


def test_limit_of_a_config_reaches_mappers_checks_and_evaluators(tmp_path: Path) -> None:
    with registered(make_dataset(tmp_path, size=(24, 32))):
        cfg = data_config()
        (record, *_) = get_dataset_dicts(["tiny_train"])
        large = {**record, "file_name": str(write_image(tmp_path / "a.png", np.zeros((25, 32, 3), np.uint8)))}
        large_label = {**record, "label_file_name": str(write_label(tmp_path / "b.png", np.zeros((25, 32), np.uint8)))}
        cfg.INPUT.MAX_PIXELS = 24 * 32
        train, test = FAMixDatasetMapper(cfg, True), FAMixDatasetMapper(cfg, False)
        assert train(record)["sem_seg"].shape == (16, 16)
        assert test(record)["image"].shape == (3, 24, 32)
        for mapper, bad in ((train, large), (train, large_label), (test, large)):
            with expect_error(DatasetError, key="INPUT.MAX_PIXELS", value=24 * 32):
                mapper(bad)
        verify_datasets(["tiny_train"], max_pixels=24 * 32)
        with expect_error(DatasetError, key="INPUT.MAX_PIXELS", value=24 * 32 - 1):
            verify_datasets(["tiny_train"], max_pixels=24 * 32 - 1)
        cfg.INPUT.MAX_PIXELS = 700
        evaluator = build_evaluator(cfg, "tiny_val", str(tmp_path / "scores"))
        evaluator.reset()
        with expect_error(DatasetError, key="INPUT.MAX_PIXELS", value=700):
            evaluator.process([get_dataset_dicts(["tiny_val"])[0]], [{"sem_seg": torch.zeros(19, 24, 32)}])
