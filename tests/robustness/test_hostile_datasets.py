"""Datasets that point outside their root, never end or fill the memory."""

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
from PIL import Image
from scipy.io import savemat

from data_factory import make_dataset, registered, write_definition, write_image
from error_matching import expect_error
from famix.data import LabelReader, get_dataset_dicts, image_size, load_definition, read_image
from famix.data.images import open_image
from famix.data.panoptic.segments import read_segments
from famix.data.registration import files_of
from famix.utils.errors import DatasetError
from panoptic_factory import make_panoptic, write_recipe
from robustness.mutations import make_png

# Paths outside the root


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.png", "a/../../../secret.png", "0.png\0"])
def test_json_cannot_name_files_outside_the_root(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "secret.png", np.zeros((2, 3, 3), dtype=np.uint8))
    root = tmp_path / "data"
    make_panoptic(root, {"train": 1})
    file = root / "annotations/panoptic_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    with expect_error(DatasetError, "file_name"):
        files_of(load_definition(root / "panoptic.yaml"))[0]()


@pytest.mark.parametrize("line", ["/etc/passwd", "../a/0", "a/../../../a/0.png", "/data/set/images/train/a/0.png"])
def test_lists_cannot_name_files_outside_the_root(tmp_path: Path, line: str) -> None:
    file = make_dataset(tmp_path, count=2, splits={"train": {"keys": "list.txt"}})
    (tmp_path / "list.txt").write_text(f"a/1\n{line}\n")
    with registered(file), expect_error(DatasetError, str(tmp_path / "list.txt"), line):
        get_dataset_dicts(["tiny_train"])


def in_layout(**entries: Any) -> dict[str, Any]:
    layout = {"images": "i/{split}/{key}.png", "labels": "l/{split}/{key}.png", "label_ids": "cityscapes", **entries}
    return {"images": None, "labels": None, "label_ids": None, "layouts": [layout], "splits": {"train": {}}}


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b"])
@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (write_definition, lambda path: {"images": f"{path}/{{key}}.png"}),
        (write_definition, lambda path: {"labels": f"{path}/{{key}}.png"}),
        (write_definition, lambda path: {"splits": {"train": {"folder": path}}}),
        (write_definition, lambda path: {"splits": {"train": {"keys": path}}}),
        (write_definition, lambda path: {"label_ids": None, "label_names": {"a": "road"}, "label_names_file": path}),
        (write_definition, lambda path: in_layout(keys=path)),
        (write_definition, lambda path: in_layout(folders={"train": path})),
        (write_recipe, lambda path: {"images": f"{path}/{{key}}.png"}),
        (write_recipe, lambda path: {"panoptic_root": path}),
        (write_recipe, lambda path: {"panoptic_json": path}),
    ],
)
def test_definitions_cannot_leave_the_root(tmp_path: Path, make: Any, changes: Any, path: str) -> None:
    with expect_error(DatasetError, "must be a path below the root"):
        load_definition(make(tmp_path, **changes(path)))


