import os
import re
from pathlib import Path

import pytest
import yaml

from data_factory import write_definition
from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES, definition, layout_fields, load_definition
from famix.data.panoptic import definition as panoptic_definition
from famix.utils.errors import DatasetError
from run_factory import ROOT

BUILTIN = Path(load_definition.__code__.co_filename).parent / "builtin"
OWN_CLASSES = [{"name": "field", "color": [1, 2, 3]}, {"name": "weed", "color": [4, 5, 6]}]


def test_reads_every_entry(tmp_path):
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
    assert definition.label_ids == {7: 1, 300: 0, 0: 9}
    assert definition.other_ids_ignored
    assert definition.label_channel == 0
    assert definition.ignore_label == 9
    assert [(s.name, s.folder, s.keys, s.skip) for s in definition.splits] == [
        ("train", "day/train", None, frozenset()),
        ("val", "val", "val.txt", frozenset({"x"})),
    ]
    assert definition.dataset_name(definition.splits[0]) == "tiny_train"


def test_defaults(tmp_path):
    definition = load_definition(write_definition(tmp_path, splits={"train": None}))
    assert definition.classes is CITYSCAPES_CLASSES
    assert definition.ignore_label == 255
    assert definition.label_channel is None
    assert not definition.other_ids_ignored


def test_identity_maps_every_class_and_the_ignore_label(tmp_path):
    definition = load_definition(write_definition(tmp_path, classes=OWN_CLASSES, label_ids="identity"))
    assert definition.label_ids == {0: 0, 1: 1, 255: 255}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": "cityscapes"}, r"definition\.yaml: unknown key 'clases'.*Did you mean 'classes'\?"),
        ({"root": None}, r"the key 'root' is missing; expected a text"),
        ({"root": 3}, r"key 'root': got 3, expected a text"),
        ({"name": "my data"}, r"key 'name': got 'my data', expected letters"),
        ({"images": "images/{split}.png"}, r"key 'images': got .* with \{key\} once"),
        ({"images": "{key}/{index}.png"}, r"key 'images': got"),
        ({"labels": "../{key}.png"}, r"key 'labels': got .* expected a path below the root"),
        ({"labels": "/data/{key}.png"}, r"key 'labels': got .* expected a path below the root"),
        ({"labels": "images/{split}/{key}.png"}, r"key 'labels': got .* another path"),
        ({"classes": "cityscape"}, r"key 'classes': got 'cityscape', expected 'cityscapes' or a list"),
        ({"classes": OWN_CLASSES + OWN_CLASSES[:1]}, r"key 'classes': got 'field', expected every name once"),
        ({"classes": [{"name": "a"}]}, r"the key 'classes\.0\.color' is missing"),
        ({"classes": [{"name": "a", "color": [0, 0, 256]}]}, r"key 'classes\.0\.color': got \[0, 0, 256\]"),
        ({"classes": [{"name": "ignore", "color": [0, 0, 0]}]}, r"key 'classes\.0\.name': got 'ignore'"),
        ({"classes": ["road"]}, r"key 'classes\.0': got 'road', expected a mapping"),
        ({"label_ids": {0: "raod"}}, r"key 'label_ids\.0': got 'raod', expected a class name.*Did you mean 'road'"),
        ({"label_ids": {"0": "road"}}, r"key 'label_ids': got '0', expected label ids"),
        ({"label_ids": {70000: "road"}}, r"got 70000, expected label ids from 0 to 65535"),
        ({"label_ids": [0, 1]}, r"key 'label_ids': got \[0, 1\], expected a mapping"),
        ({"other_ids": "road"}, r"key 'other_ids': got 'road', expected 'ignore' or 'error'"),
        ({"label_channel": 4}, r"key 'label_channel': got 4"),
        ({"label_channel": True}, r"key 'label_channel': got True, expected a whole number"),
        ({"ignore_label": 18}, r"key 'ignore_label': got 18, expected a number from 19"),
        ({"ignore_label": 256}, r"key 'ignore_label': got 256"),
        ({"splits": {}}, r"key 'splits': got \{\}, expected at least one split"),
        ({"splits": {"a b": {}}}, r"key 'splits': got 'a b'"),
        ({"splits": {"train": {"key": "x"}}}, r"unknown key 'splits\.train\.key'.*Did you mean 'keys'"),
        ({"splits": {"train": {"skip": [2501]}}}, r"key 'splits\.train\.skip': got 2501, expected keys as texts"),
        ({"images": "images/{key}.png"}, r"key 'splits': got \['train', 'val'\], expected at most one"),
    ],
)
def test_mistakes_name_file_key_and_remedy(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message) as error:
        load_definition(write_definition(tmp_path, **changes))
    assert str(tmp_path / "definition.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "'name' stands twice"),
        ("label_ids: {0: road, 0x0: sky}", "key 0 stands twice"),
        ("name: [", "no valid YAML"),
        ("- name", "the file: got .* expected a mapping"),
        ("", "the file: got None, expected a mapping"),
        ("name: !!python/object/apply:os.getcwd []", "no valid YAML"),
    ],
)
def test_files_that_are_no_definition(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_definition(file)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.yaml cannot be read"):
        load_definition(tmp_path / "none.yaml")


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


def test_root_folder_needs_the_variable_that_it_names(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    definition = load_definition(write_definition(tmp_path, root="$NOT_SET/mine"))
    with expect_error(DatasetError, key="key 'root'", value="$NOT_SET/mine", remedy="NOT_SET"):
        definition.root_folder()


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("gta5", {7: 0, 8: 1, 11: 2, 17: 5, 19: 6, 20: 7, 23: 10, 24: 11, 26: 13, 31: 16, 33: 18}),
        ("cityscapes", {7: 0, 12: 3, 13: 4, 21: 8, 22: 9, 25: 12, 27: 14, 28: 15, 32: 17}),
        ("acdc", {7: 0, 33: 18}),
        ("bdd100k", {0: 0, 18: 18, 255: 255}),
        ("mapillary", {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 47: 5, 22: 12, 57: 17, 52: 18}),
        ("synthia", {0: 255, 1: 10, 2: 2, 3: 0, 7: 5, 8: 13, 16: 9, 18: 14, 20: 16, 21: 3, 22: 255}),
        ("camvid", {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 12, 11: 255}),
    ],
)
def test_builtin_ids(name, ids):
    label_ids = load_definition(BUILTIN / f"{name}.yaml").label_ids
    assert {raw: label_ids[raw] for raw in ids} == ids
    assert set(range(19)) - set(label_ids.values()) <= {3, 6, 9, 14, 15, 16, 17, 18}  # what CamVid lacks


