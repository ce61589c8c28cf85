"""Datasets made to lead out of their root, to last for ever or to fill the memory."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from data_factory import make_dataset, registered, write_definition, write_image, write_label
from error_matching import expect_error
from famix.data import LabelReader, get_dataset_dicts, image_size, load_definition, read_image
from famix.data.images import open_image
from famix.data.panoptic.segments import read_segments
from famix.data.registration import files_of
from famix.utils.errors import DatasetError
from panoptic_factory import make_panoptic, write_recipe

PIXELS = np.zeros((2, 3, 3), dtype=np.uint8)

# Out of the root


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.png", "a/../../../secret.png", "0.png\0"])
def test_json_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "secret.png", PIXELS)
    root = tmp_path / "data"
    make_panoptic(root, {"train": 1})
    file = root / "annotations/panoptic_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    with expect_error(DatasetError, "file_name"):
        files_of(load_definition(root / "panoptic.yaml"))[0]()


@pytest.mark.parametrize("line", ["/etc/passwd", "../a/0", "a/../../../a/0.png", "/data/set/images/train/a/0.png"])
def test_lists_lead_nowhere_else(tmp_path: Path, line: str) -> None:
    file = make_dataset(tmp_path, count=2, splits={"train": {"keys": "list.txt"}})
    (tmp_path / "list.txt").write_text(f"a/1\n{line}\n")
    with registered(file), expect_error(DatasetError, str(tmp_path / "list.txt"), line):
        get_dataset_dicts(["tiny_train"])


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b"])
@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (write_definition, lambda path: {"images": f"{path}/{{key}}.png"}),
        (write_definition, lambda path: {"labels": f"{path}/{{key}}.png"}),
        (write_definition, lambda path: {"splits": {"train": {"folder": path}}}),
        (write_definition, lambda path: {"splits": {"train": {"keys": path}}}),
        (write_definition, lambda path: {"label_ids": None, "label_names": {"a": "road"}, "label_names_file": path}),
        (write_definition, lambda path: _in_layout(keys=path)),
        (write_definition, lambda path: _in_layout(folders={"train": path})),
        (write_recipe, lambda path: {"images": f"{path}/{{key}}.png"}),
        (write_recipe, lambda path: {"panoptic_root": path}),
        (write_recipe, lambda path: {"panoptic_json": path}),
    ],
)
def test_definitions_lead_nowhere_else(tmp_path: Path, make: Any, changes: Any, path: str) -> None:
    file = make(tmp_path, **changes(path))
    with pytest.raises(DatasetError, match="must be a path below the root"):
        load_definition(file)


@pytest.mark.parametrize("key", ["panoptic_json", "panoptic_root"])
def test_names_longer_than_a_disk_takes(tmp_path: Path, key: str) -> None:
    make_panoptic(tmp_path, {"train": 1})
    file = write_recipe(tmp_path, **{key: "a" * 300})
    with pytest.raises(DatasetError, match=r"does not exist|missing in"):
        files_of(load_definition(file))[0]()


def test_folders_of_panoptic_splits_lead_nowhere_else(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    file.write_text(file.read_text().replace("train: {}", "train: {folder: ../other}"))
    with pytest.raises(DatasetError, match=r"'splits.train.folder' must be a path below the root, got '../other'"):
        load_definition(file)


def _in_layout(**entries: Any) -> dict[str, Any]:
    layout = {"images": "i/{split}/{key}.png", "labels": "l/{split}/{key}.png", "label_ids": "cityscapes", **entries}
    return {"images": None, "labels": None, "label_ids": None, "layouts": [layout], "splits": {"train": {}}}


# Links


def test_linked_files_and_folders_are_part_of_a_dataset(tmp_path: Path) -> None:
    """Users keep data on other disks."""
    elsewhere = tmp_path / "disk"
    file = make_dataset(tmp_path / "data", count=2, folders=("train",))
    for kind in ("images", "labels"):
        elsewhere.mkdir(exist_ok=True)
        (tmp_path / "data" / kind / "train").rename(elsewhere / kind)
        (tmp_path / "data" / kind / "train").symlink_to(elsewhere / kind)
    moved = elsewhere / "0.png"
    (elsewhere / "images/a/0.png").rename(moved)
    (elsewhere / "images/a/0.png").symlink_to(moved)
    with registered(file):
        assert len(get_dataset_dicts(["tiny_train"])) == 2


def test_links_to_a_folder_above_end(tmp_path: Path) -> None:
    """Two of them would be walked two to the power of forty times."""
    file = make_dataset(tmp_path, count=2, folders=("train",))
    for name in ("x", "y"):
        for kind in ("images", "labels"):
            (tmp_path / kind / "train/a" / name).symlink_to(tmp_path / kind / "train")
    with registered(file):
        assert len(get_dataset_dicts(["tiny_train"])) == 2


def test_two_links_to_one_folder_are_said(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=2, folders=("train",))
    (tmp_path / "images/train/b").symlink_to(tmp_path / "images/train/a")
    with (
        registered(file),
        pytest.raises(DatasetError, match=r"images/train/\w cannot be listed: it is the same folder as .*remove"),
    ):
        get_dataset_dicts(["tiny_train"])


# Images


def png(width: int, height: int, color: int = 2, data: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG with a sound header and any size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, interlaced)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


IMAGE_READERS: dict[str, Callable[[Path], Any]] = {
    "image": read_image,
    "size": image_size,
    "label": lambda path: LabelReader({0: 0}).read(path),
    "channel": lambda path: LabelReader({0: 0}, channel=0).read(path),
    "panoptic": lambda path: read_segments(path, [{"id": 1, "category_id": 0}]),
}


@pytest.mark.parametrize("reader", IMAGE_READERS)
@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (60_000, 3000)])
def test_images_that_claim_gigapixels(tmp_path: Path, reader: str, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png(*size))
    with pytest.raises(DatasetError, match=r"a\.png (claims to be too large|cannot be read)"):
        IMAGE_READERS[reader](tmp_path / "a.png")


@pytest.mark.parametrize("reader", IMAGE_READERS)
def test_images_that_claim_more_than_their_bytes_can_hold(tmp_path: Path, reader: str) -> None:
    """Below Pillow's limit, and interlaced: it would fill up what is missing, in gigabytes."""
    (tmp_path / "a.png").write_bytes(png(112, 500_000, interlaced=True))
    with pytest.raises(DatasetError, match=r"a\.png claims to be too large.*112 x 500000.*more than its \d+ bytes"):
        IMAGE_READERS[reader](tmp_path / "a.png")


