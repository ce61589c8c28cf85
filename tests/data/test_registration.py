import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from data_factory import make_dataset, registered, write_definition
from error_matching import expect_error
from famix.data import get_dataset_dicts, get_label_readers, load_definition, register_datasets, require_same_classes
from famix.data.registration import BUILTIN
from famix.utils.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tiny"


def test_lists_pairs_as_detectron2_dicts(folder):
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


def test_metadata(folder):
    with registered(make_dataset(folder)):
        meta = MetadataCatalog.get("tiny_train")
        assert meta.stuff_classes[:2] == ["road", "sidewalk"]
        assert meta.stuff_colors[0] == (128, 64, 128)
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


def test_name_clash(folder, tmp_path):
    DatasetCatalog.register("taken_val", list)
    with registered(make_dataset(folder)):
        with expect_error(DatasetError, "taken_val", "other code", "name"):
            register_datasets([str(write_definition(tmp_path / "taken", name="taken", splits={"val": {}}))])
        other = write_definition(tmp_path / "other", root=str(tmp_path / "other"))
        with expect_error(DatasetError, "tiny_train", str(folder / "definition.yaml"), "name"):
            register_datasets([str(other)])
        with expect_error(DatasetError, "camvid_train_day", str(BUILTIN / "camvid.yaml"), "name"):
            register_datasets([str(write_definition(tmp_path / "third", name="camvid", splits={"train_day": {}}))])


def test_unknown_name_lists_what_is_close_and_known(folder):
    with registered(make_dataset(folder)):
        with expect_error(DatasetError, "tiny_trian", "tiny_train", "cityscapes_val"):
            get_dataset_dicts(["tiny_trian"])
        with expect_error(DatasetError, "nothing", remedy="DATASETS.FILES"):
            get_label_readers(["nothing"])


def test_no_name_and_repeated_name(folder):
    with registered(make_dataset(folder)):
        with expect_error(DatasetError, "names", remedy="gta5_train"):
            get_dataset_dicts([])
        with expect_error(DatasetError, "names", "tiny_val"):
            get_dataset_dicts(["tiny_val", "tiny_val"])
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
        expect_error(DatasetError, absolute, None, "'root'") as error,
    ):
        get_dataset_dicts(["tiny_train"])
    assert "DETECTRON2_DATASETS" not in str(error.value)


def test_no_image(folder):
    with registered(make_dataset(folder, splits={"train": {}, "night": {}})):
        with expect_error(DatasetError, "tiny_night", str(folder / "images/night")):
            get_dataset_dicts(["tiny_night"])
        shutil.rmtree(folder / "images" / "train" / "a")
        with expect_error(DatasetError, "tiny_train", str(folder / "images/train/{key}.png")):
            get_dataset_dicts(["tiny_train"])


def test_images_without_label(folder):
    with registered(make_dataset(folder)):
        for index in (1, 2, 3, 5):
            (folder / f"labels/train/a/{index}.png").unlink()
        first = str(folder / "images/train/a/1.png")
        with expect_error(DatasetError, "tiny_train", first, "unpaired: skip") as caught:
            get_dataset_dicts(["tiny_train"])
        assert "4 of 6" in str(caught.value) and str(folder / "labels/train/{key}.png") in str(caught.value)


def test_labels_without_image_do_not_matter(folder):
    with registered(make_dataset(folder)):
        (folder / "images/train/a/0.png").unlink()
        assert len(get_dataset_dicts(["tiny_train"])) == 5


def test_other_and_hidden_files_do_not_matter(folder):
    with registered(make_dataset(folder, count=1)):
        (folder / "images/train/notes.txt").touch()
        (folder / "images/train/._0.png").touch()
        (folder / "images/train/.cache").mkdir()
        (folder / "images/train/.cache/0.png").touch()
        assert [record["image_id"] for record in get_dataset_dicts(["tiny_train"])] == ["a/0"]


def test_bad_lists_of_keys(folder):
    splits = {"few": {"folder": "train", "keys": "few.txt"}, "train": {}}
    with registered(make_dataset(folder, splits=splits)):
        with expect_error(DatasetError, str(folder / "few.txt"), remedy="tiny_train"):
            get_dataset_dicts(["tiny_few"])
        (folder / "few.txt").write_text("a/1\n" + "".join(f"a/9{index}\n" for index in range(7)))
        with expect_error(DatasetError, "few.txt", "a/90, a/91, a/92, a/93, a/94 and 2 more", "images/train/{key}.png"):
            get_dataset_dicts(["tiny_few"])
        (folder / "few.txt").write_text("a/1\na/2\na/1.png\n")
        with expect_error(DatasetError, str(folder / "few.txt"), "a/1"):
            get_dataset_dicts(["tiny_few"])


def test_classes_of_datasets_must_have_one_order(tmp_path):
    """The same names in another order give the same ids another meaning."""
    colors = [{"name": name, "color": [index, 0, 0]} for index, name in enumerate(("road", "sky", "car"))]
    orders = {"first": colors, "again": colors, "swapped": [colors[1], colors[0], colors[2]], "fewer": colors[:2]}
    files = []
    for name, classes in orders.items():
        (tmp_path / name).mkdir()
        files.append(write_definition(tmp_path / name, name=name, classes=classes, label_ids="identity"))
    with registered(*files):
        require_same_classes(["first_train", "again_train"])
        for other in ("swapped_train", "fewer_train"):
            with expect_error(DatasetError, "first_train", other, "classes"):
                require_same_classes(["first_train", other])


def test_dataset_of_other_code_needs_a_reader():
    DatasetCatalog.register("foreign", lambda: [{"file_name": "x"}])
    assert get_dataset_dicts(["foreign"]) == [{"file_name": "x", "dataset_name": "foreign"}]
    with expect_error(DatasetError, "foreign", "label_reader", "DATASETS.FILES"):
        get_label_readers(["foreign"])


def test_definition_survives_a_change_of_the_environment(folder, monkeypatch):
    make_dataset(folder)
    file = write_definition(folder, root=folder.name)
    with registered(file):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
        assert len(get_dataset_dicts(["tiny_train"])) == 6
    assert load_definition(file).root == folder.name