def test_every_builtin_is_complete():
    names = {load_definition(file).name for file in BUILTIN.glob("*.yaml")}
    assert names == {
        "gta5", "cityscapes", "acdc", "bdd100k", "mapillary", "mapillary_mapb", "mapillary_v2", "mapillary_v2_mapb",
        "synthia", "camvid", "dark_zurich", "nighttime_driving", "idd", "wilddash2",
    }  # fmt: skip
    for name in names - {"camvid"}:
        for layout in load_definition(BUILTIN / f"{name}.yaml").layouts:
            train_ids = {*layout.encoding.label_ids.values(), *layout.encoding.label_names.values()}
            assert train_ids - {255} == set(range(19))


def test_the_example_of_the_guide_works(tmp_path):
    guide = Path(__file__).parents[2] / "datasets" / "README.md"
    example = guide.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "fields.yaml").write_text(example)
    definition = load_definition(tmp_path / "fields.yaml")
    assert [definition.dataset_name(split) for split in definition.splits] == ["fields_2024", "fields_2025"]
    assert [entry.name for entry in definition.classes] == ["soil", "crop", "weed"]
    assert definition.label_ids == {0: 255, 1: 0, 2: 1, 3: 2}


# Documents


def test_the_readme_describes_every_key_and_no_other():
    text = (ROOT / "datasets/README.md").read_text().partition("### Format")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    known = {*definition._OWN_KEYS, *definition._SPLIT_KEYS, *layout_fields._LAYOUT_KEYS}
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == known


def test_the_panoptic_document_shows_every_key_and_no_other():
    text = (ROOT / "docs/PANOPTIC.md").read_text().partition("### Your own data")[2]
    example = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert example.keys() == set(panoptic_definition._KEYS)
