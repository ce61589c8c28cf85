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
from famix.data import get_dataset_dicts, get_label_readers, label_file_of, load_definition
from famix.data.registration import files_of
from famix.engine import load_config
from famix.utils.errors import DatasetError
from panoptic_factory import make_panoptic

FORMS = ("NFC", "NFD")
PIXELS = np.zeros((24, 32, 3), np.uint8)
LISTED = {"train": {"keys": "list.txt"}}


def pairs(*files: Path) -> dict[str, tuple[str, str]]:
    """Key -> names of image and label of tiny_train, each of which can be read."""
    with registered(*files):
        records, reader = get_dataset_dicts(["tiny_train"]), get_label_readers(["tiny_train"])["tiny_train"]
        for record in records:
            reader.read(label_file_of(record))
    names = [(record["file_name"], label_file_of(record)) for record in records]
    return {
        record["image_id"]: (os.path.basename(image), os.path.basename(label))
        for record, (image, label) in zip(records, names, strict=True)
    }


# Suffixes


@pytest.mark.parametrize(("suffix", "several_layouts"), [(".PNG", False), (".Png", True)])
def test_case_of_suffixes_does_not_matter(tmp_path: Path, suffix: str, several_layouts: bool) -> None:
    places = {"images": "images/{split}/{key}.png", "labels": "labels/{split}/{key}.png", "label_ids": TINY_LABEL_IDS}
    layouts = [places, {**places, "labels": "labels/{split}/{key}_trainIds.png", "label_ids": "identity"}]
    changes = {**dict.fromkeys(places), "layouts": layouts} if several_layouts else {}
    file = make_dataset(tmp_path, count=3, folders=("train",), **changes)
    (tmp_path / "images/train/a/0.png").rename(tmp_path / f"images/train/a/0{suffix}")
    (tmp_path / "labels/train/a/1.png").rename(tmp_path / f"labels/train/a/1{suffix}")
    assert pairs(file) == {"a/0": (f"0{suffix}", "0.png"), "a/1": ("1.png", f"1{suffix}"), "a/2": ("2.png", "2.png")}


def test_names_that_differ_in_case_are_an_error(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=2, folders=("train",))
    write_image(tmp_path / "images/train/a/1.PNG", PIXELS)
    with expect_error(DatasetError, key="tiny_train", value="1.PNG", remedy="rename"):
        pairs(file)


def test_images_in_a_different_format_are_an_error(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=3, folders=("train",))
    write_image(tmp_path / "images/train/a/0.jpg", PIXELS)  # beside 0.png: a preview
    write_image(tmp_path / "images/train/a/other.jpg", PIXELS)  # without a label
    assert len(pairs(file)) == 3
    (tmp_path / "images/train/a/1.png").unlink()
    path = write_image(tmp_path / "images/train/a/1.JPG", PIXELS)
    with expect_error(DatasetError, key="tiny_train", value=path, remedy="Convert"):
        pairs(file)


def test_labels_beside_their_images_are_not_images(tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / f"all/{number}.jpg", PIXELS)
    for number in (0, 1, 3):
        write_label(tmp_path / f"all/{number}.png", np.zeros((4, 4), np.uint8))
    file = write_definition(tmp_path, images="all/{key}.jpg", labels="all/{key}.png", splits={"train": {}})
    assert list(pairs(file)) == ["0", "1"]


# Unicode forms


@pytest.mark.parametrize("in_list", [None, *FORMS])
@pytest.mark.parametrize("on_disk", FORMS)
@pytest.mark.parametrize("of_labels", FORMS)
def test_unicode_forms_of_names_do_not_matter(
    tmp_path: Path, in_list: str | None, on_disk: str, of_labels: str
) -> None:
    file = make_dataset(tmp_path, count=2, folders=("train",), splits=LISTED if in_list else {"train": {}})
    for kind, form in (("images", on_disk), ("labels", of_labels)):
        folder = tmp_path / kind / "train" / unicodedata.normalize(form, "Köln")
        folder.mkdir()
        (tmp_path / kind / "train/a/0.png").rename(folder / unicodedata.normalize(form, "Straße é.png"))
    if in_list:
        (tmp_path / "list.txt").write_text(unicodedata.normalize(in_list, "a/1\nKöln/Straße é.png\n"))
    assert len(pairs(file)) == 2


