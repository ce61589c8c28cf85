"""Panoptic datasets: their definition, their JSON files, their images, and what can be wrong with each."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic

from data_factory import registered, write_image
from error_matching import expect_error
from famix.data import get_dataset_dicts, get_label_readers, load_definition, verify_datasets
from famix.data.classes import panoptic_classes, require_same_things
from famix.data.registration import BUILTIN, files_of
from famix.utils.errors import ConfigError, DatasetError
from panoptic_factory import CATEGORIES, make_panoptic, write_annotations, write_recipe

NAME = "tiny_train_panoptic"
IDS = np.array([[7, 7, 23, 23], [26_000, 26_000, 26_001, 0]])


def tiny(folder: Path, ids: np.ndarray = IDS, crowds: tuple[int, ...] = (), **changes: Any) -> Path:
    """A dataset of one image of 2 x 4 pixels; `changes` are entries of the JSON file."""
    write_image(folder / "images/train/a.png", np.zeros((*ids.shape, 3), np.uint8))
    write_annotations(folder, "train", {"a": ids}, crowds, **changes)
    return write_recipe(folder)


def edit_json(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "annotations/panoptic_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def list_files(recipe: Path) -> list[dict[str, Any]]:
    return files_of(load_definition(recipe))[0]()


# What is there


def test_records_are_detectron2s_in_train_ids(tmp_path: Path) -> None:
    with registered(tiny(tmp_path)):
        (record,) = get_dataset_dicts([NAME])
        label = str(tmp_path / "panoptic/train/a.png")
        assert record == {
            "file_name": str(tmp_path / "images/train/a.png"),
            "image_id": "a",
            "pan_seg_file_name": label,
            "label_file_name": label,
            "segments_info": [
                {"id": 7, "category_id": 0, "iscrowd": 0, "isthing": False},
                {"id": 23, "category_id": 10, "iscrowd": 0, "isthing": False},
                {"id": 26_000, "category_id": 13, "iscrowd": 0, "isthing": True},
                {"id": 26_001, "category_id": 13, "iscrowd": 0, "isthing": True},
            ],
            "void_segments": [],
            "dataset_name": NAME,
        }
        got = get_label_readers([NAME])[NAME].read(label)
        assert got.tolist() == [[0, 0, 10, 10], [13, 13, 13, 255]]
        verify_datasets([NAME])
        assert panoptic_classes(NAME).things == tuple(range(11, 19))


def test_the_json_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    files = files_of(load_definition(tiny(tmp_path)))[0]
    assert files()[0]["segments_info"][0]["category_id"] == 0
    edit_json(tmp_path, lambda content: content["annotations"][0]["segments_info"][0].update(category_id=23))
    os.utime(tmp_path / "annotations/panoptic_train.json", ns=(1, 1))
    assert files()[0]["segments_info"][0]["category_id"] == 10


def test_own_classes_own_ids_and_ignored_categories(tmp_path: Path) -> None:
    tiny(tmp_path)
    classes = [{"name": "ground", "color": [1, 2, 3]}, {"name": "vehicle", "color": [4, 5, 6], "thing": True}]
    changes = {"classes": classes, "categories": {7: "ground", "CAR": "vehicle"}, "other_categories": "ignore"}
    with registered(write_recipe(tmp_path, **changes, ignore_label=9)):
        (record,) = get_dataset_dicts([NAME])
        assert [segment["category_id"] for segment in record["segments_info"]] == [0, 1, 1]
        assert record["void_segments"] == [23]
        got = get_label_readers([NAME])[NAME].read(record["label_file_name"])
        assert got.tolist() == [[0, 0, 9, 9], [1, 1, 1, 9]]
        assert panoptic_classes(NAME).stuff_labels() == {0: 1, 1: 0}


def test_an_image_is_found_by_file_name_id_or_label(tmp_path: Path) -> None:
    tiny(tmp_path, images=[{"id": 139, "file_name": "elsewhere/a.jpg"}])
    edit_json(tmp_path, lambda content: content["annotations"][0].update(image_id=139))
    assert list_files(write_recipe(tmp_path))[0]["image_id"] == "a"
    edit_json(tmp_path, lambda content: content.update(images=[]))
    assert list_files(write_recipe(tmp_path))[0]["image_id"] == "a"  # by a.png


def test_cityscapes_is_read_as_detectron2_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root, frame = tmp_path / "cityscapes", "ulm_000000_000019"
    write_image(root / f"leftImg8bit/val/ulm/{frame}_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
    write_image(root / f"gtFine/val/ulm/{frame}_gtFine_labelTrainIds.png", np.zeros((2, 4), np.uint8))
    write_annotations(tmp_path / "made", "val", {f"{frame}_gtFine_panoptic": IDS})
    content = json.loads((tmp_path / "made/annotations/panoptic_val.json").read_text())
    content["annotations"][0]["image_id"] = frame
    content["images"] = [{"id": frame, "file_name": f"{frame}_gtFine_leftImg8bit.png"}]  # as the script writes it
    (root / "gtFine").mkdir(exist_ok=True)
    (root / "gtFine/cityscapes_panoptic_val.json").write_text(json.dumps(content))
    (tmp_path / "made/panoptic/val").rename(root / "gtFine/cityscapes_panoptic_val")
    with registered():
        (ours,) = get_dataset_dicts(["cityscapes_val_panoptic"])
        metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val").as_dict()
        theirs = load_cityscapes_panoptic(
            str(root / "leftImg8bit/val"), str(root / "gtFine/cityscapes_panoptic_val"),
            str(root / "gtFine/cityscapes_panoptic_val.json"), metadata,
        )[0]  # fmt: skip
        for key in ("file_name", "pan_seg_file_name"):
            assert ours[key] == theirs[key]
        for segment in theirs["segments_info"]:  # which Visualizer needs as well
            segment["isthing"] = segment["category_id"] in metadata["thing_dataset_id_to_contiguous_id"].values()
        assert ours["segments_info"] == theirs["segments_info"]
        assert ours["image_id"].endswith(theirs["image_id"])
        # Theirs can be named as well.
        assert require_same_things(["cityscapes_fine_panoptic_val", "cityscapes_val_panoptic"])
        assert get_label_readers(["cityscapes_fine_panoptic_val"])


def test_several_categories_of_mapillary_are_one_class() -> None:
    mapillary = load_definition(BUILTIN / "mapillary_panoptic.yaml")
    of_class: dict[str, list[int | str]] = {entry.name: [] for entry in mapillary.classes}
    for category, train_id in mapillary.categories.items():
        of_class[mapillary.classes[train_id].name].append(category)
    assert of_class["rider"] == ["Bicyclist", "Motorcyclist", "Other Rider"]
    assert of_class["road"] == ["Road", "Lane Marking - General", "Manhole"]
    assert all(of_class.values())


# What can be wrong


def test_a_missing_png_image_json_or_folder_is_named(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    for path, value in (
        ("panoptic/train/a.png", "a.png"),
        ("images/train/a.png", str(tmp_path / "images/train/{key}.png")),
        ("annotations/panoptic_train.json", str(tmp_path / "annotations/panoptic_train.json")),
    ):
        (tmp_path / path).rename(tmp_path / "aside")
        with expect_error(DatasetError, NAME, value):
            list_files(recipe)
        (tmp_path / "aside").rename(tmp_path / path)
    with expect_error(DatasetError, NAME, str(tmp_path / "gone"), "'root'"):
        list_files(write_recipe(tmp_path, root=str(tmp_path / "gone")))


def test_a_segment_that_the_png_lacks_is_found_before_training(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    segment = {"id": 24_000, "category_id": 24, "iscrowd": 0}
    edit_json(tmp_path, lambda content: content["annotations"][0]["segments_info"].append(segment))
    with registered(recipe), expect_error(DatasetError, str(tmp_path / "panoptic/train/a.png"), 24_000):
        verify_datasets([NAME])


def test_a_category_without_a_class_is_an_error(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    edit_json(tmp_path, lambda content: content["annotations"][0]["segments_info"][0].update(category_id=99))
    with expect_error(DatasetError, "panoptic_train.json", 99, "a.png"):
        list_files(recipe)
    edit_json(tmp_path, lambda content: content["categories"].append({"id": 99, "name": "moon", "isthing": 0}))
    with expect_error(DatasetError, "panoptic_train.json", "moon", "other_categories: ignore"):
        list_files(recipe)


def test_a_mistyped_category_name_is_an_error(tmp_path: Path) -> None:
    tiny(tmp_path)
    recipe = write_recipe(tmp_path, categories={"raod": "road", "car": "car"}, other_categories="ignore")
    with expect_error(DatasetError, "'categories'", "raod", "'road'"):
        list_files(recipe)


def test_things_without_instances_are_an_error(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, np.array([[7, 7], [23, 0]]))
    with expect_error(DatasetError, "things", "person", "instances"):
        list_files(recipe)
    recipe = tiny(tmp_path, IDS, crowds=(26_000, 26_001))
    with expect_error(DatasetError, "things", "person", "instances"):
        list_files(recipe)
    recipe = tiny(tmp_path, np.array([[26_000, 0]]))
    with expect_error(DatasetError, "stuff", "road"):
        list_files(recipe)
    recipe = tiny(
        tmp_path, categories=[{"id": key, "name": name, "isthing": 0} for key, (name, _) in CATEGORIES.items()]
    )
    with expect_error(DatasetError, "24", "person", "instances"):
        list_files(recipe)


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        (lambda c: c.pop("categories"), "'categories'", None),
        (lambda c: c.update(annotations=5), "'annotations'", None),
        (lambda c: c["annotations"][0].pop("segments_info"), "segments_info", None),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=0), "id", 0),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=65535), "category_id", 65535),
        (lambda c: c["annotations"][0]["segments_info"][1].update(id=7), "a.png", 7),
        (lambda c: c["annotations"].append(c["annotations"][0]), "PNG", None),
    ],
)
def test_a_malformed_json_file_is_one_error(
    change: Callable[[dict[str, Any]], None], key: str, value: object, tmp_path: Path
) -> None:
    recipe, file = tiny(tmp_path), tmp_path / "annotations/panoptic_train.json"
    edit_json(tmp_path, change)
    with expect_error(DatasetError, key, value):
        list_files(recipe)
    file.write_text("{")
    with expect_error(DatasetError, str(file)):
        list_files(recipe)


STUFF, THING = {"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [0, 0, 0], "thing": True}


@pytest.mark.parametrize(
    ("changes", "key", "value", "remedy"),
    [
        ({"images": "images"}, "'images'", "images", ""),
        ({"classes": [STUFF]}, "'classes'", ["a"], ""),
        ({"classes": [STUFF, {**THING, "thing": "yes"}]}, "'classes.1.thing'", "yes", ""),
        ({"classes": [STUFF, {**THING, "color": [0, 0]}]}, "'classes.1.color'", [0, 0], ""),
        ({"classes": [STUFF, {**THING, "name": "a"}]}, "'classes'", "a", ""),
        ({"classes": "camvid"}, "'classes'", "camvid", ""),
        ({"categories": {1: "raod"}}, "'categories.1'", "raod", "'road'"),
        ({"categories": "cityscapes", "classes": [STUFF, THING]}, "'categories'", "cityscapes", ""),
        ({"other_categories": "drop"}, "'other_categories'", "drop", ""),
        ({"splits": []}, "'splits'", {}, ""),
        ({"panoptic_root": None}, "'panoptic_root'", None, "datasets/README.md"),
        ({"labels": "x"}, "'labels'", None, ""),
    ],
)
def test_a_mistake_in_a_definition_is_named(
    changes: dict[str, Any], key: str, value: object, remedy: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, **changes)
    with expect_error(DatasetError, key, value, remedy):
        load_definition(recipe)


def test_names_are_taken_once_and_known_to_suggestions(tmp_path: Path) -> None:
    recipe = make_panoptic(tmp_path / "one", {"train": 1})
    other = write_recipe(tmp_path / "one", splits=["train"], images="other/{split}/{key}.png").rename(
        tmp_path / "b.yaml"
    )
    with registered(make_panoptic(tmp_path / "one", {"train": 1})):
        with registered(recipe):  # the same again
            assert NAME in DatasetCatalog
        with expect_error(DatasetError, "tiny_train_panoptic", str(recipe), "name"):
            registered(other).__enter__()
        with expect_error(DatasetError, "tiny_train_panotpic", remedy="tiny_train_panoptic"):
            get_dataset_dicts(["tiny_train_panotpic"])
        with expect_error(ConfigError, "minitown_train", remedy="cityscapes_train_panoptic"):
            panoptic_classes("minitown_train")
        with expect_error(ConfigError, "tiny_train_panoptic", "minitown_train_panoptic", "thing: true"):
            require_same_things([NAME, "minitown_train_panoptic"])
