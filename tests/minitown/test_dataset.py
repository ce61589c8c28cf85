"""minitown as datasets: what the scenes' files hold, and when they are made."""

import hashlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import famix
from data_factory import data_config, registered
from error_matching import expect_error
from famix.data import get_dataset_dicts, get_label_readers, require_same_classes, verify_datasets
from famix.evaluation import build_evaluator
from famix.utils.errors import DatasetError
from famix_minitown import datasets, writer
from famix_minitown.canvas import FAR
from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS, apply_condition
from famix_minitown.datasets import CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED, FORMAT_VERSION, SPLITS
from famix_minitown.scene import SIZE, Scene, render_scene

SMALL = (64, 128)
NAMES = [f"minitown_{name}" for name in SPLITS]
ALL = (*CONDITIONS, *DEVELOPMENT_CONDITIONS)
SKY, PERSON, RIDER, CAR = 10, 11, 12, 13

# Importing all of famix takes seconds; rendering needs neither PyTorch nor Detectron2.
ALONE = f"""
import sys, types
famix = types.ModuleType("famix")
famix.__path__ = {famix.__path__!r}
sys.modules["famix"] = famix
from pathlib import Path
from famix_minitown import writer
"""


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> hash of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(50_000, SMALL)


@pytest.fixture
def small_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data sets of three scenes, in a cache of their own, whose folder is returned."""
    monkeypatch.setenv("FAMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "SPLITS", {name: replace(split, count=3) for name, split in SPLITS.items()})
    return tmp_path / "cache/minitown" / f"v{FORMAT_VERSION}-{SIZE[0]}x{SIZE[1]}"


def test_scenes_of_different_purposes_are_disjoint() -> None:
    seeds: dict[str, set[int]] = defaultdict(set)
    for name, split in SPLITS.items():
        purpose = "oracle" if name.endswith("_train") else name.split("_")[-1]
        seeds[purpose] |= set(split.seeds)
    assert {purpose: len(found) for purpose, found in seeds.items()} == {
        "train": 500, "val": 50, "dev": 50, "oracle": 100,
    }  # fmt: skip
    assert len(set().union(*seeds.values())) == 700
    assert max(set().union(*seeds.values())) < CLIP_TRAIN_FIRST_SEED < CLIP_VAL_FIRST_SEED


def test_table_of_splits() -> None:
    assert set(SPLITS) == {
        "train",
        *(f"{name}_val" for name in CONDITIONS),
        *(f"{name}_dev" for name in ("clear", *DEVELOPMENT_CONDITIONS)),
        *(f"{name}_train" for name in CONDITIONS if name != "clear"),
    }
    for name, split in SPLITS.items():
        assert name in ("train", f"{split.condition}_{split.folder}")
    assert (SPLITS["train"].condition, SPLITS["train"].folder) == ("clear", "train")


def test_another_process_writes_the_same_bytes_and_seeds_and_conditions_give_other_images(tmp_path: Path) -> None:
    code = "writer.write_tree(Path(sys.argv[1]), 'val', sys.argv[2:], [3, 4], (64, 128))"
    command = [sys.executable, "-c", ALONE + code, str(tmp_path / "process"), *ALL]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        writer.write_tree(tmp_path / "here", "val", ALL, [3, 4], SMALL)
        assert process.wait(60) == 0
    expected = digests(tmp_path / "here")
    assert len(expected) == 5 * 2 * len(ALL)
    assert digests(tmp_path / "process") == expected
    assert len(set(digests(tmp_path / "here/leftImg8bit").values())) == 2 * len(ALL)


def test_tree_holds_what_the_scene_holds(tmp_path: Path, scene: Scene) -> None:
    writer.write_tree(tmp_path, "val", ["night"], [scene.seed], SMALL)
    frame = "val/minitownnight/minitownnight_000000_050000"
    assert sorted(digests(tmp_path)) == [
        f"disparity/{frame}_disparity.png",
        f"gtFine/{frame}_gtFine_instanceIds.png",
        f"gtFine/{frame}_gtFine_labelIds.png",
        f"gtFine/{frame}_gtFine_labelTrainIds.png",
        f"leftImg8bit/{frame}_leftImg8bit.png",
    ]
    np.testing.assert_array_equal(
        pixels(tmp_path / f"leftImg8bit/{frame}_leftImg8bit.png"), apply_condition(scene, "night")
    )
    np.testing.assert_array_equal(pixels(tmp_path / f"gtFine/{frame}_gtFine_labelTrainIds.png"), scene.labels)


def test_file_names_have_room_for_large_seeds(tmp_path: Path) -> None:
    writer.write_tree(tmp_path, "val", ["fog"], [12_000_034], SMALL)
    assert "leftImg8bit/val/minitownfog/minitownfog_000012_000034_leftImg8bit.png" in digests(tmp_path)


def test_instance_ids_follow_cityscapes(tmp_path: Path, scene: Scene) -> None:
    writer.write_tree(tmp_path, "val", ["clear"], [scene.seed], SMALL)
    folder = tmp_path / "gtFine/val/minitownclear"
    ids = pixels(next(folder.glob("*_instanceIds.png")))
    label_ids = pixels(next(folder.glob("*_labelIds.png")))
    with_instance = scene.instances > 0
    np.testing.assert_array_equal(ids[~with_instance], label_ids[~with_instance])
    np.testing.assert_array_equal(ids[with_instance] // 1000, label_ids[with_instance])
    for label_id in (24, 26):
        numbers = np.unique(ids[ids // 1000 == label_id] % 1000)
        assert len(numbers) > 1
        np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    pairs = np.unique(np.stack([ids[with_instance], scene.instances[with_instance]]), axis=1)
    assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def test_disparity_gives_the_depth_back(tmp_path: Path, scene: Scene) -> None:
    writer.write_tree(tmp_path, "val", ["clear"], [scene.seed], SMALL)
    coded = pixels(next((tmp_path / "disparity").rglob("*.png"))).astype(float)
    np.testing.assert_array_equal(coded == 0, scene.depth >= FAR)
    assert (coded == 0).any()
    known = coded > 0
    expected = 0.22 * scene.focal / scene.depth[known]
    np.testing.assert_allclose((coded[known] - 1) / 256, expected, atol=0.5 / 256 + 1e-9)


def test_registered_names_load_and_are_checked(small_splits: Path) -> None:
    with registered():
        assert not small_splits.exists()  # registering alone makes nothing
        names = ["minitown_train", "minitown_night_val"]
        records = get_dataset_dicts(names)
        verify_datasets(names)
        assert [record["image_id"] for record in records] == [
            *(f"minitownclear/minitownclear_000000_{seed:06d}" for seed in range(3)),
            *(f"minitownnight/minitownnight_000000_{seed:06d}" for seed in range(50_000, 50_003)),
        ]
        assert [record["dataset_name"] for record in records] == [names[0]] * 3 + [names[1]] * 3
        night = records[3]
        assert night["file_name"].startswith(f"{small_splits}/minitown_night_val/leftImg8bit/val/minitownnight/")
        scene = render_scene(50_000)
        np.testing.assert_array_equal(pixels(night["file_name"]), apply_condition(scene, "night"))
        reader = get_label_readers(names)["minitown_night_val"]
        np.testing.assert_array_equal(reader.read(night["label_file_name"]), scene.labels)


def test_every_name_is_registered_with_the_metadata_of_other_datasets() -> None:
    with registered():
        ours = {name for name in DatasetCatalog if name.startswith("minitown")}
        assert ours == {*NAMES, *(f"{name}_panoptic" for name in NAMES)}
        require_same_classes([*NAMES, "cityscapes_val"])
        for name in NAMES:
            ours, others = MetadataCatalog.get(name), MetadataCatalog.get("bdd100k_val")
            assert ours.stuff_colors == others.stuff_colors
            assert (ours.ignore_label, ours.evaluator_type) == (255, "sem_seg")
            assert ours.label_reader == others.label_reader
            assert ours.definition.name == "minitown"
        with pytest.raises(DatasetError, match=r"'minitown_nihgt_val' is unknown\. Did you mean 'minitown_night_val'"):
            get_dataset_dicts(["minitown_nihgt_val"])


def test_scores_count_the_classes_that_occur(small_splits: Path, tmp_path: Path) -> None:
    cfg = data_config(train=())
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    with registered():
        reader = get_label_readers(["minitown_fog_val"])["minitown_fog_val"]
        evaluator = build_evaluator(cfg, "minitown_fog_val")
        evaluator.reset()
        for record in get_dataset_dicts(["minitown_fog_val"]):
            labels = torch.from_numpy(reader.read(record["label_file_name"]).astype(np.int64))
            labels[labels == PERSON] = RIDER  # which never occurs
            evaluator.process([record], [{"sem_seg": torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1)}])
        scores = evaluator.evaluate()["sem_seg"]
    assert scores["mIoU"] == pytest.approx(100 * 9 / 10)
    assert np.isnan(scores["IoU-rider"])


def test_files_are_made_once(small_splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with registered():
        records = get_dataset_dicts(["minitown_haze_dev"])
        monkeypatch.setattr(datasets, "write_tree", fail)
        monkeypatch.setattr(datasets, "file_lock", fail)  # which a read-only cache could not have
        assert get_dataset_dicts(["minitown_haze_dev"]) == records


def fail(*arguments: object) -> None:
    raise AssertionError("called again")


def stop_at(condition: str, count: int) -> Callable[[Scene, str], np.ndarray]:
    """`apply_condition`, interrupted as if by Ctrl-C after some images."""
    done: list[str] = []

    def interrupted(scene: Scene, name: str) -> np.ndarray:
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(name)
        return apply_condition(scene, condition)

    return interrupted


def test_interruption_leaves_nothing(small_splits: Path) -> None:
    with registered():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "apply_condition", stop_at("dusk", 2))
            with pytest.raises(KeyboardInterrupt):
                get_dataset_dicts(["minitown_dusk_val"])
        assert digests(small_splits).keys() <= {"minitown_dusk_val.lock"}
        assert len(get_dataset_dicts(["minitown_dusk_val"])) == 3


def fork(work: Callable[[], object]) -> int:
    """Run a function in a process of its own; returns its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_what_a_killed_process_left_is_never_used(small_splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> None:
        monkeypatch.setattr(writer, "apply_condition", lambda scene, _: done or done.append(1) or scene.image)
        monkeypatch.setattr(
            writer, "render_scene", lambda seed, size: os._exit(9) if done else render_scene(seed, size)
        )
        datasets.generated_folder("minitown_snow_val", datasets.MinitownSplit("snow", "val", 777, 3))

    done: list[int] = []
    assert os.waitstatus_to_exitcode(os.waitpid(fork(killed), 0)[1]) == 9
    assert any("000777" in path for path in digests(small_splits))  # it had begun
    with registered():
        assert len(get_dataset_dicts(["minitown_snow_val"])) == 3
    assert not any("000777" in path for path in digests(small_splits))


def test_processes_that_start_together_make_the_files_once(
    small_splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = datasets.write_tree

    def make(turn: str) -> None:
        def slow(*arguments: Any) -> None:
            (tmp_path / f"made_by_{turn}").touch()
            time.sleep(0.3)  # so that the other one comes in between
            write(*arguments)

        monkeypatch.setattr(datasets, "write_tree", slow)
        (tmp_path / f"ready_{turn}").touch()
        while len(list(tmp_path.glob("ready_*"))) < 2:
            time.sleep(0.01)
        made = datasets.generated_folder("minitown_rain_val", datasets.MinitownSplit("rain", "val", 50000, 3))
        assert len(list(made.rglob("*.png"))) == 15

    for pid in [fork(lambda turn=turn: make(turn)) for turn in "ab"]:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(list(tmp_path.glob("made_by_*"))) == 1
    with registered():
        assert len(get_dataset_dicts(["minitown_rain_val"])) == 3
    assert sorted(path.name for path in small_splits.iterdir()) == ["minitown_rain_val", "minitown_rain_val.lock"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in (("", ".cache/famix"), ("~/mine", "mine"), ("$HOME/ours", "ours")):
        monkeypatch.setenv("FAMIX_CACHE", value)
        assert datasets.cache_folder() == tmp_path / expected
    monkeypatch.delenv("FAMIX_CACHE")
    assert datasets.cache_folder() == tmp_path / ".cache/famix"


def test_cache_that_cannot_be_written(small_splits: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with registered(), expect_error(DatasetError, "minitown_fog_val", remedy="$FAMIX_CACHE"):
        get_dataset_dicts(["minitown_fog_val"])


@pytest.mark.parametrize("kind", ["leftImg8bit", "gtFine"])
def test_files_that_are_gone(small_splits: Path, kind: str) -> None:
    with registered():
        get_dataset_dicts(["minitown_fog_val"])
        folder = small_splits / "minitown_fog_val"
        for path in (folder / kind).rglob("*_000000_050001_*"):
            path.unlink()
        with pytest.raises(DatasetError, match=rf"minitown_fog_val.*elete {folder}: the next start renders it again"):
            get_dataset_dicts(["minitown_fog_val"])
