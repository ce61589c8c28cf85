"""Panoptic datasets: definitions, JSON files and images, and the mistakes in each."""

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
JSON = "annotations/panoptic_train.json"
IDS = np.array([[7, 7, 23, 23], [26_000, 26_000, 26_001, 0]])


def tiny(folder: Path, ids: np.ndarray = IDS, crowds: tuple[int, ...] = (), **changes: Any) -> Path:
    """Write a dataset of one image of 2 x 4 pixels; `changes` are entries of the JSON file."""
    write_image(folder / "images/train/a.png", np.zeros((*ids.shape, 3), np.uint8))
    write_annotations(folder, "train", {"a": ids}, crowds, **changes)
    return write_recipe(folder)


def edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / JSON).read_text())
    change(content)
    (folder / JSON).write_text(json.dumps(content))


def list_files(recipe: Path) -> list[dict[str, Any]]:
    return files_of(load_definition(recipe))[0]()


def test_records_are_detectron2s_in_train_ids(tmp_path: Path) -> None:
    with registered(tiny(tmp_path)):
        (record,) = get_dataset_dicts([NAME])
        label = str(tmp_path / "panoptic/train/a.png")
        segments = [(7, 0, False), (23, 10, False), (26_000, 13, True), (26_001, 13, True)]
        assert record == {
            "file_name": str(tmp_path / "images/train/a.png"),
            "image_id": "a",
            "pan_seg_file_name": label,
            "label_file_name": label,
            "segments_info": [{"id": i, "category_id": c, "iscrowd": 0, "isthing": thing} for i, c, thing in segments],
            "void_segments": [],
            "dataset_name": NAME,
        }
        assert get_label_readers([NAME])[NAME].read(label).tolist() == [[0, 0, 10, 10], [13, 13, 13, 255]]
        verify_datasets([NAME])
        assert panoptic_classes(NAME).things == tuple(range(11, 19))


def test_changed_json_file_is_read_again(tmp_path: Path) -> None:
    files = files_of(load_definition(tiny(tmp_path)))[0]
    assert files()[0]["segments_info"][0]["category_id"] == 0
    edit_json(tmp_path, lambda content: content["annotations"][0]["segments_info"][0].update(category_id=23))
    os.utime(tmp_path / JSON, ns=(1, 1))
    assert files()[0]["segments_info"][0]["category_id"] == 10


def test_own_classes_and_ignored_categories(tmp_path: Path) -> None:
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


def test_image_is_found_by_file_name_id_or_label(tmp_path: Path) -> None:
    tiny(tmp_path, images=[{"id": 139, "file_name": "elsewhere/a.jpg"}])
    edit_json(tmp_path, lambda content: content["annotations"][0].update(image_id=139))
    assert list_files(write_recipe(tmp_path))[0]["image_id"] == "a"
    edit_json(tmp_path, lambda content: content.update(images=[]))
    assert list_files(write_recipe(tmp_path))[0]["image_id"] == "a"  # by a.png


def test_cityscapes_is_read_like_by_detectron2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root, frame = tmp_path / "cityscapes", "ulm_000000_000019"
    panoptic = root / "gtFine/cityscapes_panoptic_val"
    write_image(root / f"leftImg8bit/val/ulm/{frame}_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
    write_image(root / f"gtFine/val/ulm/{frame}_gtFine_labelTrainIds.png", np.zeros((2, 4), np.uint8))
    file = write_annotations(tmp_path / "made", "val", {f"{frame}_gtFine_panoptic": IDS})
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = frame
    content["images"] = [{"id": frame, "file_name": f"{frame}_gtFine_leftImg8bit.png"}]  # as the script writes it
    panoptic.with_suffix(".json").write_text(json.dumps(content))
    (tmp_path / "made/panoptic/val").rename(panoptic)
    with registered():
        (ours,) = get_dataset_dicts(["cityscapes_val_panoptic"])
        metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val").as_dict()
        (theirs,) = load_cityscapes_panoptic(str(root / "leftImg8bit/val"), str(panoptic), f"{panoptic}.json", metadata)
        things = metadata["thing_dataset_id_to_contiguous_id"].values()
        for segment in theirs["segments_info"]:  # which Visualizer needs as well
            segment["isthing"] = segment["category_id"] in things
        for key in ("file_name", "pan_seg_file_name", "segments_info"):
            assert ours[key] == theirs[key]
        assert ours["image_id"].endswith(theirs["image_id"])
        # Detectron2's own dataset can be used as well.
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


# Mistakes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("panoptic/train/a.png", "a.png"),
        ("images/train/a.png", "images/train/{key}.png"),
        (JSON, JSON),
        ("", "'root'"),
    ],
)
def test_missing_file_is_named(path: str, value: str, tmp_path: Path) -> None:
    recipe = tiny(tmp_path / "data").rename(tmp_path / "recipe.yaml")
    (tmp_path / "data" / path).rename(tmp_path / "aside")
    with expect_error(DatasetError, NAME, str(tmp_path / "data" / value) if "/" in value else value):
        list_files(recipe)


