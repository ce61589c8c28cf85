"""The town's datasets: the content of their files, and their rendering on first use."""

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
from famix_minitown.datasets import CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED, SPLITS, MinitownSplit, town_folder
from famix_minitown.rendering.canvas import FAR
from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS, apply_condition
from famix_minitown.rendering.scene import Scene, render_scene

SMALL = (64, 128)
ALL = (*CONDITIONS, *DEVELOPMENT_CONDITIONS)
PERSON, RIDER = 11, 12


def digests(folder: Path) -> dict[str, str]:
    """Return relative path -> hash of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(50_000, SMALL)


@pytest.fixture
def tree(scene: Scene, tmp_path: Path) -> Path:
    """The scene by day and by night as files."""
    writer.write_tree(tmp_path, "val", ["clear", "night"], [scene.seed], SMALL)
    return tmp_path


@pytest.fixture
def small_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Datasets of three scenes in a cache of their own, whose folder is returned."""
    monkeypatch.setenv("FAMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "SPLITS", {name: replace(split, count=3) for name, split in SPLITS.items()})
    return town_folder()


def test_purposes_share_no_scene() -> None:
    expected = ["train", *(f"{name}_val" for name in CONDITIONS), *(f"{name}_train" for name in CONDITIONS[1:])]
    assert set(SPLITS) == {*expected, *(f"{name}_dev" for name in ("clear", *DEVELOPMENT_CONDITIONS))}
    seeds: dict[str, set[int]] = defaultdict(set)
    for name, split in SPLITS.items():
        assert name in ("train", f"{split.condition}_{split.folder}")
        seeds["oracle" if name.endswith("_train") else split.folder] |= set(split.seeds)
    counts = {purpose: len(found) for purpose, found in seeds.items()}
    assert counts == {"train": 500, "val": 50, "dev": 50, "oracle": 100}
    assert len(set().union(*seeds.values())) == 700
    assert max(set().union(*seeds.values())) < CLIP_TRAIN_FIRST_SEED < CLIP_VAL_FIRST_SEED


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    # The package would import Detectron2 for seconds, which the writer does not need.
    code = "import sys, types; from pathlib import Path; sys.modules['famix'] = famix = types.ModuleType('famix')\n"
    code += f"famix.__path__ = {list(famix.__path__)!r}; from famix_minitown import writer\n"
    code += "writer.write_tree(Path(sys.argv[1]), 'val', sys.argv[2:], [3, 4], (64, 128))"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "process"), *ALL]) as process:
        writer.write_tree(tmp_path / "here", "val", ALL, [3, 4], SMALL)
        assert process.wait(120) == 0
    expected = digests(tmp_path / "here")
    assert len(expected) == 5 * 2 * len(ALL)
    assert digests(tmp_path / "process") == expected
    images = digests(tmp_path / "here/leftImg8bit").values()
    assert len(set(images)) == 2 * len(ALL), "seeds and conditions differ"


def test_tree_contains_the_scene(tree: Path, scene: Scene) -> None:
    frame = "val/minitownnight/minitownnight_000000_050000"
    assert sorted(path for path in digests(tree) if "night" in path) == [
        f"disparity/{frame}_disparity.png",
        f"gtFine/{frame}_gtFine_instanceIds.png",
        f"gtFine/{frame}_gtFine_labelIds.png",
        f"gtFine/{frame}_gtFine_labelTrainIds.png",
        f"leftImg8bit/{frame}_leftImg8bit.png",
    ]
    np.testing.assert_array_equal(
        pixels(tree / f"leftImg8bit/{frame}_leftImg8bit.png"), apply_condition(scene, "night")
    )
    np.testing.assert_array_equal(pixels(tree / f"gtFine/{frame}_gtFine_labelTrainIds.png"), scene.labels)
    writer.write_tree(tree, "val", ["fog"], [12_000_034], (32, 64))
    assert "leftImg8bit/val/minitownfog/minitownfog_000012_000034_leftImg8bit.png" in digests(tree)


