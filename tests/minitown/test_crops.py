"""Crops: their sources, and files that a crash may have left."""

import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_factory import make_dataset, registered
from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.utils.errors import ConfigError
from famix_minitown.clip import crops as crops_module
from famix_minitown.clip.crops import (
    CropPlan,
    DatasetSource,
    TownSource,
    crops_of_scene,
    describe_crops,
    load_or_make_crops,
    looks_of,
    make_crops,
    with_cityscapes_ids,
)
from famix_minitown.datasets import FORMAT_VERSION
from famix_minitown.rendering.scene import Scene

TOWN = TownSource(100_000, 1)
PLAN = CropPlan(seed=1, looks=2, crops=2)
TOWN_IDS = (0, 1, 2, 3, 5, 7, 8, 10, 11, 13)


@dataclass(frozen=True)
class Renumbered:
    """The town with consecutive numbers for its classes, in the same order."""

    town: TownSource
    identity: str = "renumbered"
    class_names: tuple[str, ...] = tuple(CITYSCAPES_CLASSES[label].name for label in TOWN_IDS)

    def __getitem__(self, index: int) -> Scene:
        scene = self.town[index]
        return replace(scene, labels=np.searchsorted(TOWN_IDS, scene.labels).astype(np.uint8))


def test_crops_show_their_labels_and_repeat() -> None:
    town = TownSource(100_000, 6)
    crops = np.concatenate([crops_of_scene(town, CropPlan(seed=1), index) for index in range(6)])
    assert len(crops) == 6 * 4 * 5 and crops["image"].shape[1:] == (64, 64, 3)
    labels, counts = np.unique(crops["label"], return_counts=True)
    assert tuple(labels.tolist()) == TOWN_IDS and counts.max() < 0.4 * len(crops)
    assert crops_of_scene(town, CropPlan(seed=1), 3).tobytes() == crops[60:80].tobytes()
    single = [looks_of(r) for r in crops_of_scene(town, CropPlan(seed=2, looks=12, crops=1, single_looks=True), 0)]
    assert all(len(looks) <= 1 for looks in single) and any(single)
    assert all(0.7 <= strength <= 1 for looks in single for _, strength in looks)


def test_worker_processes_make_the_same_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    town = TownSource(100_000, 2)

    def forking(dataset: Any, *, multiprocessing_context: str, **options: Any) -> Any:
        assert multiprocessing_context == "spawn"  # which imports for seconds, whereas forks take none
        return DataLoader(pickle.loads(pickle.dumps(dataset)), multiprocessing_context="fork", **options)

    monkeypatch.setattr(crops_module, "DataLoader", forking)
    make_crops(town, PLAN, tmp_path / "crops.npy", workers=2)
    expected = b"".join(crops_of_scene(town, PLAN, index).tobytes() for index in range(2))
    assert np.load(tmp_path / "crops.npy").tobytes() == expected


def test_weather_knows_classes_by_their_names() -> None:
    plan = CropPlan(seed=4, looks=24, crops=1)
    expected, crops = (crops_of_scene(source, plan, 0) for source in (TOWN, Renumbered(TOWN)))
    looks = {name for record in crops for name, _ in looks_of(record)}
    assert looks & {"snow", "rain", "night"}, "without weather, this shows nothing"
    assert crops["image"].tobytes() == expected["image"].tobytes()
    assert np.array(TOWN_IDS)[crops["label"]].tolist() == expected["label"].tolist()


def test_classes_unknown_to_cityscapes_have_no_id() -> None:
    scene = replace(TOWN[0], labels=np.array([[0, 1], [2, 255]], np.uint8))
    seen = with_cityscapes_ids(scene, ("heaven", "sky", "car"))
    assert seen.labels.tolist() == [[255, 10], [13, 255]] and seen.labels.dtype == np.uint8
    assert with_cityscapes_ids(TOWN[0], TOWN.class_names).labels.tobytes() == TOWN[0].labels.tobytes()


def test_crops_of_a_dataset_keep_its_classes(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, classes=[{"name": name, "color": [0, 0, 0]} for name in ("car", "sky", "road")])
    with registered(file):
        train, validation = DatasetSource.registered("tiny_train").split(3)
    assert train.class_names == ("car", "sky", "road") and (len(train), len(validation)) == (4, 2)
    assert set(crops_of_scene(train, PLAN, 0)["label"].tolist()) <= {0, 1, 2}
    assert describe_crops(train, PLAN)["class_names"] == ["car", "sky", "road"]


def test_identity_contains_the_version_of_the_town(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TownSource(100_000, 4000).identity == f"town v{FORMAT_VERSION} 100000 + 4000"
    monkeypatch.setattr(crops_module, "FORMAT_VERSION", FORMAT_VERSION + 1)
    assert TownSource(100_000, 4000).identity == f"town v{FORMAT_VERSION + 1} 100000 + 4000"


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"x" * 300, "torn", "another"])
def test_damaged_crops_are_named(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "crops.npy"
    load_or_make_crops(TOWN, PLAN, path, workers=1)
    if content == "another":
        np.save(path, np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:-10] if isinstance(content, str) else content)
    with expect_error(ConfigError, str(path), remedy="Remove"):
        load_or_make_crops(TOWN, PLAN, path, workers=1)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda about: about.write_text(""),
        lambda about: about.write_text(about.read_text()[:-9]),
        lambda about: about.write_text("[]"),
        lambda about: about.write_bytes(b"\xff\x00"),
    ],
)
def test_crops_without_a_sound_description_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    path, about = tmp_path / "crops.npy", tmp_path / "crops.npy.json"
    made = load_or_make_crops(TOWN, PLAN, path, workers=1).tobytes()
    path.write_bytes(b"who knows what")
    damage(about)
    caplog.clear()
    with caplog.at_level(logging.INFO, "famix_minitown"):
        assert load_or_make_crops(TOWN, PLAN, path, workers=1).tobytes() == made
    assert "description crops.npy.json" in caplog.messages[0] and "regenerating the crops" in caplog.messages[0]
    assert f"crops of 1 scenes to {path}, 0 MB" in caplog.messages[1]
    assert json.loads(about.read_text()) == describe_crops(TOWN, PLAN)


def test_kill_while_crops_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, about = tmp_path / "crops.npy", tmp_path / "crops.npy.json"
    path.write_bytes(b"of something else, without a description")

    def kill(*_: object) -> None:
        assert json.loads(about.read_text()) == describe_crops(TOWN, PLAN)
        assert not path.exists(), "a kill would leave crops with the wrong description"
        raise KeyboardInterrupt

    monkeypatch.setattr(crops_module, "make_crops", kill)
    with pytest.raises(KeyboardInterrupt):
        load_or_make_crops(TOWN, PLAN, path, workers=1)
    monkeypatch.undo()
    other = replace(PLAN, seed=7)
    assert load_or_make_crops(TOWN, other, path, workers=1).tobytes() == crops_of_scene(TOWN, other, 0).tobytes()
    with expect_error(ConfigError, str(path), remedy="Choose"):
        load_or_make_crops(TOWN, PLAN, path, workers=1)
