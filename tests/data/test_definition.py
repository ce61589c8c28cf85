import os
import re
from pathlib import Path

import pytest
import yaml

from data_factory import write_definition
from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES, load_definition
from famix.data.definition import PanopticDefinition
from famix.data.definition_file import DATASET_KEYS, LAYOUT_KEYS, PANOPTIC_KEYS, SPLIT_KEYS
from famix.data.registration import BUILTIN
from famix.utils.errors import DatasetError
from run_factory import ROOT

OWN_CLASSES = [{"name": "field", "color": [1, 2, 3]}, {"name": "weed", "color": [4, 5, 6]}]


def test_load_reads_every_entry(tmp_path):
    file = write_definition(
        tmp_path,
        classes=OWN_CLASSES,
        label_ids={7: "weed", 300: "field", 0: "ignore"},
        other_ids="ignore",
        label_channel=0,
        ignore_label=9,
        splits={"train": {"folder": "day/train"}, "val": {"keys": "val.txt", "skip": ["x"]}},
    )
    definition = load_definition(file)
    assert [(c.name, c.color) for c in definition.classes] == [("field", (1, 2, 3)), ("weed", (4, 5, 6))]
    encoding = definition.layouts[0].encoding
    assert encoding.label_ids == {7: 1, 300: 0, 0: 9}
    assert encoding.other_ids_ignored and encoding.channel == 0 and definition.ignore_label == 9
    assert [(s.name, s.folder, s.keys, s.skip) for s in definition.splits] == [
        ("train", "day/train", None, frozenset()),
        ("val", "val", "val.txt", frozenset({"x"})),
    ]
    assert definition.dataset_name(definition.splits[0]) == "tiny_train"


def test_load_fills_in_defaults(tmp_path):
    definition = load_definition(write_definition(tmp_path, splits={"train": None}))
    assert definition.classes is CITYSCAPES_CLASSES and definition.ignore_label == 255
    encoding = definition.layouts[0].encoding
    assert encoding.channel is None and not encoding.other_ids_ignored
    own = load_definition(write_definition(tmp_path, classes=OWN_CLASSES, label_ids="identity"))
    assert own.layouts[0].encoding.label_ids == {0: 0, 1: 1, 255: 255}


def in_layouts(*layouts):
    return {"images": None, "labels": None, "layouts": list(layouts)}


FOLDERS = {"images": "images/{split}/{key}.png", "labels": "labels/{split}/{key}.png"}
BY_NAME = {"classes": OWN_CLASSES, "label_ids": None, "label_names": {"a": "weed"}, "label_names_file": "names.json"}
BY_ID = {"classes": OWN_CLASSES, "label_ids": {0: "weed"}}