def test_instance_ids_follow_cityscapes(tree: Path, scene: Scene) -> None:
    folder = tree / "gtFine/val/minitownclear"
    ids, label_ids = (pixels(next(folder.glob(f"*_{kind}.png"))) for kind in ("instanceIds", "labelIds"))
    with_instance = scene.instances > 0
    np.testing.assert_array_equal(ids[~with_instance], label_ids[~with_instance])
    np.testing.assert_array_equal(ids[with_instance] // 1000, label_ids[with_instance])
    for label_id in (24, 26):
        numbers = np.unique(ids[ids // 1000 == label_id] % 1000)
        assert len(numbers) > 1
        np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    pairs = np.unique(np.stack([ids[with_instance], scene.instances[with_instance]]), axis=1)
    assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def test_disparity_encodes_the_depth(tree: Path, scene: Scene) -> None:
    coded = pixels(next((tree / "disparity").rglob("*clear*.png"))).astype(float)
    np.testing.assert_array_equal(coded == 0, scene.depth >= FAR)
    known = coded > 0
    assert not known.all()
    expected = 0.22 * scene.focal / scene.depth[known]
    np.testing.assert_allclose((coded[known] - 1) / 256, expected, atol=0.5 / 256 + 1e-9)


def test_registered_datasets_are_rendered_once(small_splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("called again")

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
        night, scene = records[3], render_scene(50_000)
        assert night["file_name"].startswith(f"{small_splits}/minitown_night_val/leftImg8bit/val/minitownnight/")
        np.testing.assert_array_equal(pixels(night["file_name"]), apply_condition(scene, "night"))
        reader = get_label_readers(names)["minitown_night_val"]
        np.testing.assert_array_equal(reader.read(night["label_file_name"]), scene.labels)
        monkeypatch.setattr(datasets, "write_tree", fail)
        monkeypatch.setattr(datasets, "file_lock", fail)  # which a read-only cache could not have
        assert get_dataset_dicts(names) == records


def test_names_have_the_metadata_of_other_datasets() -> None:
    names = [f"minitown_{name}" for name in SPLITS]
    with registered():
        assert {name for name in DatasetCatalog if "minitown" in name} == {*names, *(f"{n}_panoptic" for n in names)}
        require_same_classes([*names, "cityscapes_val"])
        for name in names:
            ours, others = MetadataCatalog.get(name), MetadataCatalog.get("bdd100k_val")
            assert (ours.stuff_colors, ours.label_reader) == (others.stuff_colors, others.label_reader)
            assert (ours.ignore_label, ours.evaluator_type, ours.definition.name) == (255, "sem_seg", "minitown")
        with pytest.raises(DatasetError, match=r"'minitown_nihgt_val' is unknown\. Did you mean 'minitown_night_val'"):
            get_dataset_dicts(["minitown_nihgt_val"])


def test_scores_count_the_classes_that_occur(small_splits: Path, tmp_path: Path) -> None:
    cfg, name = data_config(train=()), "minitown_fog_val"
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    with registered():
        evaluator = build_evaluator(cfg, name)
        evaluator.reset()
        for record in get_dataset_dicts([name]):
            labels = torch.from_numpy(get_label_readers([name])[name].read(record["label_file_name"]).astype(np.int64))
            labels[labels == PERSON] = RIDER  # which never occurs
            evaluator.process([record], [{"sem_seg": torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1)}])
        scores = evaluator.evaluate()["sem_seg"]
    assert scores["mIoU"] == pytest.approx(100 * 9 / 10)
    assert np.isnan(scores["IoU-rider"])


def test_interruption_leaves_nothing(small_splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def interrupted(scene: Scene, name: str) -> np.ndarray:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(name)
        return scene.image

    with registered():
        monkeypatch.setattr(writer, "apply_condition", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get_dataset_dicts(["minitown_dusk_val"])
        assert digests(small_splits).keys() <= {"minitown_dusk_val.lock"}
        monkeypatch.setattr(writer, "apply_condition", apply_condition)
        assert len(get_dataset_dicts(["minitown_dusk_val"])) == 3


def fork(work: Callable[[], object]) -> int:
    """Run a function in a process of its own, and return its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_files_of_a_killed_process_are_never_used(small_splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> None:
        monkeypatch.setattr(writer, "render_scene", lambda seed, size: os._exit(9) if seed > 777 else scene)
        datasets.generated_folder("minitown_snow_val", MinitownSplit("snow", "val", 777, 3))

    scene = render_scene(777)
    assert os.waitstatus_to_exitcode(os.waitpid(fork(killed), 0)[1]) == 9
    assert any("000777" in path for path in digests(small_splits))  # it had begun
    with registered():
        assert len(get_dataset_dicts(["minitown_snow_val"])) == 3
    assert not any("000777" in path for path in digests(small_splits))


def test_processes_that_start_together_render_once(
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
        made = datasets.generated_folder("minitown_rain_val", MinitownSplit("rain", "val", 50000, 3))
        assert len(list(made.rglob("*.png"))) == 15

    for pid in [fork(lambda turn=turn: make(turn)) for turn in "ab"]:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(list(tmp_path.glob("made_by_*"))) == 1
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
def test_missing_files_are_rendered_again_after_the_remedy(small_splits: Path, kind: str) -> None:
    with registered():
        get_dataset_dicts(["minitown_fog_val"])
        folder = small_splits / "minitown_fog_val"
        for path in (folder / kind).rglob("*_000000_050001_*"):
            path.unlink()
        with pytest.raises(DatasetError, match=rf"minitown_fog_val.*elete '{folder}' and run the command again"):
            get_dataset_dicts(["minitown_fog_val"])