@pytest.mark.parametrize("on_disk", FORMS)
@pytest.mark.parametrize("in_definition", FORMS)
def test_unicode_forms_in_definitions_do_not_matter(tmp_path: Path, on_disk: str, in_definition: str) -> None:
    disk, text = (unicodedata.normalize(form, "Bücher") for form in (on_disk, in_definition))
    make_dataset(tmp_path / disk, count=2, folders=(disk,))
    for kind in ("images", "labels"):
        folder = tmp_path / disk / kind / disk / "a"
        (folder / "1.png").rename(folder / f"{disk}.png")
    (tmp_path / disk / disk).write_text(f"a/0\na/{disk}\n")
    split = {"folder": text, "keys": text, "skip": [f"a/{text}"]}
    assert list(pairs(write_definition(tmp_path, root=str(tmp_path / text), splits={"train": split}))) == ["a/0"]


@pytest.mark.parametrize("on_disk", FORMS)
@pytest.mark.parametrize("in_json", FORMS)
def test_unicode_forms_in_panoptic_json_do_not_matter(tmp_path: Path, on_disk: str, in_json: str) -> None:
    file = make_panoptic(tmp_path, {"train": 2})
    json_file = next(tmp_path.rglob("*train*.json"))
    content = json.loads(json_file.read_text())
    for path in list(tmp_path.rglob("*.png")):
        path.rename(path.with_name(unicodedata.normalize(on_disk, f"é{path.name}")))
    for annotation in content["annotations"]:
        name = Path(annotation["file_name"])
        annotation["file_name"] = unicodedata.normalize(in_json, str(name.with_name(f"é{name.name}")))
        annotation["image_id"] = unicodedata.normalize(in_json, f"é{annotation['image_id']}")
    content.pop("images", None)
    json_file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    files = files_of(load_definition(file))[0]
    labels = [files.label_reader().read(record["pan_seg_file_name"]) for record in files()]
    assert len(labels) == 2


# Lists, and byte order marks


@pytest.mark.parametrize(
    "content", [b"a/0.PNG\na/1.png\n", b"\xef\xbb\xbfa/0\r\n\xef\xbb\xbfa/1\r\n\r\n"], ids=["suffixes", "joined files"]
)
def test_lists_may_have_capitals_and_byte_order_marks(tmp_path: Path, content: bytes) -> None:
    file = make_dataset(tmp_path, count=2, splits=LISTED)
    (tmp_path / "images/train/a/1.png").rename(tmp_path / "images/train/a/1.PNG")
    (tmp_path / "list.txt").write_bytes(content)
    assert list(pairs(file)) == ["a/0", "a/1"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_an_error(tmp_path: Path, encoding: str) -> None:
    file = make_dataset(tmp_path, count=2, splits=LISTED)
    mark = b"" if encoding == "utf-16" else b"\xfe\xff"
    (tmp_path / "list.txt").write_bytes(mark + "a/0\na/1\n".encode(encoding))
    with expect_error(DatasetError, key=str(tmp_path / "list.txt"), value="UTF-16", remedy="UTF-8"):
        pairs(file)


def test_text_files_may_have_byte_order_marks(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=1)
    base, config = tmp_path / "base.yaml", tmp_path / "config.yaml"
    base.write_text("SEED: 3\n")
    config.write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 7}\n")
    panoptic = make_panoptic(tmp_path / "panoptic", {"train": 1})
    label, names_file = tmp_path / "names/labels/train/x.png", tmp_path / "names/names.json"
    names_file.parent.mkdir()
    write_panoptic_label(label, np.array([[0, 1], [1, 0]], np.uint8), names_file, {0: "road", 1: "sky"})
    for path in (file, base, config, panoptic, names_file, *panoptic.parent.rglob("*train*.json")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    cfg = load_config(str(config))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (3, 7)
    assert load_definition(file).name == "tiny" and len(files_of(load_definition(panoptic))[0]()) == 1
    names = {"label_ids": None, "label_names": {"road": "road", "sky": "sky"}, "label_names_file": names_file.name}
    with registered(write_definition(tmp_path / "names", **names, label_format="coco_panoptic", splits={"train": {}})):
        assert get_label_readers(["tiny_train"])["tiny_train"].read(label).tolist() == [[0, 10], [10, 255]]
