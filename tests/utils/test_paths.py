"""Paths on command lines and in environment variables follow the rule of those in configs."""

from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

import famix
from data_factory import write_definition
from error_matching import expect_error
from famix.clip import load_clip_state_dict
from famix.config import load_config
from famix.data import load_definition, register_datasets
from famix.data.definition import DatasetDefinition
from famix.inference.images import find_images
from famix.utils.errors import ConfigError, DatasetError, FAMixError
from famix.utils.paths import expand_arguments, similar_path
from famix_minitown.datasets import cache_folder
from run_factory import ROOT


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STORE", str(tmp_path))
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize("place", ["~", "$STORE", "${STORE}"])
def test_arguments(place: str, tmp_path: Path) -> None:
    arguments = expand_arguments(
        Namespace(output=Path(place, "a"), runs=[Path(place, "b")], name=f"{place}/c", none=None)
    )
    assert (arguments.output, arguments.runs) == (tmp_path / "a", [tmp_path / "b"])
    assert arguments.name == f"{place}/c", "only what is declared as a path is one"


def test_an_argument_with_an_unset_variable_is_named() -> None:
    with expect_error(ConfigError, key="--html-page", value="$UNSET/a", remedy="UNSET"):
        expand_arguments(Namespace(html_page=Path("$UNSET/a")))


def test_installed_configs(tmp_path: Path) -> None:
    file = famix.config_file("GTA5/famix_RN50.yaml")
    assert Path(file).samefile(ROOT / "projects/FAMix/configs/GTA5/famix_RN50.yaml")
    address = "famix://GTA5/famix_RN50.yaml"
    assert load_config(address) == load_config(str(Path(address))) == load_config(file)
    (tmp_path / "own.yaml").write_text(f"_BASE_: [{address}]\nSEED: 7\n")
    assert load_config(str(tmp_path / "own.yaml")) == load_config(file, ["SEED", "7"])
    words = expand_arguments(Namespace(vocabulary=Path("famix://vocabularies/wordnet.txt"))).vocabulary
    assert words.is_file()


def test_detectron2_reads_installed_configs_with_their_bases() -> None:
    cfg = get_cfg()
    famix.add_famix_config(cfg)
    cfg.merge_from_file("famix://GTA5/famix_RN50.yaml")
    assert cfg.DATASETS.TRAIN == load_config("famix://GTA5/famix_RN50.yaml").DATASETS.TRAIN
    assert not PathManager.exists("famix://nothing.yaml")


@pytest.mark.parametrize("name", ["GTA5/famix_RN5.yaml", "../train_net.py", "GTA5", "", "/etc/passwd"])
def test_unknown_installed_configs(name: str) -> None:
    remedy = "famix_RN50.yaml" if "RN5" in name else "configs"
    with expect_error(ConfigError, key="--config-file", value=name, remedy=remedy):
        load_config(f"famix://{name}")


@pytest.mark.parametrize("place", ["~", "$STORE"])
def test_inputs_of_the_demo(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert find_images([f"{place}/a.png"]) == find_images([f"{place}/*.png"]) == [tmp_path / "a.png"]


def resolve_root(root: str, source: str) -> str:
    return DatasetDefinition(name="a", root=root, splits=(), source=source).root_folder()


@pytest.mark.parametrize("variable", ["FAMIX_CACHE", "DETECTRON2_DATASETS"])
@pytest.mark.parametrize("place", ["~", "$STORE"])
def test_environment_variables(variable: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder() -> str:
        return str(cache_folder() / "town") if variable == "FAMIX_CACHE" else resolve_root("town", "file")

    monkeypatch.setenv(variable, f"{place}/there")
    assert folder() == str(tmp_path / "there/town")
    monkeypatch.setenv(variable, "$UNSET/there")
    with expect_error((ConfigError, DatasetError), key=f"${variable}", value="$UNSET/there", remedy="UNSET"):
        folder()


def test_roots_and_definition_files(tmp_path: Path) -> None:
    assert resolve_root("$STORE/a", "file") == resolve_root("~/a", "file") == str(tmp_path / "a")
    with expect_error(DatasetError, key="file: 'root'", value="$UNSET/a", remedy="UNSET"):
        resolve_root("$UNSET/a", "file")
    for name in ("$UNSET/a.yaml", "~nobody_here/a.yaml", "http://localhost:1/a.yaml"):
        with expect_error(DatasetError, key="DATASETS.FILES", value=name):
            register_datasets([name])


@pytest.mark.parametrize("keys", ["~/train.txt", "$STORE/train.txt"])
def test_paths_below_a_root_have_no_root_of_their_own(keys: str, tmp_path: Path) -> None:
    file = write_definition(tmp_path, splits={"train": {"keys": keys}})
    with expect_error(DatasetError, key="splits.train.keys", value=keys, remedy="root"):
        load_definition(file)


@pytest.mark.parametrize("name", ["$UNSET/clip.pt", "~nobody_here/clip.pt", "https://localhost:1/clip.pt"])
def test_files_of_clip(name: str) -> None:
    with expect_error(FAMixError, key="MODEL.CLIP.WEIGHTS", value=name):
        load_clip_state_dict(name)


def test_similar_names_are_those_beside_the_first_missing_part(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    for missing in ("shape", "shape/model_final.pth"):
        assert "'shapes'" in similar_path(tmp_path / missing)
    for missing in ("other", "shapes/model.pth"):
        assert similar_path(tmp_path / missing) == ""