@pytest.mark.parametrize(
    ("changes", "key", "value", "remedy"),
    [
        ({"clases": "cityscapes"}, "'clases'", None, "'classes'"),
        ({"root": None}, "'root'", None, "datasets/README.md"),
        ({"root": 3}, "'root'", 3, ""),
        ({"name": "my data"}, "'name'", "my data", ""),
        ({"images": "images/{split}.png"}, "'images'", "images/{split}.png", "images/{split}/{key}.png"),
        ({"images": "{key}/{index}.png"}, "'images'", "{key}/{index}.png", ""),
        ({"labels": "../{key}.png"}, "'labels'", "../{key}.png", ""),
        ({"labels": "/data/{key}.png"}, "'labels'", "/data/{key}.png", ""),
        ({"labels": "images/{split}/{key}.png"}, "'labels'", "images/{split}/{key}.png", ""),
        ({"classes": "cityscape"}, "'classes'", "cityscape", ""),
        ({"classes": OWN_CLASSES + OWN_CLASSES[:1]}, "'classes'", "field", ""),
        ({"classes": [{"name": "a"}]}, "'classes.0.color'", None, "datasets/README.md"),
        ({"classes": [{"name": "a", "color": [0, 0, 256]}]}, "'classes.0.color'", [0, 0, 256], ""),
        ({"classes": [{"name": "ignore", "color": [0, 0, 0]}]}, "'classes.0.name'", "ignore", ""),
        ({"classes": ["road"]}, "'classes.0'", "road", ""),
        ({"label_ids": {0: "raod"}}, "'label_ids.0'", "raod", "'road'"),
        ({"label_ids": {"0": "road"}}, "'label_ids'", "0", ""),
        ({"label_ids": {70000: "road"}}, "'label_ids'", 70000, ""),
        ({"label_ids": [0, 1]}, "'label_ids'", [0, 1], ""),
        ({**BY_ID, "label_ids": "cityscapes"}, "'label_ids'", "cityscapes", ""),
        ({"label_ids": None}, "'label_ids'", None, "datasets/README.md"),
        ({"other_ids": "road"}, "'other_ids'", "road", ""),
        ({"unpaired": "drop"}, "'unpaired'", "drop", ""),
        ({"highest_id": -1}, "'highest_id'", -1, ""),
        ({"label_bits": 12}, "'label_bits'", 12, ""),
        ({"label_channel": 4}, "'label_channel'", 4, ""),
        ({"label_channel": True}, "'label_channel'", True, ""),
        ({"ignore_label": 18}, "'ignore_label'", 18, ""),
        ({"ignore_label": 256}, "'ignore_label'", 256, ""),
        ({"splits": {}}, "'splits'", {}, ""),
        ({"splits": {"a b": {}}}, "'splits'", "a b", ""),
        ({"splits": {"..": {}}}, "'splits'", "..", ""),
        ({"splits": {"train": {"key": "x"}}}, "'splits.train.key'", None, "'keys'"),
        ({"splits": {"train": {"skip": [2501]}}}, "'splits.train.skip'", 2501, "Quote"),
        ({"images": "images/{key}.png"}, "'splits'", ["train", "val"], ""),
        # Names of ids
        ({**BY_NAME, "label_names_file": None}, "'label_names'", None, "'label_names_file'"),
        ({**BY_NAME, "label_names": None}, "'label_names'", None, "'label_names_file'"),
        ({**BY_NAME, "label_ids": {0: "weed"}}, "'label_ids'", None, "'label_names'"),
        ({**BY_NAME, "label_names": {"a": "wed"}}, "'label_names.a'", "wed", "'weed'"),
        ({**BY_NAME, "label_names": {1: "weed"}}, "'label_names'", 1, ""),
        ({**BY_NAME, "label_format": "coco"}, "'label_format'", "coco", ""),
        ({**BY_ID, "label_format": "coco_panoptic"}, "'label_format'", "coco_panoptic", "'label_names_file'"),
        # Layouts
        ({"layouts": [FOLDERS]}, "'images'", None, "'layouts'"),
        (in_layouts(), "'layouts'", [], ""),
        (in_layouts(FOLDERS, {"images": "a/{key}.png"}), "'layouts.1.labels'", None, "datasets/README.md"),
        (in_layouts({**FOLDERS, "label": "x"}), "'layouts.0.label'", None, "'labels'"),
        (in_layouts({**FOLDERS, "label_ids": {0: "raod"}}), "'layouts.0.label_ids.0'", "raod", "'road'"),
        (in_layouts(FOLDERS, {**FOLDERS, "label_ids": "identity"}), "'layouts.1.labels'", FOLDERS["labels"], ""),
        (in_layouts({**FOLDERS, "splits": ["vall"]}), "'layouts.0.splits'", "vall", ""),
        (in_layouts({**FOLDERS, "folders": {"x": "y"}}), "'layouts.0.folders.x'", None, "train, val"),
        (in_layouts({**FOLDERS, "folders": {"val": 3}}), "'layouts.0.folders.val'", 3, ""),
        (in_layouts({**FOLDERS, "splits": ["val"]}), "'splits'", "train", "'layouts'"),
        (in_layouts({**FOLDERS, "keys": None}), "'layouts.0.keys'", None, ""),
        (in_layouts({"images": "a/{key}.png", "labels": "b/{key}.png"}), "'splits'", ["train", "val"], ""),
    ],
)
def test_mistakes_name_file_key_value_and_remedy(tmp_path, changes, key, value, remedy):
    with expect_error(DatasetError, key, value, remedy) as error:
        load_definition(write_definition(tmp_path, **changes))
    assert str(tmp_path / "definition.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("name: a\nname: b\n", "line 2"),
        ("label_ids: {0: road, 0x0: sky}", "0"),
        ("name: [", "line 2"),
        ("name: a\nroot\nclasses: cityscapes", "line 2"),
        ("- name", "the file"),
        ("", "the file"),
        ("name: !!python/object/apply:os.getcwd []", "line 1"),
        (None, "DATASETS.FILES"),
    ],
)
def test_load_rejects_files_that_are_not_definitions(tmp_path, text, remedy):
    file = tmp_path / "bad.yaml"
    if text is not None:
        file.write_text(text)
    with expect_error(DatasetError, str(file), remedy=remedy):
        load_definition(file)


