"""Sources and targets, by the domains that definitions state or by the names of datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog

from data_factory import data_config, registered, write_definition
from error_matching import expect_error, explains
from famix.data import load_definition
from famix.data.definition import changed_entry, describe_dataset
from famix.data.registration import domain_of, is_source, require_known_sources, roles_of, short_names
from famix.utils.errors import ConfigError, DatasetError
from panoptic_factory import write_recipe

KINDS: dict[str, Any] = {"": write_definition, "_panoptic": write_recipe}  # suffix of names -> factory


@pytest.fixture(scope="module", autouse=True)
def builtin_datasets() -> Iterator[None]:
    with registered():
        yield


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("gta5_train", "gta5"), ("gta5_all", "gta5"), ("acdc_night_val", "acdc_night"), ("camvid_val_dusk", "camvid_dusk"),
        ("minitown_clear_val", "minitown_clear"), ("minitown_train", "minitown"), ("own_city_val", "own_city"),
        ("val", "val"),
    ],
)  # fmt: skip
def test_domain_of_a_name(name: str, domain: str) -> None:
    assert domain_of(name) == domain


@pytest.mark.parametrize(
    ("train", "sources", "targets"),
    [
        ("gta5_train", ["gta5_val", "gta5_all"], ["cityscapes_val", "acdc_fog_val"]),
        ("camvid_train_day", ["camvid_val_day"], ["camvid_val_dusk"]),
        ("minitown_train", ["minitown_clear_val"], ["minitown_night_val", "minitown_dusk_val"]),
        ("acdc_fog_train", ["acdc_fog_val"], ["acdc_night_val"]),
    ],
)
def test_is_source_follows_names_or_test_source(train: str, sources: list[str], targets: list[str]) -> None:
    cfg = data_config(train=(train,))
    assert [name for name in (*sources, *targets) if is_source(cfg, name)] == sources
    cfg.TEST.SOURCE = targets[:1]
    assert [name for name in (*sources, *targets) if is_source(cfg, name)] == targets[:1]


@pytest.mark.parametrize("suffix", KINDS)
def test_definitions_state_domains(tmp_path: Path, suffix: str) -> None:
    write = KINDS[suffix]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    splits = {"train": {}, "val": {}, "foggy": {"domain": "fog"}}
    town = write(tmp_path / "a", name="town", domain="rome", splits=splits)
    drive = write(tmp_path / "b", name="drive", splits={"val": {"domain": "rome"}, "clear": {"domain": "rome_clear"}})
    with registered(town, drive):
        cfg = data_config(train=(f"town_train{suffix}",))
        cfg.DATASETS.TEST = tuple(f"{name}{suffix}" for name in ("town_val", "town_foggy", "drive_val", "drive_clear"))
        roles = roles_of(cfg)
        assert roles.sources == (f"town_train{suffix}",)
        assert roles.held_out == (f"town_val{suffix}", f"drive_val{suffix}")
        assert roles.targets == (f"town_foggy{suffix}", f"drive_clear{suffix}")
        assert roles.decided_by == "domain"
        assert [domain_of(name) for name in cfg.DATASETS.TEST] == ["rome", "fog", "rome", "rome_clear"]
        assert MetadataCatalog.get(f"town_foggy{suffix}").domain == "fog"
        cfg.TEST.SOURCE = [f"town_foggy{suffix}"]
        assert (roles_of(cfg).held_out, roles_of(cfg).decided_by) == ((f"town_foggy{suffix}",), "TEST.SOURCE")


@pytest.mark.parametrize("suffix", KINDS)
def test_domain_may_be_stated_after_training(tmp_path: Path, suffix: str) -> None:
    with registered(KINDS[suffix](tmp_path, splits={"val": {}})):
        before = describe_dataset(f"tiny_val{suffix}")
    with registered(KINDS[suffix](tmp_path, splits={"val": {"domain": "rome"}})):
        assert changed_entry(f"tiny_val{suffix}", before) is None


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize(
    ("key", "changes", "value"),
    [
        *(("'domain'", {"domain": value}, value) for value in ("a b", "", 5)),
        ("'splits.val.domain'", {"splits": {"val": {"domain": "/"}}}, "/"),
    ],
)
def test_domain_must_be_a_name(tmp_path: Path, suffix: str, key: str, changes: Any, value: object) -> None:
    with expect_error(DatasetError, key, value):
        load_definition(KINDS[suffix](tmp_path, **changes))


def test_roles_are_one_line() -> None:
    cfg = data_config(train=("gta5_train",))
    cfg.DATASETS.TEST = ("gta5_val", "acdc_fog_val")
    line = str(roles_of(cfg))
    explains(line, "gta5_train", "acdc_fog_val", "domain")
    assert line.index("acdc_fog_val") < line.index("gta5_val") and "\n" not in line


def test_unknown_source_is_an_error() -> None:
    cfg = data_config()
    cfg.TEST.SOURCE = ["gta5_vall"]
    with expect_error(ConfigError, "TEST.SOURCE", "gta5_vall", "gta5_val"):
        require_known_sources(cfg)


def test_headings_are_names_for_own_datasets_and_domains_for_built_in_ones(tmp_path: Path) -> None:
    with registered(write_definition(tmp_path, domain="shapes")):
        names = ["tiny_train", "tiny_val@fog1", "acdc_night_val", "minitown_night_val", "gta5_val", "gta5_train"]
        assert short_names(names) == {
            **{name: name for name in ("tiny_train", "tiny_val@fog1", "gta5_val", "gta5_train")},
            "acdc_night_val": "acdc_night", "minitown_night_val": "minitown_night",
        }  # fmt: skip
