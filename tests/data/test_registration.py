import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from data_factory import make_dataset, registered, write_definition
from error_matching import expect_error, explains
from famix.data import get_dataset_dicts, get_label_readers, register_datasets, require_same_classes
from famix.data.registration import BUILTIN
from famix.utils.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tiny"


def test_split_lists_pairs_and_has_metadata(folder):
    with registered(make_dataset(folder, count=2)):
        assert get_dataset_dicts(["tiny_val"]) == [
            {
                "file_name": str(folder / f"images/val/a/{index}.png"),
                "label_file_name": str(folder / f"labels/val/a/{index}.png"),
                "image_id": f"a/{index}",
                "dataset_name": "tiny_val",
            }
            for index in range(2)
        ]
        meta = MetadataCatalog.get("tiny_train")
        assert (meta.stuff_classes[:2], meta.stuff_colors[0]) == (["road", "sidewalk"], (128, 64, 128))
        assert (meta.ignore_label, meta.evaluator_type) == (255, "sem_seg")
        assert meta.label_reader.label_ids == {0: 0, 1: 10, 2: 13, 9: 255}
        assert meta.definition.name == "tiny"


def test_registering_twice_changes_nothing(folder):
    file = make_dataset(folder)
    with registered(file):
        before = dict(DatasetCatalog)
        register_datasets([str(file), str(file)])
        assert dict(DatasetCatalog) == before
    assert "tiny_train" not in DatasetCatalog


def test_taken_name_is_an_error(folder, tmp_path):
    DatasetCatalog.register("taken_val", list)
    with registered(make_dataset(folder)):
        for key, owner, changes in (
            ("taken_val", "other code", {"name": "taken", "splits": {"val": {}}}),
            ("tiny_train", str(folder / "definition.yaml"), {"root": str(tmp_path)}),
            ("camvid_train_day", str(BUILTIN / "camvid.yaml"), {"name": "camvid", "splits": {"train_day": {}}}),
        ):
            with expect_error(DatasetError, key, owner, "name"):
                register_datasets([str(write_definition(tmp_path / "second", **changes))])


@pytest.mark.parametrize(
    ("names", "key", "value", "remedy"),
    [
        (["tiny_trian"], "tiny_trian", "tiny_train", "datasets/README.md"),
        (["tiny.yaml"], "tiny.yaml", None, "DATASETS.FILES"),
        (["nothing"], "nothing", None, "DATASETS.FILES"),
        ([], "names", None, "gta5_train"),
        (["tiny_val", "tiny_val"], "names", "tiny_val", ""),
    ],
)
def test_wrong_names_are_an_error(folder, names, key, value, remedy):
    with registered(make_dataset(folder)), expect_error(DatasetError, key, value, remedy):
        get_dataset_dicts(names)


def test_unknown_name_lists_own_datasets_but_only_counts_the_built_in_ones(folder):
    with registered(make_dataset(folder)):
        with pytest.raises(DatasetError) as caught:
            get_dataset_dicts(["nothing"])
        count = sum(
            not name.startswith("tiny_") and hasattr(files, "definition") for name, files in DatasetCatalog.items()
        )
    message = str(caught.value)
    explains(message, "nothing", "tiny_train", "tiny_val")
    assert f" {count} " in message and "cityscapes" not in message and "minitown" not in message


def test_datasets_keep_the_order_of_their_names(folder):
    with registered(make_dataset(folder)):
        names = [record["dataset_name"] for record in get_dataset_dicts(["tiny_val", "tiny_train"])]
    assert names == ["tiny_val"] * 6 + ["tiny_train"] * 6


def test_missing_root_names_folder_and_variable(folder, monkeypatch):
    with registered(write_definition(folder, root="absent")):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
        with expect_error(DatasetError, f"{folder}/absent", str(folder), "$DETECTRON2_DATASETS"):
            get_dataset_dicts(["tiny_train"])
        monkeypatch.delenv("DETECTRON2_DATASETS")
        with expect_error(DatasetError, "/datasets/absent", "not set", "$DETECTRON2_DATASETS"):
            get_dataset_dicts(["tiny_train"])
    absolute = str(folder / "nowhere")
    with (
        registered(write_definition(folder, root=absolute)),
        expect_error(DatasetError, absolute, None, "'root'") as got,
    ):
        get_dataset_dicts(["tiny_train"])
    assert "DETECTRON2_DATASETS" not in str(got.value)


def test_missing_files_are_an_error(folder):
    with registered(make_dataset(folder, splits={"train": {}, "night": {}})):
        with expect_error(DatasetError, "tiny_night", str(folder / "images/night")):
            get_dataset_dicts(["tiny_night"])
        for index in (1, 2, 3, 5):
            (folder / f"labels/train/a/{index}.png").unlink()
        with expect_error(DatasetError, "tiny_train", str(folder / "images/train/a/1.png"), "unpaired: skip") as caught:
            get_dataset_dicts(["tiny_train"])
        assert "4 of 6" in str(caught.value) and str(folder / "labels/train/{key}.png") in str(caught.value)
        shutil.rmtree(folder / "images/train/a")
        with expect_error(DatasetError, "tiny_train", str(folder / "images/train/{key}.png")):
            get_dataset_dicts(["tiny_train"])


def test_other_files_do_not_matter(folder):
    with registered(make_dataset(folder, count=2)):
        (folder / "images/train/a/1.png").unlink()  # labels without an image
        (folder / "images/train/.cache").mkdir()
        for name in ("notes.txt", "._0.png", ".cache/0.png"):
            (folder / "images/train" / name).touch()
        assert [record["image_id"] for record in get_dataset_dicts(["tiny_train"])] == ["a/0"]


def test_classes_of_datasets_must_have_one_order(tmp_path):
    colors = [{"name": name, "color": [index, 0, 0]} for index, name in enumerate(("road", "sky", "car"))]
    orders = {"first": colors, "again": colors, "swapped": [colors[1], colors[0], colors[2]], "fewer": colors[:2]}
    with registered(
        *(
            write_definition(tmp_path / name, name=name, classes=classes, label_ids="identity")
            for name, classes in orders.items()
        )
    ):
        require_same_classes(["first_train", "again_train"])
        for other in ("swapped_train", "fewer_train"):
            with expect_error(DatasetError, "first_train", other, "classes"):
                require_same_classes(["first_train", other])


def test_dataset_of_other_code_needs_a_label_reader():
    DatasetCatalog.register("foreign", lambda: [{"file_name": "x"}])
    assert get_dataset_dicts(["foreign"]) == [{"file_name": "x", "dataset_name": "foreign"}]
    with expect_error(DatasetError, "foreign", "label_reader", "DATASETS.FILES"):
        get_label_readers(["foreign"])
