"""Names of files: capitals, Unicode forms and byte order marks lose no image in silence."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_factory import (
    TINY_LABEL_IDS,
    make_dataset,
    registered,
    write_definition,
    write_image,
    write_label,
    write_panoptic_label,
)
from error_matching import expect_error
from famix.data import get_dataset_dicts, get_label_readers, load_definition
from famix.data.records import label_file_of
from famix.data.registration import files_of
from famix.engine import load_config
from famix.utils.errors import DatasetError
from panoptic_factory import make_panoptic

FORMS = ("NFC", "NFD")


def pairs(name: str = "tiny_train") -> dict[str, tuple[str, str]]:
    """Key -> names of image and label, each of which can be read."""
    reader = get_label_readers([name])[name]
    records = get_dataset_dicts([name])
    for record in records:
        reader.read(label_file_of(record))
    return {
        record["image_id"]: (os.path.basename(record["file_name"]), os.path.basename(label_file_of(record)))
        for record in records
    }


# Suffixes


@pytest.mark.parametrize("suffix", [".PNG", ".Png", ".pnG"])
@pytest.mark.parametrize("several_layouts", [False, True])
def test_capitals_in_suffixes_do_not_matter(tmp_path: Path, suffix: str, several_layouts: bool) -> None:
    places = {"images": "images/{split}/{key}.png", "labels": "labels/{split}/{key}.png", "label_ids": TINY_LABEL_IDS}
    layouts = [places, {**places, "labels": "labels/{split}/{key}_trainIds.png", "label_ids": "identity"}]
    changes = {**dict.fromkeys(places), "layouts": layouts} if several_layouts else {}
    file = make_dataset(tmp_path, count=3, folders=("train",), **changes)
    (tmp_path / "images/train/a/0.png").rename(tmp_path / f"images/train/a/0{suffix}")
    (tmp_path / "labels/train/a/1.png").rename(tmp_path / f"labels/train/a/1{suffix}")
    with registered(file):
        assert pairs() == {"a/0": (f"0{suffix}", "0.png"), "a/1": ("1.png", f"1{suffix}"), "a/2": ("2.png", "2.png")}


def test_names_that_differ_in_capitals_alone_are_an_error(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=2, folders=("train",))
    write_image(tmp_path / "images/train/a/1.PNG", np.zeros((24, 32, 3), np.uint8))
    with registered(file), expect_error(DatasetError, key="tiny_train", value="1.PNG", remedy="rename"):
        get_dataset_dicts(["tiny_train"])


def test_lists_may_name_files_with_capitals(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=2, splits={"train": {"keys": "list.txt"}})
    (tmp_path / "images/train/a/1.png").rename(tmp_path / "images/train/a/1.PNG")
    (tmp_path / "list.txt").write_text("a/0.PNG\na/1.png\n")
    with registered(file):
        assert list(pairs()) == ["a/0", "a/1"]


def test_images_in_another_format_are_no_left_overs(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=3, folders=("train",))
    pixels = np.zeros((24, 32, 3), np.uint8)
    write_image(tmp_path / "images/train/a/0.jpg", pixels)  # beside 0.png: a preview
    write_image(tmp_path / "images/train/a/other.jpg", pixels)  # without a label
    with registered(file):
        assert len(get_dataset_dicts(["tiny_train"])) == 3
    (tmp_path / "images/train/a/1.png").unlink()
    path = write_image(tmp_path / "images/train/a/1.JPG", pixels)
    with registered(file), expect_error(DatasetError, key="tiny_train", value=path, remedy="Convert"):
        get_dataset_dicts(["tiny_train"])


def test_labels_beside_their_images_are_no_images_of_another_format(tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / f"all/{number}.jpg", np.zeros((4, 4, 3), np.uint8))
        write_label(tmp_path / f"all/{number}.png", np.zeros((4, 4), np.uint8))
    write_label(tmp_path / "all/3.png", np.zeros((4, 4), np.uint8))
    file = write_definition(tmp_path, images="all/{key}.jpg", labels="all/{key}.png", splits={"train": {}})
    with registered(file):
        assert list(pairs()) == ["0", "1"]


# Unicode forms


@pytest.mark.parametrize("in_list", [None, *FORMS])
@pytest.mark.parametrize("on_disk", FORMS)
@pytest.mark.parametrize("of_labels", FORMS)
def test_unicode_forms_of_names_do_not_matter(
    tmp_path: Path, in_list: str | None, on_disk: str, of_labels: str
) -> None:
    splits = {"train": {"keys": "list.txt"} if in_list else {}}
    file = make_dataset(tmp_path, count=2, folders=("train",), splits=splits)
    for kind, form in (("images", on_disk), ("labels", of_labels)):
        folder = tmp_path / kind / "train" / unicodedata.normalize(form, "Köln")
        folder.mkdir()
        (tmp_path / kind / "train/a/0.png").rename(folder / unicodedata.normalize(form, "Straße é.png"))
    if in_list:
        (tmp_path / "list.txt").write_text(unicodedata.normalize(in_list, "a/1\nKöln/Straße é.png\n"))
    with registered(file):
        assert len(pairs()) == 2


@pytest.mark.parametrize("on_disk", FORMS)
@pytest.mark.parametrize("in_definition", FORMS)
def test_unicode_forms_of_folders_do_not_matter(tmp_path: Path, on_disk: str, in_definition: str) -> None:
    disk, text = (unicodedata.normalize(form, "Bücher") for form in (on_disk, in_definition))
    make_dataset(tmp_path / disk, count=1, folders=(disk,))
    (tmp_path / disk / disk).write_text("a/0\n")
    file = write_definition(tmp_path, root=str(tmp_path / text), splits={"train": {"folder": text, "keys": text}})
    with registered(file):
        assert len(pairs()) == 1


@pytest.mark.parametrize("skipped", FORMS)
def test_unicode_forms_of_skipped_keys_do_not_matter(tmp_path: Path, skipped: str) -> None:
    splits = {"train": {"skip": [unicodedata.normalize(skipped, "é")]}}
    file = make_dataset(tmp_path, count=2, folders=("train",), splits=splits)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train/a/0.png").rename(tmp_path / kind / "train/a" / unicodedata.normalize("NFD", "é.png"))
    with registered(file):
        assert list(pairs()) == ["a/1"]


@pytest.mark.parametrize("on_disk", FORMS)
@pytest.mark.parametrize("in_json", FORMS)
def test_unicode_forms_in_panoptic_json(tmp_path: Path, on_disk: str, in_json: str) -> None:
    file = make_panoptic(tmp_path, {"train": 2})
    json_file = next(tmp_path.rglob("*train*.json"))
    old = [path for path in tmp_path.rglob("*.png")]
    text = json_file.read_text()
    for path in old:
        path.rename(path.with_name(unicodedata.normalize(on_disk, f"é{path.name}")))
    content = json.loads(text)
    for annotation in content["annotations"]:
        name = Path(annotation["file_name"])
        annotation["file_name"] = unicodedata.normalize(in_json, str(name.with_name(f"é{name.name}")))
        annotation["image_id"] = unicodedata.normalize(in_json, f"é{annotation['image_id']}")
    content.pop("images", None)
    json_file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    files = files_of(load_definition(file))[0]
    records = files()
    assert len(records) == 2
    for record in records:
        files.label_reader().read(record["pan_seg_file_name"])


# Byte order marks


def with_mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def test_lists_with_byte_order_marks(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=2, splits={"train": {"keys": "list.txt"}})
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa/0\r\n\xef\xbb\xbfa/1\r\n\r\n")  # two that were joined
    with registered(file):
        assert list(pairs()) == ["a/0", "a/1"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_lists_in_utf_16_are_named(tmp_path: Path, encoding: str) -> None:
    file = make_dataset(tmp_path, count=2, splits={"train": {"keys": "list.txt"}})
    mark = b"" if encoding == "utf-16" else b"\xfe\xff"
    (tmp_path / "list.txt").write_bytes(mark + "a/0\na/1\n".encode(encoding))
    with registered(file), expect_error(DatasetError, key=str(tmp_path / "list.txt"), value="UTF-16", remedy="UTF-8"):
        get_dataset_dicts(["tiny_train"])


def test_text_files_with_byte_order_marks(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=1)
    base, config = tmp_path / "base.yaml", tmp_path / "config.yaml"
    base.write_text("SEED: 3\n")
    config.write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 7}\n")
    panoptic = make_panoptic(tmp_path / "panoptic", {"train": 1})
    for path in (file, base, config, panoptic, *panoptic.parent.rglob("*train*.json")):
        with_mark(path)
    cfg = load_config(str(config))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (3, 7)
    assert load_definition(file).name == "tiny" and len(files_of(load_definition(panoptic))[0]()) == 1


def test_names_of_segments_with_byte_order_marks(tmp_path: Path) -> None:
    label, names_file = tmp_path / "labels/train/x.png", tmp_path / "names.json"
    write_panoptic_label(label, np.array([[0, 1], [1, 0]], np.uint8), names_file, {0: "road", 1: "sky"})
    write_image(tmp_path / "images/train/x.png", np.zeros((2, 2, 3), np.uint8))
    with_mark(names_file)
    names = {"label_ids": None, "label_names": {"road": "road", "sky": "sky"}, "label_names_file": names_file.name}
    with registered(write_definition(tmp_path, **names, label_format="coco_panoptic", splits={"train": {}})):
        assert get_label_readers(["tiny_train"])["tiny_train"].read(label).tolist() == [[0, 10], [10, 255]]