@pytest.mark.parametrize(("mode", "bits"), [("1", 1), ("P", 2), ("L", 8), ("I;16", 16), ("RGB", 24), ("RGBA", 32)])
def test_images_of_nothing_but_one_colour_can_be_small(tmp_path: Path, mode: str, bits: int) -> None:
    Image.new(mode, (2048, 3000)).save(tmp_path / "a.png", compress_level=9, **({"bits": 2} if mode == "P" else {}))
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (2048, 3000)
    assert 2048 * 3000 * bits / 8 / (tmp_path / "a.png").stat().st_size > 300, "the test needs what compresses well"


@pytest.mark.parametrize("reader", IMAGE_READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_images_that_are_no_files(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "a.png"
    {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[kind](path)
    with pytest.raises(DatasetError, match=r"a\.png cannot be read.*(regular file|a folder)"):
        IMAGE_READERS[reader](path)


@pytest.mark.parametrize("reader", IMAGE_READERS)
def test_formats_that_start_programs_are_no_images(tmp_path: Path, reader: str) -> None:
    """Pillow hands PostScript to an interpreter, whatever the file is called."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").format == "EPS"
    with pytest.raises(DatasetError, match=r"a\.png cannot be read"):
        IMAGE_READERS[reader](tmp_path / "a.png")


def test_a_flipped_bit_becomes_no_other_label(tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.png", np.zeros((4, 4), dtype=np.uint8))
    sound = bytes(png(4, 4, color=0, data=b"\0" * 20))
    wrong = bytes(png(4, 4, color=0, data=b"\0" * 19 + b"\1"))
    checksum = wrong.index(b"IEND") - 8
    path.write_bytes(sound)
    assert LabelReader({0: 0, 1: 1}).read(path).max() == 0
    path.write_bytes(wrong[:checksum] + bytes(4) + wrong[checksum + 4 :])  # other pixels than the checksum's
    with pytest.raises(DatasetError, match=r"a\.png cannot be read, it is damaged"):
        LabelReader({0: 0, 1: 1}).read(path)


# Lists


def test_a_list_of_a_hundred_thousand_equal_lines(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=1, splits={"train": {"keys": "list.txt"}})
    (tmp_path / "list.txt").write_text("".join(f"{number}\n" * 2 for number in range(100_000)))
    with registered(file), pytest.raises(DatasetError, match=r"lists 100000 key\(s\) more than once"):
        get_dataset_dicts(["tiny_train"])


def matlab(*elements: bytes) -> bytes:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + b"".join(elements)


def compressed(content: bytes) -> bytes:
    data = zlib.compress(content)
    return struct.pack("<II", 15, len(data)) + data


def of_numbers(number: float) -> bytes:
    savemat(stream := io.BytesIO(), {"trainIds": np.array([number])})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *((content, r"few\.mat cannot be read: it") for content in (
            matlab(compressed(bytes(100 << 20))),
            matlab(*[compressed(struct.pack("<II", 1, 8 << 20) + bytes(8 << 20))] * 10),
            matlab(struct.pack("<II", 14, 1 << 30)),
            matlab(struct.pack("<II", 14, 8) + bytes(8)),
            matlab(compressed(b"")),
            matlab()[:100],
        )),
        *((of_numbers(n), "its array trainIds must contain integers") for n in (1.5, -1.0, np.nan, np.inf, 1e300)),
    ],
    ids=["a bomb", "many bombs", "a claim", "an empty array", "nothing compressed", "half a header", "a fraction",
         "negative", "no number", "infinity", "huge"],
)  # fmt: skip
def test_lists_of_matlab(tmp_path: Path, content: bytes, says: str) -> None:
    file = make_dataset(tmp_path, count=1, splits={"few": {"folder": "train", "keys": "few.mat"}})
    (tmp_path / "few.mat").write_bytes(content)
    with registered(file), pytest.raises(DatasetError, match=says):
        get_dataset_dicts(["tiny_few"])


def test_three_hundred_classes(tmp_path: Path) -> None:
    classes = [{"name": f"c{number}", "color": [0, 0, 0]} for number in range(300)]
    for write in (write_definition, write_recipe):
        file = write(tmp_path, classes=classes)
        with expect_error(DatasetError, "'classes'", "300 classes"):
            load_definition(file)
    assert yaml.safe_load(file.read_text())["classes"]
