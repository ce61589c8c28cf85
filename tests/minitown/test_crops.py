"""Where crops come from and how they are kept: sources with other classes, and files that a crash may have left."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from data_factory import make_dataset, registered
from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.utils.errors import ConfigError
from famix_minitown import crop_files
from famix_minitown.crop_files import describe_crops, load_or_make_crops
from famix_minitown.crops import CropPlan, DatasetSource, TownSource, attributes_of, crops_of_scene, with_cityscapes_ids
from famix_minitown.datasets import FORMAT_VERSION
from famix_minitown.scene import Scene

TOWN = TownSource(100_000, 1)
PLAN = CropPlan(seed=1, looks=2, crops=2)
TOWN_IDS = (0, 1, 2, 3, 5, 7, 8, 10, 11, 13)


@dataclass(frozen=True)
class Renumbered:
    """The town with numbers for the classes that it has alone, in the same order."""

    town: TownSource
    identity: str = "renumbered"
    class_names: tuple[str, ...] = tuple(CITYSCAPES_CLASSES[label].name for label in TOWN_IDS)

    def __len__(self) -> int:
        return len(self.town)

    def __getitem__(self, index: int) -> Scene:
        scene = self.town[index]
        return replace(scene, labels=np.searchsorted(TOWN_IDS, scene.labels).astype(np.uint8))


def test_weather_knows_classes_by_their_names() -> None:
    plan = CropPlan(seed=4, looks=24, crops=1)
    expected, crops = (crops_of_scene(source, plan, 0) for source in (TOWN, Renumbered(TOWN)))
    looks = {name for record in crops for name, _ in attributes_of(record)}
    assert looks & {"snow", "rain", "night"}, "without weather, this shows nothing"
    assert crops["image"].tobytes() == expected["image"].tobytes()
    assert np.array(TOWN_IDS)[crops["label"]].tolist() == expected["label"].tolist()


def test_classes_that_effects_do_not_know() -> None:
    scene = replace(TOWN[0], labels=np.array([[0, 1], [2, 255]], np.uint8))
    seen = with_cityscapes_ids(scene, ("heaven", "sky", "car"))
    assert seen.labels.tolist() == [[255, 10], [13, 255]] and seen.labels.dtype == np.uint8
    unchanged = with_cityscapes_ids(TOWN[0], TOWN.class_names)
    assert unchanged.labels.tobytes() == TOWN[0].labels.tobytes()


def test_crops_of_a_dataset_keep_its_own_classes(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, classes=[{"name": name, "color": [0, 0, 0]} for name in ("car", "sky", "road")])
    with registered(file):
        source = DatasetSource.registered("tiny_train")
        train, validation = source.split(3)
    assert train.class_names == ("car", "sky", "road") and (len(train), len(validation)) == (4, 2)
    assert set(crops_of_scene(train, PLAN, 0)["label"].tolist()) <= {0, 1, 2}
    assert describe_crops(train, PLAN)["class_names"] == ["car", "sky", "road"]


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


def test_the_version_of_the_town_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TownSource(100_000, 4000).identity == f"town v{FORMAT_VERSION} 100000 + 4000"
    monkeypatch.setattr("famix_minitown.crops.FORMAT_VERSION", FORMAT_VERSION + 1)
    assert TownSource(100_000, 4000).identity == f"town v{FORMAT_VERSION + 1} 100000 + 4000"


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
def test_crops_without_a_sound_description_are_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    path, about = tmp_path / "crops.npy", tmp_path / "crops.npy.json"
    made = load_or_make_crops(TOWN, PLAN, path, workers=1).tobytes()
    path.write_bytes(b"who knows what")
    damage(about)
    caplog.clear()  # other tests may have made the loggers talk
    with caplog.at_level(logging.INFO, "famix_minitown"):
        assert load_or_make_crops(TOWN, PLAN, path, workers=1).tobytes() == made
    assert "lacks crops.npy.json" in caplog.messages[0] and "making the crops again" in caplog.messages[0]
    assert f"Making crops of 1 scenes in {path}, 0 MB" in caplog.messages[1]
    assert json.loads(about.read_text()) == describe_crops(TOWN, PLAN)


def test_a_kill_while_crops_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, about = tmp_path / "crops.npy", tmp_path / "crops.npy.json"
    path.write_bytes(b"of something else, without a description")

    def kill(*_: object) -> None:
        assert json.loads(about.read_text()) == describe_crops(TOWN, PLAN)
        assert not path.exists(), "a kill would leave crops with the description of others"
        raise KeyboardInterrupt

    monkeypatch.setattr(crop_files, "make_crops", kill)
    with pytest.raises(KeyboardInterrupt):
        load_or_make_crops(TOWN, PLAN, path, workers=1)
    monkeypatch.undo()
    other = replace(PLAN, seed=7)  # what was only begun binds nobody
    assert load_or_make_crops(TOWN, other, path, workers=1).tobytes() == crops_of_scene(TOWN, other, 0).tobytes()
    with pytest.raises(ConfigError, match="Choose another file"):
        load_or_make_crops(TOWN, PLAN, path, workers=1)


def test_processes_are_started_out_of_reach_of_interrupts() -> None:
    blocked = "signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())"
    with crop_files._children_without_interrupts():
        child = subprocess.run(
            [sys.executable, "-c", f"import signal; print({blocked})"], capture_output=True, text=True, check=True
        )
    assert child.stdout == "True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
