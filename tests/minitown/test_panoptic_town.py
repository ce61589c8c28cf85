"""The town with instances: its panoptic datasets have Cityscapes' format, and are written once."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from data_factory import registered
from error_matching import expect_error
from famix.data import get_dataset_dicts, get_label_readers, verify_datasets
from famix.data.classes import panoptic_classes
from famix.data.panoptic.segments import read_segments
from famix.data.registration import domain_of
from famix.utils.errors import DatasetError
from famix_minitown import datasets
from famix_minitown.datasets import SPLITS, town_folder
from famix_minitown.rendering.scene import render_scene

NIGHT = "minitown_night_val_panoptic"


@pytest.fixture
def small_town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Datasets of two scenes in a cache of their own, whose folder is returned."""
    monkeypatch.setenv("FAMIX_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "SPLITS", {name: replace(split, count=2) for name, split in SPLITS.items()})
    return town_folder()


def test_labels_are_those_of_the_scenes(small_town: Path) -> None:
    with registered():
        assert not small_town.exists()  # registering makes nothing
        records = get_dataset_dicts([NIGHT])
        verify_datasets([NIGHT])
        reader = get_label_readers([NIGHT])[NIGHT]
        for record, seed in zip(records, (50_000, 50_001), strict=True):
            assert record["file_name"].startswith(f"{small_town}/minitown_night_val/leftImg8bit/val/minitownnight/")
            scene = render_scene(seed)
            np.testing.assert_array_equal(reader.read(record["label_file_name"]), scene.labels)
            numbers, things = read_segments(record["pan_seg_file_name"], record["segments_info"]), []
            for number, segment in enumerate(record["segments_info"], 1):
                (train_id,), instances = np.unique(scene.labels[numbers == number]), scene.instances[numbers == number]
                assert train_id == segment["category_id"]
                if train_id in (11, 13):
                    (instance,) = np.unique(instances)  # a thing is one instance, and an instance one thing
                    assert (numbers == number).sum() == (scene.instances == instance).sum()
                    things.append(int(instance))
            assert sorted(things) == np.unique(scene.instances[scene.instances > 0]).tolist()


def test_things_are_people_and_cars() -> None:
    with registered():
        for split in SPLITS:
            classes, metadata = panoptic_classes(f"minitown_{split}_panoptic"), MetadataCatalog.get(f"minitown_{split}")
            assert [metadata.stuff_classes[train_id] for train_id in classes.things] == ["person", "car"]
            assert domain_of(f"minitown_{split}_panoptic") == domain_of(f"minitown_{split}")


def test_files_follow_coco_and_repeat(small_town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for cache in ("one", "two"):
        monkeypatch.setenv("FAMIX_CACHE", str(tmp_path / cache))
        with registered():
            get_dataset_dicts([NIGHT])
        folder = town_folder() / NIGHT
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append({str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    assert digests[0] == digests[1] and len(digests[0]) == 3
    content = json.loads((folder / "panoptic.json").read_text())
    assert {entry["name"] for entry in content["categories"] if entry["isthing"]} == {"person", "car"}
    for annotation in content["annotations"]:
        numbers = read_segments(folder / "panoptic" / annotation["file_name"], annotation["segments_info"])
        for number, segment in enumerate(annotation["segments_info"], 1):
            rows, columns = np.nonzero(numbers == number)
            left, top, width, height = segment["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
            assert segment["area"] == len(rows)


def test_missing_json_file_names_the_remedy(small_town: Path) -> None:
    with registered():
        get_dataset_dicts([NIGHT])
        (small_town / NIGHT / "panoptic.json").unlink()
        with expect_error(DatasetError, NIGHT, remedy="Delete"):
            get_dataset_dicts([NIGHT])