def test_root_folder_follows_the_environment(tmp_path, monkeypatch):
    definition = load_definition(write_definition(tmp_path, root="mine"))
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert definition.root_folder() == "/data/mine"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert definition.root_folder() == os.path.abspath("datasets/mine")

    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DISK", "/disk")
    for root, expected in (("~/mine", "/home/someone/mine"), ("$DISK/mine", "/disk/mine"), ("/mine", "/mine")):
        assert load_definition(write_definition(tmp_path, root=root)).root_folder() == expected


def test_builtin_definitions_are_complete():
    definitions = [load_definition(file) for file in BUILTIN.glob("*.yaml")]
    semantic = {entry.name: entry for entry in definitions if not isinstance(entry, PanopticDefinition)}
    assert semantic.keys() == {
        "gta5", "cityscapes", "acdc", "bdd100k", "mapillary", "mapillary_mapb", "mapillary_v2", "mapillary_v2_mapb",
        "synthia", "camvid", "dark_zurich", "nighttime_driving", "idd", "wilddash2",
    }  # fmt: skip
    for name in semantic.keys() - {"camvid"}:
        for layout in semantic[name].layouts:
            train_ids = {*layout.encoding.label_ids.values(), *layout.encoding.label_names.values()}
            assert train_ids - {255} == set(range(19))
    panoptic = {entry.name: entry for entry in definitions if isinstance(entry, PanopticDefinition)}
    assert panoptic.keys() == {"acdc", "cityscapes", "mapillary"}
    assert all(set(entry.categories.values()) == set(range(19)) for entry in panoptic.values())


# Documents


def test_readme_example_loads(tmp_path):
    guide = Path(ROOT, "datasets/README.md").read_text(encoding="utf-8")
    (tmp_path / "fields.yaml").write_text(guide.split("```yaml\n")[1].split("```")[0])
    definition = load_definition(tmp_path / "fields.yaml")
    assert [definition.dataset_name(split) for split in definition.splits] == ["fields_2024", "fields_2025"]
    assert [entry.name for entry in definition.classes] == ["soil", "crop", "weed"]
    assert definition.layouts[0].encoding.label_ids == {0: 255, 1: 0, 2: 1, 3: 2}


def test_readme_describes_every_key():
    text = (ROOT / "datasets/README.md").read_text().partition("### Format")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == {*DATASET_KEYS, *SPLIT_KEYS, *LAYOUT_KEYS}
    text = (ROOT / "docs/PANOPTIC.md").read_text().partition("### Your own data")[2]
    assert yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0]).keys() == PANOPTIC_KEYS.keys()