def test_panoptic_split_folders_cannot_leave_the_root(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    file.write_text(file.read_text().replace("train: {}", "train: {folder: ../other}"))
    with expect_error(DatasetError, "'splits.train.folder' must be a path below the root", "../other"):
        load_definition(file)


@pytest.mark.parametrize("key", ["panoptic_json", "panoptic_root"])
def test_too_long_names_are_missing_files(tmp_path: Path, key: str) -> None:
    make_panoptic(tmp_path, {"train": 1})
    file = write_recipe(tmp_path, **{key: "a" * 300})
    with pytest.raises(DatasetError, match=r"does not exist|not found|missing from"):
        files_of(load_definition(file))[0]()


def test_linked_files_and_folders_are_read(tmp_path: Path) -> None:
    disk, data = tmp_path / "disk", tmp_path / "data"
    file = make_dataset(data, count=2, folders=("train",))
    disk.mkdir()
    for kind in ("images", "labels"):
        (data / kind / "train").rename(disk / kind)
        (data / kind / "train").symlink_to(disk / kind)
    (disk / "images/a/0.png").rename(disk / "0.png")
    (disk / "images/a/0.png").symlink_to(disk / "0.png")
    with registered(file):
        assert len(get_dataset_dicts(["tiny_train"])) == 2


def test_links_to_a_parent_folder_end(tmp_path: Path) -> None:
    """Following two of them would take 2 ** 40 steps."""
    file = make_dataset(tmp_path, count=2, folders=("train",))
    for name in ("x", "y"):
        for kind in ("images", "labels"):
            (tmp_path / kind / "train/a" / name).symlink_to(tmp_path / kind / "train")
    with registered(file):
        assert len(get_dataset_dicts(["tiny_train"])) == 2


def test_two_links_to_one_folder_are_refused(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=2, folders=("train",))
    (tmp_path / "images/train/b").symlink_to(tmp_path / "images/train/a")
    with registered(file), pytest.raises(DatasetError, match=r"images/train/\w.*same folder.*(?i:remove)"):
        get_dataset_dicts(["tiny_train"])


# Images


def png(width: int, height: int, color: int = 2, data: bytes = b"", interlaced: bool = False) -> bytes:
    """Return a PNG with a valid header and any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, interlaced)
    return make_png((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))


def save_postscript(path: Path) -> None:
    """Pillow passes PostScript to an interpreter, whatever the name of the file."""
    Image.new("RGB", (4, 4)).save(path, format="EPS")
    assert Image.open(path).format == "EPS"


IMAGE_READERS: dict[str, Callable[[Path], Any]] = {
    "image": read_image,
    "size": image_size,
    "label": lambda path: LabelReader({0: 0}).read(path),
    "channel": lambda path: LabelReader({0: 0}, channel=0).read(path),
    "panoptic": lambda path: read_segments(path, [{"id": 1, "category_id": 0}]),
}
GIGAPIXELS = r"a\.png'( is too large|: it is)"
HOSTILE_IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a huge square": (lambda path: path.write_bytes(png(100_000, 100_000)), GIGAPIXELS),
    "a huge row": (lambda path: path.write_bytes(png(2**31 - 1, 1)), GIGAPIXELS),
    "a huge image": (lambda path: path.write_bytes(png(60_000, 3000)), GIGAPIXELS),
    "more pixels than bytes": (  # below Pillow's limit; interlaced, so that it would fill in gigabytes
        lambda path: path.write_bytes(png(112, 500_000, interlaced=True)),
        r"a\.png' is damaged.*112 x 500000.*more than its \d+ bytes",
    ),
    "a pipe": (os.mkfifo, r"Cannot read .*a\.png.*regular file"),
    "a folder": (Path.mkdir, r"Cannot read .*a\.png.*a folder"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), r"Cannot read .*a\.png.*regular file"),
    "a program": (save_postscript, r"Cannot read .*a\.png"),
}


@pytest.mark.parametrize("reader", IMAGE_READERS)
@pytest.mark.parametrize("attack", HOSTILE_IMAGES)
def test_hostile_images_are_refused(tmp_path: Path, reader: str, attack: str) -> None:
    make, says = HOSTILE_IMAGES[attack]
    make(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=says):
        IMAGE_READERS[reader](tmp_path / "a.png")


@pytest.mark.parametrize(("mode", "bits"), [("1", 1), ("P", 2), ("L", 8), ("I;16", 16), ("RGB", 24), ("RGBA", 32)])
def test_small_files_of_one_color_are_read(tmp_path: Path, mode: str, bits: int) -> None:
    Image.new(mode, (2048, 3000)).save(tmp_path / "a.png", compress_level=9, **({"bits": 2} if mode == "P" else {}))
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (2048, 3000)
    assert 2048 * 3000 * bits / 8 / (tmp_path / "a.png").stat().st_size > 300, "the test needs a high compression"


def test_a_flipped_bit_in_a_label_is_noticed(tmp_path: Path) -> None:
    path, wrong = tmp_path / "a.png", png(4, 4, color=0, data=b"\0" * 19 + b"\1")
    checksum = wrong.index(b"IEND") - 8
    path.write_bytes(png(4, 4, color=0, data=b"\0" * 20))
    assert LabelReader({0: 0, 1: 1}).read(path).max() == 0
    path.write_bytes(wrong[:checksum] + bytes(4) + wrong[checksum + 4 :])
    with pytest.raises(DatasetError, match=r"a\.png': it is damaged"):
        LabelReader({0: 0, 1: 1}).read(path)


# Lists and classes


def test_repeated_lines_are_counted(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=1, splits={"train": {"keys": "list.txt"}})
    (tmp_path / "list.txt").write_text("".join(f"{number}\n" * 2 for number in range(100_000)))
    with registered(file), pytest.raises(DatasetError, match="100000"):
        get_dataset_dicts(["tiny_train"])


def matlab(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + b"".join(elements)


def compressed(content: bytes) -> bytes:
    data = zlib.compress(content)
    return struct.pack("<II", 15, len(data)) + data


def of_numbers(number: float) -> bytes:
    savemat(stream := io.BytesIO(), {"trainIds": np.array([number])})
    return stream.getvalue()


DAMAGED, INTEGERS = r"cannot read .*few\.mat': it", "its array 'trainIds' must"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(matlab(compressed(bytes(100 << 20))), DAMAGED, id="a bomb"),
        pytest.param(
            matlab(*[compressed(struct.pack("<II", 1, 8 << 20) + bytes(8 << 20))] * 10), DAMAGED, id="many bombs"
        ),
        pytest.param(matlab(struct.pack("<II", 14, 1 << 30)), DAMAGED, id="a claim"),
        pytest.param(matlab(struct.pack("<II", 14, 8) + bytes(8)), DAMAGED, id="an empty array"),
        pytest.param(matlab(compressed(b"")), DAMAGED, id="an empty element"),
        pytest.param(matlab()[:100], DAMAGED, id="half a header"),
        *(pytest.param(of_numbers(number), INTEGERS, id=str(number)) for number in (1.5, -1.0, np.nan, np.inf, 1e300)),
    ],
)
def test_hostile_matlab_lists_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = make_dataset(tmp_path, count=1, splits={"few": {"folder": "train", "keys": "few.mat"}})
    (tmp_path / "few.mat").write_bytes(content)
    with registered(file), pytest.raises(DatasetError, match=says):
        get_dataset_dicts(["tiny_few"])


@pytest.mark.parametrize("write", [write_definition, write_recipe])
def test_too_many_classes_are_refused(tmp_path: Path, write: Any) -> None:
    file = write(tmp_path, classes=[{"name": f"c{number}", "color": [0, 0, 0]} for number in range(300)])
    with expect_error(DatasetError, "'classes'", "300 classes"):
        load_definition(file)
