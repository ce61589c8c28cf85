"""Panoptic PNGs, read and resampled."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from data_factory import write_image
from error_matching import expect_error
from famix.data.panoptic.segments import decode_numbers, encode_ids, encode_numbers, read_segments, visible_segments
from famix.utils.errors import DatasetError

ROAD, CAR, WHITE = 7, 26_001, 16_777_215
IDS = np.array([[ROAD, ROAD, 0], [CAR, WHITE, 999]])
SEGMENTS = [
    {"id": CAR, "category_id": 13, "iscrowd": 0},
    {"id": ROAD, "category_id": 0, "iscrowd": 0},
    {"id": WHITE, "category_id": 10, "iscrowd": 0},
]


@pytest.fixture
def label(tmp_path: Path) -> Path:
    return write_image(tmp_path / "label.png", encode_ids(IDS))


def test_a_colour_is_red_plus_256_green_plus_65536_blue() -> None:
    assert encode_ids(np.array([[1 + 256 * 2 + 65536 * 3]])).tolist() == [[[1, 2, 3]]]


def test_pixels_get_the_place_of_their_segment(label: Path) -> None:
    assert read_segments(label, SEGMENTS, [999]).tolist() == [[2, 2, 0], [1, 3, 0]]


def test_segments_that_are_not_listed_or_not_shown_are_errors(label: Path) -> None:
    with expect_error(DatasetError, str(label), 999):
        read_segments(label, SEGMENTS)
    absent = [*SEGMENTS, {"id": 5, "category_id": 1, "iscrowd": 0}]
    with expect_error(DatasetError, str(label), 5):
        read_segments(label, absent, [999])
    assert read_segments(label, absent, [999], all_visible=False).tolist() == [[2, 2, 0], [1, 3, 0]]


def test_files_that_are_no_panoptic_png_are_errors(label: Path, tmp_path: Path) -> None:
    Image.open(label).convert("L").save(tmp_path / "grey.png")
    with expect_error(DatasetError, key=str(tmp_path / "grey.png"), value="L", remedy="COCO's"):
        read_segments(tmp_path / "grey.png", SEGMENTS)
    (tmp_path / "cut.png").write_bytes(label.read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"cut\.png cannot be read"):
        read_segments(tmp_path / "cut.png", SEGMENTS)
    with pytest.raises(DatasetError, match=r"gone\.png does not exist"):
        read_segments(tmp_path / "gone.png", SEGMENTS)


@pytest.mark.parametrize("pad_value", [1, 255])
def test_numbers_survive_resampling_and_padding_is_no_segment(pad_value: int) -> None:
    numbers = np.array([[0, 1], [300, 65_534]], dtype=np.uint16)
    changes = T.TransformList([T.ResizeTransform(2, 2, 4, 4), T.PadTransform(0, 0, 1, 0, seg_pad_value=pad_value)])
    got = decode_numbers(changes.apply_segmentation(encode_numbers(numbers)))
    assert got.tolist() == [[*row, 0] for row in numbers.repeat(2, 0).repeat(2, 1).tolist()]


def test_visible_segments_are_those_of_the_crop() -> None:
    visible = visible_segments(np.array([[3, 0], [1, 1]]), SEGMENTS)
    assert visible == [{**SEGMENTS[0], "id": 1}, {**SEGMENTS[2], "id": 3}]
