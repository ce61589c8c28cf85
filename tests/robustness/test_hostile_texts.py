"""YAML and JSON that expand or nest without bounds, or contain impossible numbers."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_factory import make_dataset, write_image
from error_matching import expect_error
from famix.data import load_definition
from famix.data.layout.label_reader import listed_segments, read_id_names
from famix.data.panoptic.segments import SegmentLabelReader
from famix.data.registration import files_of
from famix.engine import load_config
from famix.evaluation.counting.calibration import read_calibration
from famix.evaluation.counting.confusion import read_confusion
from famix.reports import read_report
from famix.utils.errors import ConfigError, DatasetError, FAMixError
from panoptic_factory import make_panoptic, write_recipe

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
TEXTS = {
    "billion laughs": LAUGHS, "merges of merges": MERGES, "an alias to its parent": "classes: &a [*a]",
    "deep lists": "[" * 100_000, "deep mappings": "{a: " * 100_000, "an impossible date": "name: 2001-99-99",
    "a long number": "name: " + "9" * 5000, "a long hexadecimal number": "ignore_label: 0x" + "f" * 5000,
    "text as a number": "name: !!int many", "text as a time": "name: !!timestamp now",
    "a name of a megabyte": "name: " + "a" * (1 << 21), "code": "name: !!python/object/apply:os.mkdir [canary]",
}  # fmt: skip
YAML_READERS: dict[str, Callable[[Path], Any]] = {
    "definition": load_definition,
    "config": lambda path: load_config(str(path)),
}


@pytest.mark.parametrize("attack", TEXTS)
@pytest.mark.parametrize("reader", YAML_READERS)
def test_hostile_yaml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, attack: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.yaml").write_text(TEXTS[attack])
    with pytest.raises(FAMixError) as error:
        YAML_READERS[reader](tmp_path / "file.yaml")
    assert len(str(error.value)) < 2000
    assert not (tmp_path / "canary").exists()


def test_ordinary_yaml_aliases_are_read(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=1)
    text = file.read_text().replace("train: {}", "train: &all {skip: []}").replace("val: {}", "val: *all")
    file.write_text(text)
    assert "*all" in text and len(load_definition(file).splits) == 2


@pytest.mark.parametrize("bases", ["config.yaml", "[b.yaml, b.yaml]"])
def test_configs_that_include_each_other_are_refused(tmp_path: Path, bases: str) -> None:
    (tmp_path / "config.yaml").write_text(f"_BASE_: {bases}\nVERSION: 2")
    (tmp_path / "b.yaml").write_text("_BASE_: [config.yaml, config.yaml]")
    with pytest.raises(ConfigError, match=r"_BASE_ .*config\.yaml.* 50 files"):
        load_config(str(tmp_path / "config.yaml"))


def read_segments(path: Path) -> Any:
    image = write_image(path.with_suffix(".png"), np.zeros((2, 3, 3), dtype=np.uint8))
    return SegmentLabelReader({0: 0}, segments_of=partial(listed_segments, segments_file=path)).read(image)


def read_panoptic(path: Path) -> Any:
    for folder in ("panoptic/train", "images/train"):
        (path.parent / folder).mkdir(parents=True, exist_ok=True)
    return files_of(load_definition(write_recipe(path.parent, panoptic_json=path.name)))[0]()


JSON_READERS: dict[str, Callable[[Path], Any]] = {
    "names": read_id_names, "segments": read_segments, "panoptic": read_panoptic, "results": read_report,
    "confusion": read_confusion, "calibration": read_calibration,
}  # fmt: skip


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff{}", "null", "[]", '"a"', "{}", "NaN", "1e999",
        '{"categories": [{"id": Infinity, "name": "a"}], "annotations": []}',
        '{"categories": [{"id": 1e999, "name": "a"}], "annotations": [{"file_name": "file.png", "segments_info": [{"id": 1e999, "category_id": 1}]}]}',
        '{"annotations": [{"file_name": "file.png", "segments_info": [{"id": 1, "category_id": 1e30}]}]}',
        '{"class_names": ["a"], "counts": [[1e999]]}', '{"class_names": ["a"], "counts": [[99999999999999999999]]}',
        '{"labels": 3}', '{"report": {"format_version": 2}}', '{"class_names": ["\\ud800"], "counts": [[1]]}',
    ],
)  # fmt: skip
def test_hostile_json_is_refused(tmp_path: Path, reader: str, text: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(DatasetError, match=r"file\.(json|png)"):
        JSON_READERS[reader](tmp_path / "file.json")


@pytest.mark.parametrize("label_id", [-1, 65536, 10**30])
def test_impossible_label_ids_are_refused(tmp_path: Path, label_id: int) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"categories": [{"id": label_id, "name": "a"}]}))
    with expect_error(DatasetError, "label ids", label_id):
        read_id_names(tmp_path / "names.json")


def test_too_many_segments_are_refused(tmp_path: Path) -> None:
    make_panoptic(tmp_path, {"train": 1})
    file = tmp_path / "annotations/panoptic_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segments_info"] = [{"id": number, "category_id": 7} for number in range(1, 65536)]
    file.write_text(json.dumps(content))
    with expect_error(DatasetError, "65534 segments", 65535):
        files_of(load_definition(tmp_path / "panoptic.yaml"))[0]()