def test_segment_without_pixels_is_found_before_training(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    segment = {"id": 24_000, "category_id": 24, "iscrowd": 0}
    edit_json(tmp_path, lambda content: content["annotations"][0]["segments_info"].append(segment))
    with registered(recipe), expect_error(DatasetError, str(tmp_path / "panoptic/train/a.png"), 24_000):
        verify_datasets([NAME])


STUFF_ONLY = [{"id": key, "name": name, "isthing": 0} for key, (name, _) in CATEGORIES.items()]


@pytest.mark.parametrize(
    ("make", "change", "key", "value", "remedy"),
    [
        ({"ids": np.array([[7, 7], [23, 0]])}, None, "things", "person", "instances"),
        ({"crowds": (26_000, 26_001)}, None, "things", "person", "instances"),
        ({"ids": np.array([[26_000, 0]])}, None, "stuff", "road", ""),
        ({"categories": STUFF_ONLY}, None, "24", "person", "instances"),
        ({"ids": np.array([[7, 99_000], [23, 26_000]])}, None, "category", 99, "other_categories: ignore"),
        ({}, lambda c, a: c.pop("categories"), "'categories'", None, ""),
        ({}, lambda c, a: c.update(annotations=5), "'annotations'", None, ""),
        ({}, lambda c, a: a.pop("segments_info"), "segments_info", None, ""),
        ({}, lambda c, a: a["segments_info"][0].update(id=0), "id", 0, ""),
        ({}, lambda c, a: a["segments_info"][0].update(category_id=65535), "category_id", 65535, ""),
        ({}, lambda c, a: a["segments_info"][1].update(id=7), "a.png", 7, ""),
        ({}, lambda c, a: c["annotations"].append(a), "PNG", None, ""),
        ({}, "{", "Cannot read", None, ""),
    ],
)
def test_mistake_in_a_json_file(
    make: dict[str, Any], change: Any, key: str, value: object, remedy: str, tmp_path: Path
) -> None:
    recipe = tiny(tmp_path, **make)
    if callable(change):
        edit_json(tmp_path, lambda content: change(content, content["annotations"][0]))
    elif change:
        (tmp_path / JSON).write_text(change)
    with expect_error(DatasetError, key, value, remedy) as error:
        list_files(recipe)
    assert str(tmp_path / JSON) in str(error.value) or key == "PNG"


def test_mistyped_category_name(tmp_path: Path) -> None:
    tiny(tmp_path)
    recipe = write_recipe(tmp_path, categories={"raod": "road", "car": "car"}, other_categories="ignore")
    with expect_error(DatasetError, "'categories'", "raod", "'road'"):
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
def test_mistake_in_a_definition(changes: dict[str, Any], key: str, value: object, remedy: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, **changes)
    with expect_error(DatasetError, key, value, remedy):
        load_definition(recipe)


def test_names_are_unique_and_suggested(tmp_path: Path) -> None:
    recipe = make_panoptic(tmp_path, {"train": 1})
    with registered(recipe):
        with registered(recipe):  # the same definition again
            assert NAME in DatasetCatalog
        other = write_recipe(tmp_path, images="other/{split}/{key}.png")
        with expect_error(DatasetError, NAME, str(recipe), "name"):
            registered(other).__enter__()
        with expect_error(DatasetError, "tiny_train_panotpic", remedy=NAME):
            get_dataset_dicts(["tiny_train_panotpic"])
        with expect_error(ConfigError, "minitown_train", remedy="cityscapes_train_panoptic"):
            panoptic_classes("minitown_train")
        with expect_error(ConfigError, NAME, "minitown_train_panoptic", "thing: true"):
            require_same_things([NAME, "minitown_train_panoptic"])
